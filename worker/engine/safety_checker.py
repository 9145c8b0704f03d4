"""The filter `safety_checker`: the one that a Stable Diffusion checkpoint brings along.

It runs in the filters' process, on the worker's device, beside the engine that leaves it out.
"""

from pathlib import Path
from typing import Any, NamedTuple

from shared.core.filter_process import MadeImage, Setup, Verdict
from shared.core.logging import get_logger
from worker.engine.checkpoint import locate
from worker.engine.simulated import SOURCE_PREFIX

_log = get_logger(__name__)
_REASON = "The model's safety checker takes it for unsafe."


class _Loaded(NamedTuple):
    checker: Any
    processor: Any


class SafetyChecker:
    """Refuses images that the checker of their model takes for unsafe."""

    def __init__(self, setup: Setup) -> None:
        import torch

        self._device = setup.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        self._loaded: dict[str, _Loaded] = {}
        for spec in setup.models:
            is_simulated = spec.source.startswith(SOURCE_PREFIX)
            folder = Path() if is_simulated else locate(spec)
            if not is_simulated and (folder / "safety_checker" / "config.json").is_file():
                self._loaded[spec.name] = self._load(folder, spec.variant)
            else:
                _log.warning("no_safety_checker", model=spec.name)

    def check_image(self, image: MadeImage) -> Verdict | None:
        """Images of models without a checker pass."""
        loaded = self._loaded.get(image.prompt.model)
        if loaded is None:
            return None
        import torch

        inputs = loaded.processor(images=image.pixels, return_tensors="pt")
        with torch.inference_mode():
            # It would blacken what it refuses, so it gets a copy of one pixel.
            _, unsafe = loaded.checker(
                images=image.pixels[None, :1, :1].copy(),
                clip_input=inputs.pixel_values.to(self._device),
            )
        return Verdict("refuse", _REASON) if any(unsafe) else None

    def _load(self, folder: Any, variant: str | None) -> _Loaded:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        checker = StableDiffusionSafetyChecker.from_pretrained(
            folder / "safety_checker", variant=variant, use_safetensors=True, local_files_only=True
        )
        processor = CLIPImageProcessor.from_pretrained(
            folder / "feature_extractor", local_files_only=True
        )
        return _Loaded(checker.to(self._device).eval(), processor)
