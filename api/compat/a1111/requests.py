"""The web UI's requests as jobs."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from api.compat.a1111.controlnet import POINTER as CONTROLNET
from api.compat.a1111.controlnet import is_controlnet, read_units
from api.compat.a1111.samplers import find_scheduler
from api.compat.a1111.schemas import LONGEST_NAME, Img2Img, Txt2Img
from api.compat.jobs import to_job
from api.core.errors import Problem, pointer
from api.jobs.submission import JobSubmission
from shared.core.families import FAMILIES
from shared.core.ids import MalformedId, decode_id
from shared.core.model_catalog import ModelCatalog, ModelSpec
from shared.images.models import MAX_PROMPT

MARK = ("api", "a1111")
"""Metadata of the jobs that this API has made: progress and interrupt are about them alone."""
_DEFAULT_STRENGTH = 0.75
_LEAST_STRENGTH = 0.001
"""The web UI's smallest; steps are divided by it."""
_DEFAULT_BLUR = 4
_FORMATS = {"jpg": "jpeg"}
_RESIZE_MODES = ("stretch", "fill", "fit")
_NO_EFFECT = frozenset(
    (
        # About files and settings on the web UI's disk, and the request as such.
        *("save_images", "do_not_save_samples", "do_not_save_grid", "force_task_id", "comments"),
        *("override_settings_restore_afterwards", "url", "auth"),
        # Without what they belong to.
        *("subseed", "script_args", "refiner_switch_at", "s_tmin", "s_tmax"),
        *("firstphase_width", "firstphase_height", "image_cfg_scale"),
        *("mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "inpainting_fill"),
        *("inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert"),  # txt2img
    )
)
"""Fields that may have any value. SillyTavern sends `url` and `auth`, its own settings, along."""
_OF_SECOND_PASS = frozenset(
    (
        *("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_cfg"),
        *("hr_prompt", "hr_negative_prompt", "hr_additional_modules"),
    )
)
"""Fields that may have any value without `enable_hr`."""
_UPSCALERS = {"latent": "latent", "lanczos": "lanczos", "none": "lanczos"}
"""The web UI's `None` resamples the pixels, too."""
_SAME_SHAPE = 0.02
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "eta": (1,),
    "s_noise": (1,),
    "clip_skip": (1,),
    "initial_noise_multiplier": (1,),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "refiner_checkpoint": ("None",),
    "script_name": ("None",),
    "hr_checkpoint_name": ("Use same checkpoint",),
    "hr_sampler_name": ("Use same sampler",),
    "hr_scheduler": ("Use same scheduler",),
    "hr_additional_modules": (["Use same choices"],),
}
"""What a field may be, apart from empty, null, false and 0."""
_SETTINGS_OF_FILES = frozenset(
    (
        *("samples_save", "grid_save", "return_grid", "enable_pnginfo", "do_not_show_images"),
        *("jpeg_quality", "webp_lossless"),
    )
)
_NEUTRAL_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (1,),
    "sd_vae": ("Automatic", "None"),
    "emphasis": ("Original",),
}
_THEIR_NAMES = {
    "/num_images": "/batch_size",
    "/guidance_scale": "/cfg_scale",
    "/scheduler": "/sampler_name",
    "/strength": "/denoising_strength",
    "/hires": "/enable_hr",
    "/hires/scale": "/hr_scale",
    "/hires/strength": "/denoising_strength",
    "/hires/steps": "/hr_second_pass_steps",
    "/hires/upscaler": "/hr_upscaler",
    "/init_image": "/init_images",
    "/mask_image": "/mask",
    "/padding_mask_crop": "/inpaint_full_res_padding",
    "/output_format": "/override_settings/samples_format",
    "/output_quality": "/override_settings/jpeg_quality",
}
"""Pointers to a job's fields -> to the web UI's."""
_LONGEST_PROMPT = 4 * MAX_PROMPT
"""Characters with the names of LoRAs, which do not count towards a job's prompt."""
_CHECKPOINT = pointer("override_settings", "sd_model_checkpoint")
_NETWORK = re.compile(r"<(\w+):([^<>]+)>")
_WEIGHTS = re.compile(r"[(\[]|\bBREAK\b")
_BRACKET = re.compile(r"\\.|[()\[\]]")
_FILE_NAME = re.compile(r"(\.(safetensors|ckpt))?( \[\w+\])?$")


def check_supported(body: Txt2Img) -> None:
    """Return if nothing is asked for that Darkroom does not do.

    Raises:
        Problem: 422 that names the field.
    """
    for name, value in (body.model_extra or {}).items():
        has_effect = name not in _NO_EFFECT and (body.enable_hr or name not in _OF_SECOND_PASS)
        as_first = name in _OF_SECOND_PASS and value == getattr(body, name[3:], None)
        if has_effect and not as_first and not _is_off(value, _NEUTRAL.get(name, ())):
            raise _unsupported(name)
    for name, value in (body.override_settings or {}).items():
        is_known = name in ("sd_model_checkpoint", "samples_format") or name in _SETTINGS_OF_FILES
        if not is_known and not _is_off(value, _NEUTRAL_SETTINGS.get(name, ())):
            raise _unsupported("override_settings", name)
    for name, script in (body.alwayson_scripts or {}).items():
        if not is_controlnet(name) and not _is_script_off(script):
            raise _unsupported("alwayson_scripts", name)


