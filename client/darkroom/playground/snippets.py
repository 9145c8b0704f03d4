"""A submission as text to copy: a call in Python, a command, a request with curl."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

_FLAGS = {
    "negative_prompt": "negative",
    "num_images": "n",
    "guidance_scale": "guidance",
    "true_cfg_scale": "true-cfg",
    "init_image": "init",
    "resize_mode": "resize",
    "mask_image": "mask",
    "padding_mask_crop": "mask-crop",
    "output_format": "format",
    "output_quality": "quality",
}
"""Field of the API → flag, where they differ by more than hyphens."""
_SWITCHES = {
    "prompt_syntax": ["--weighted"],
    "long_prompt": ["--long-prompt"],
    "mask_from_alpha": ["--mask", "alpha"],
    "masked_content": ["--mask-fill"],
}
"""Field → the words for the value that is not its default."""
_DEFAULTS = {
    "num_images": 1,
    "output_format": "png",
    "prompt_syntax": "plain",
    "long_prompt": False,
    "mask_from_alpha": False,
    "masked_content": "original",
    "preserve_unmasked": True,
}
"""These would only lengthen the text."""
_HIRES = {"scale": "hires", "strength": "hires-strength", "steps": "hires-steps"}


def as_python(fields: Mapping[str, Any]) -> str:
    """A call of the Python client."""
    prompt, rest = _split(fields)
    arguments = "".join(f"    {name}={value!r},\n" for name, value in rest.items())
    return (
        "import darkroom\n\n"
        "client = darkroom.Client()\n"
        f"images = client.generate(\n    {prompt!r},\n{arguments})\n"
        "images[0].save()"
    )


def as_curl(fields: Mapping[str, Any], url: str) -> str:
    """A request with curl; the key is the shell's."""
    prompt, rest = _split(fields)
    body = shlex.quote(json.dumps({"prompt": prompt, **rest}, ensure_ascii=False))
    return (
        f"curl {shlex.quote(f'{url}/v1/jobs')} \\\n"
        '  -H "Authorization: Bearer $DARKROOM_API_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {body}"
    )


def as_command(fields: Mapping[str, Any]) -> str:
    """A command of the command line; before it, a remark on what has no option there."""
    prompt, rest = _split(fields)
    lacking = [name for name in ("preserve_unmasked",) if rest.pop(name, None) is not None]
    if "mask_image" in rest and rest.pop("mask_from_alpha", False):
        lacking.append("mask_from_alpha")  # of the mask: there `alpha` is the initial image's
    flags = [word for name, value in rest.items() for word in _flag(name, value)]
    words = [*flags, "--", prompt] if prompt.startswith("-") else [prompt, *flags]
    remarks = [f"# The command line has no option for {name}.\n" for name in lacking]
    return "".join([*remarks, shlex.join(["darkroom", "generate", *words])])


def _flag(name: str, value: Any) -> list[str]:
    if name == "loras":
        scales = (f"{lora['name']}:{lora['scale']:g}" for lora in value)
        return [word for scale in scales for word in ("--lora", scale)]
    if name == "controls":
        return [word for control in value for word in ("--control", _pairs(control))]
    if name == "references":
        images = (f"{one['image']}:{one.get('scale', 0.6)}" for one in value)
        return [word for image in images for word in ("--reference", image)]
    if name == "hires":
        given = {_HIRES.get(part, part): each for part, each in value.items() if each is not None}
        return [word for flag, each in given.items() for word in (f"--{flag}", str(each))]
    if name == "expand":
        value = ",".join(str(value.get(side) or 0) for side in ("left", "right", "top", "bottom"))
    elif name in _SWITCHES:
        return _SWITCHES[name]
    return [f"--{_FLAGS.get(name, name.replace('_', '-'))}", str(value)]


def _pairs(control: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in control.items() if value is not None)


def _split(fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The prompt, and the rest without defaults."""
    rest = {
        name: value
        for name, value in fields.items()
        if name != "prompt" and value != _DEFAULTS.get(name) and value not in (None, [])
    }
    return str(fields["prompt"]), rest
