"""ControlNet's units among the web UI's scripts, as `controls` and `references` of a job."""

from collections.abc import Callable, Mapping
from typing import Any

from api.compat.a1111.schemas import LONGEST_NAME
from api.core.errors import Problem, pointer

SCRIPT = "controlnet"
_NAMES = ("alwayson_scripts", "ControlNet")
POINTER = pointer(*_NAMES)
_MODULES = {"": "none", "none": "none", "canny": "canny"}
_IP_ADAPTERS = ("ip-adapter_clip", "ip-adapter-auto")
"""How the modules begin that look at an image's content: FaceID's are others."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "control_mode": (0, "Balanced", "ControlMode.BALANCED"),
    "hr_option": ("Both", "HiResFixOption.BOTH"),
}
_NO_EFFECT = frozenset(
    (
        *("enabled", "low_vram", "processor_res", "pixel_perfect", "resize_mode", "is_ui"),
        *("save_detected_map", "input_mode", "output_dir", "loopback", "use_preview_as_input"),
        *("batch_images", "generated_image", "guessmode"),
    )
)
_READ = ("model", "module", "weight", "image", "input_image")
_PARTS = ("guidance_start", "guidance_end", "threshold_a", "threshold_b")


def is_controlnet(name: str) -> bool:
    """Whether a script of that name is it."""
    return name.lower() == SCRIPT


def read_units(
    scripts: Mapping[str, Any] | None,
    reference: Callable[[str], str],
    file_name: Callable[[str], str],
    start: str | None,
) -> dict[str, list[dict[str, Any]]]:
    """The `controls` and `references` of the units that are on, if there are any.

    Args:
        scripts: `alwayson_scripts`.
        reference: makes of an image as it was sent one as jobs name it.
        file_name: takes from a name what file names have.
        start: the initial image, which a unit without an image sees, too.

    Raises:
        Problem: 422, a unit asks for what there is not.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, script in (scripts or {}).items():
        units = script.get("args") if isinstance(script, dict) else script
        if not is_controlnet(name) or not units:
            continue
        if not isinstance(units, list):
            raise _refused("unsupported_parameter", "ControlNet's args must be a list of units.")
        for unit in units:
            if isinstance(unit, dict) and unit.get("enabled") is not False:
                of, fields = _read(unit, reference, file_name, start)
                found.setdefault(of, []).append(fields)
            elif unit and not isinstance(unit, dict):
                raise _refused("unsupported_parameter", "A ControlNet unit must be an object.")
    return found


def _read(
    unit: dict[str, Any],
    reference: Callable[[str], str],
    file_name: Callable[[str], str],
    start: str | None,
) -> tuple[str, dict[str, Any]]:
    """The list that it belongs to, and what it says there."""
    for name, value in unit.items():
        is_known = name in _NO_EFFECT or name in _READ or name in _PARTS
        if not is_known and value and value not in _NEUTRAL.get(name, ()):
            raise _refused("unsupported_parameter", f"{name[:64]} of ControlNet is not supported.")
    module = _name(unit, "module").lower()
    looks = module.startswith(_IP_ADAPTERS)
    if module not in _MODULES and not looks:
        message = f"The preprocessor {module[:64]!r} is not supported; use none or canny."
        raise _refused("unsupported_parameter", message)
    image = unit.get("image") or unit.get("input_image")
    image = image.get("image") if isinstance(image, dict) else image
    source = reference(image) if isinstance(image, str) and image else start
    if source is None:
        raise _refused("missing", "A ControlNet unit needs an image.")
    if looks:
        if unit.get("guidance_start") or unit.get("guidance_end") not in (None, 1):
            raise _refused("unsupported_parameter", "An IP-Adapter acts in all steps.")
        scale = unit.get("weight")
        return "references", {"image": source, "scale": 1.0 if scale is None else scale}
    fields = {
        "name": file_name(_name(unit, "model")),
        "image": source,
        "scale": unit.get("weight"),
        "start": unit.get("guidance_start"),
        "end": unit.get("guidance_end"),
        "preprocess": _MODULES[module],
    }
    if module == "canny":
        fields |= {"low": _threshold(unit, "a"), "high": _threshold(unit, "b")}
    return "controls", {name: value for name, value in fields.items() if value is not None}


def _name(unit: Mapping[str, Any], field: str) -> str:
    value = unit.get(field) or ""
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        message = f"{field} of ControlNet must be a name of at most {LONGEST_NAME} characters."
        raise _refused("malformed_name", message)
    return value


def _threshold(unit: Mapping[str, Any], letter: str) -> Any:
    """None, which is the preprocessor's own, also for what is negative."""
    value = unit.get(f"threshold_{letter}")
    return None if isinstance(value, int | float) and value < 0 else value


def _refused(code: str, message: str) -> Problem:
    return Problem.invalid(POINTER, code, message)