def _is_off(value: Any, neutral: tuple[Any, ...]) -> bool:
    return not value or value in neutral or (isinstance(value, list) and not any(value))


def _is_script_off(script: Any) -> bool:
    """Whether it has no arguments, or they turn it off as ADetailer's and ControlNet's do."""
    arguments = script.get("args") if isinstance(script, dict) else script
    if not arguments:
        return True
    if not isinstance(arguments, list):
        return False
    return arguments[0] is False or not any(
        one and not (isinstance(one, dict) and one.get("enabled") is False) for one in arguments
    )


def _unsupported(*path: str) -> Problem:
    shown = ".".join(path)[:128]
    where = pointer(*(part[:64] for part in path))
    return Problem.invalid(where, "unsupported_parameter", f"{shown} is not supported.")


def find_model(name: str, catalog: ModelCatalog) -> ModelSpec:
    """The model of that name, title, file name or alias.

    Raises:
        Problem: 404 `model_not_found`.
    """
    spec = catalog.find(name) or catalog.find(_without_suffix(name))
    if spec is None:
        names = ", ".join(one.name for one in catalog.model[:20])
        message = f"There is no model {name[:64]!r}. The models are: {names}."
        raise Problem.invalid(_CHECKPOINT, "model_not_found", message)
    return spec


def _without_suffix(name: str) -> str:
    return _FILE_NAME.sub("", name.strip())


def model_of(body: Txt2Img) -> str | None:
    """The name that the request gives.

    Raises:
        Problem: 422, it is none.
    """
    name = (body.override_settings or {}).get("sd_model_checkpoint")
    if not name:
        return None
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        message = f"A model's name may have {LONGEST_NAME} characters at most."
        raise Problem.invalid(_CHECKPOINT, "malformed_name", message)
    return name


def to_submission(body: Txt2Img, spec: ModelSpec, family: str | None) -> JobSubmission:
    """The job that a request asks for.

    Raises:
        Problem: it asks for what there is not, or breaks a rule of jobs.
    """
    check_supported(body)
    for name, text in (("prompt", body.prompt), ("negative_prompt", body.negative_prompt)):
        if len(text or "") > _LONGEST_PROMPT:
            message = f"At most {_LONGEST_PROMPT} characters are allowed."
            raise Problem.invalid(f"/{name}", "too_long", message)
    prompt, loras = read_networks(body.prompt or "")
    sampler = body.sampler_name or body.sampler_index
    fields: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": body.negative_prompt or None,
        "seed": None if body.seed == -1 else body.seed,
        "num_images": (body.batch_size or 1) * (body.n_iter or 1),
        "width": body.width,
        "height": body.height,
        "steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "scheduler": find_scheduler(sampler, body.scheduler, family),
        "model": spec.name,
        "loras": None if body.disable_extra_networks else loras,
        **_file(body.override_settings or {}),
        "metadata": dict([MARK]),
        "previews": True,
    }
    fields |= _how_to_read(fields, family)
    if body.enable_hr:
        fields["hires"] = _second_pass(body, spec)
    if isinstance(body, Img2Img):
        fields |= {
            "init_image": _source(body),
            "strength": _strength(body),
            "resize_mode": _RESIZE_MODES[body.resize_mode or 0],
            **_mask(body),
        }
    start = fields.get("init_image")
    fields |= read_units(body.alwayson_scripts, image_reference, _without_suffix, start)
    with in_their_names():
        return to_job(fields)


def _file(settings: Mapping[str, Any]) -> dict[str, Any]:
    sent = settings.get("samples_format") or "png"
    if not isinstance(sent, str) or len(sent) > LONGEST_NAME:
        raise _unsupported("override_settings", "samples_format")
    name = sent.lower()
    is_lossless = name == "png" or (name == "webp" and settings.get("webp_lossless"))
    return {
        "output_format": _FORMATS.get(name, name),
        "output_quality": None if is_lossless else settings.get("jpeg_quality"),
    }


def _how_to_read(fields: Mapping[str, Any], family: str | None) -> dict[str, Any]:
    """Prompts have weights, and are long, for every model that can: others read them as they are.
    Where no worker has said what the model is, only those that have weights are read so."""
    facts = FAMILIES.get(family or "")
    texts = [str(fields[name] or "") for name in ("prompt", "negative_prompt")]
    if facts is not None:
        weighted, long = facts.prompt_weights, facts.long_prompts
    else:
        weighted = long = family == "simulated" or (
            family is None and any(map(_WEIGHTS.search, texts))
        )
    if not weighted:
        return {"long_prompt": long}
    prompt, negative = map(close_brackets, texts)
    return {
        "prompt": prompt,
        "negative_prompt": negative or None,
        "prompt_syntax": "weighted",
        "long_prompt": long,
    }


