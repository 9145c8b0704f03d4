"""Toy LoRAs: random matrices in the formats that trainers write, made once per process."""

import atexit
import copy
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.unit.engine.toys import toy_folder
from worker.engine.interface import Lora

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = (*ATTENTION, "conv1", "conv2", "proj_in", "time_emb_proj", "ff.net.0.proj")
ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


@lru_cache
def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="darkroom-loras-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


@lru_cache
def pipeline_of(family: str) -> Any:
    """The toy's pipeline, to take shapes from."""
    from diffusers import AutoPipelineForText2Image

    return AutoPipelineForText2Image.from_pretrained(toy_folder(family))


def weights(
    family: str, seed: int, rank: int, targets: Mapping[str, Sequence[str]]
) -> dict[str, torch.Tensor]:
    """In diffusers' format: component of the pipeline -> ends of the names of its modules, or
    nothing for all of them."""
    import peft

    pipeline, made = pipeline_of(family), {}
    torch.manual_seed(seed)
    for part, ends in targets.items():
        model = copy.deepcopy(getattr(pipeline, part))
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules=list(ends) or _every_layer(model)
        )
        wrapped = peft.inject_adapter_in_model(config, model)
        for name, value in peft.get_peft_model_state_dict(wrapped).items():
            made[f"{part}.{name}"] = torch.randn_like(value) * 0.2
    return made


def kohya(
    family: str, diffusers_format: Mapping[str, torch.Tensor], alpha: float
) -> dict[str, Any]:
    """The same weights as Kohya's trainers write them, with an alpha for each module."""
    second = hasattr(pipeline_of(family), "text_encoder_2")
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if second else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    made = {}
    for key, value in diffusers_format.items():
        part, _, rest = key.partition(".")
        module, _, matrix = rest.removesuffix(".weight").rpartition(".")
        if part.startswith("text_encoder") and not module.startswith("text_model."):
            module = f"text_model.{module}"
        name = prefixes[part] + module.replace(".", "_")
        made[f"{name}.lora_{'down' if matrix == 'lora_A' else 'up'}.weight"] = value
        made[f"{name}.alpha"] = torch.tensor(alpha)
    return made


def written(name: str, tensors: Mapping[str, torch.Tensor], scale: float = 1.0) -> Lora:
    """The tensors as a file."""
    path = _home() / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return Lora(name, hashlib.sha256(path.read_bytes()).hexdigest(), scale, path)


def _every_layer(model: torch.nn.Module) -> list[str]:
    """All that a LoRA can change."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        or (isinstance(module, torch.nn.Conv2d) and module.groups == 1)
    ]


@lru_cache
def toy_loras(family: str) -> dict[str, Lora]:
    """Four kinds: attention alone, convolutions too, text encoders too, and Kohya's format."""
    if family in ("sd15", "sd21", "sdxl", "lcm"):
        encoders = {
            part: ENCODER
            for part in _PARTS[2:]
            if getattr(pipeline_of(family), part, None) is not None
        }
        made = {
            "attention": weights(family, 1, 4, {"unet": ATTENTION}),
            "convolutions": weights(family, 2, 8, {"unet": CONVOLUTIONS}),
            "encoders": weights(family, 3, 2, {"unet": ATTENTION, **encoders}),
            "kohya": kohya(
                family, weights(family, 4, 4, {"unet": CONVOLUTIONS[:-1], **encoders}), 2.0
            ),
        }
    else:
        made = {
            name: weights(family, seed, rank, {"transformer": ("to_q", "to_k", "to_v", "to_out.0")})
            for seed, (name, rank) in enumerate((("a", 4), ("b", 8), ("c", 2)), 1)
        }
        ends = ("to_q", "to_out.0", "w1", "w2") if family == "zimage" else ()
        made["every"] = weights(family, 4, 4, {"transformer": ends})
    return {name: written(f"{family}-{name}", tensors) for name, tensors in made.items()}