def close_brackets(prompt: str) -> str:
    """The prompt with what it leaves open closed at its end, where the web UI lets it end."""
    left = {"(": 0, "[": 0}
    for mark in _BRACKET.findall(prompt):
        if mark in left:
            left[mark] += 1
        elif mark in ")]":
            opening = "(" if mark == ")" else "["
            left[opening] = max(0, left[opening] - 1)
    return prompt + ")" * left["("] + "]" * left["["]


def _second_pass(body: Txt2Img, spec: ModelSpec) -> dict[str, Any]:
    if isinstance(body, Img2Img):
        raise _unsupported("enable_hr")
    upscaler = _UPSCALERS.get((body.hr_upscaler or "Latent").lower())
    if upscaler is None:
        message = f"There is no upscaler {(body.hr_upscaler or '')[:64]!r}; use Latent or Lanczos."
        raise Problem.invalid("/hr_upscaler", "upscaler_not_supported", message)
    strength = _strength(body)
    steps = body.hr_second_pass_steps or body.steps or spec.default_steps
    if strength < 1:
        # All of them run, as in the web UI: they are the strength's share of our schedule.
        steps = min(math.ceil(steps / strength), max(steps, spec.max_steps))
    return {
        "scale": _scale(body, spec),
        "strength": strength,
        "steps": steps,
        "upscaler": upscaler,
    }


def _strength(body: Txt2Img) -> float:
    if body.denoising_strength is None:
        return _DEFAULT_STRENGTH
    if body.denoising_strength < _LEAST_STRENGTH:
        message = f"denoising_strength must be at least {_LEAST_STRENGTH}."
        raise Problem.invalid("/denoising_strength", "strength_too_low", message)
    return body.denoising_strength


def _scale(body: Txt2Img, spec: ModelSpec) -> float:
    wanted = (body.hr_resize_x or 0, body.hr_resize_y or 0)
    first = (body.width or spec.default_width, body.height or spec.default_height)
    scales = [after / before for after, before in zip(wanted, first, strict=True) if after > 0]
    if not scales:
        return 2.0 if body.hr_scale is None else body.hr_scale
    if max(scales) > min(scales) * (1 + _SAME_SHAPE):
        message = "hr_resize_x and hr_resize_y must keep the shape of width and height."
        raise Problem.invalid("/hr_resize_x", "unsupported_parameter", message)
    return scales[0]


def _mask(body: Img2Img) -> dict[str, Any]:
    if not body.mask:
        return {}
    return {
        "mask_image": image_reference(body.mask),
        "masked_content": "original" if body.inpainting_fill else "fill",
        "mask_blur": _DEFAULT_BLUR if body.mask_blur is None else body.mask_blur,
        "padding_mask_crop": (body.inpaint_full_res_padding or 0)
        if body.inpaint_full_res is not False
        else None,
    }


def _source(body: Img2Img) -> str:
    images = body.init_images or []
    if len(images) != 1:
        raise Problem.invalid("/init_images", "image_count", "Give one image.")
    return image_reference(images[0])


def image_reference(text: str) -> str:
    """What is neither a URL nor one of our IDs is base64."""
    text = text.strip()
    for kind in ("img", "upl"):
        try:
            decode_id(kind, text[:64])
        except MalformedId:
            continue
        return text
    is_url = text[:8].lower().startswith(("data:", "http://", "https://"))
    return text if is_url else f"data:image/png;base64,{text}"


def read_networks(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without its `<lora:name:scale>`, and these.

    Raises:
        Problem: 422 for another kind of network, or a scale that is none.
    """
    loras: list[dict[str, Any]] = []
    for match in _NETWORK.finditer(prompt):
        kind, (name, *scales) = match[1], match[2].split(":")
        if kind not in ("lora", "lyco"):
            raise Problem.invalid("/prompt", "unsupported_network", f"Not a LoRA: {match[0][:64]}.")
        try:
            numbers = {float(scale) for scale in scales} or {1.0}
        except ValueError:
            numbers = set()
        if len(numbers) != 1:
            message = f"{match[0][:64]}: give one number, for text encoder and network alike."
            raise Problem.invalid("/prompt", "unsupported_lora_scale", message)
        loras.append({"name": name.strip(), "scale": numbers.pop()})
    return _NETWORK.sub("", prompt).strip(), loras


@contextmanager
def in_their_names() -> Iterator[None]:
    """What is said of a job's fields inside is said of the web UI's."""
    try:
        yield
    except Problem as problem:
        for error in problem.errors:
            ours = error.pointer or ""
            theirs = _THEIR_NAMES.get(ours, ours)
            for lists, name in (("/loras", "/prompt"), (("/controls", "/references"), CONTROLNET)):
                theirs = name if ours.startswith(lists) else theirs
            if problem.detail == f"{ours}: {error.message}":
                problem.detail = f"{theirs}: {error.message}"
            error.pointer = theirs or None
        raise
