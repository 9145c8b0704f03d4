"""Writes a trained model as an ordinary diffusers folder with a model card."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from string import Template

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from deploy.demo_model import vae
from deploy.demo_model.diffusion import TrainedUNet, scheduler
from deploy.demo_model.preset import EMPTY_CAPTIONS, TOKENS, Preset
from deploy.demo_model.text import add_slow_tokenizer_files


def export(
    preset: Preset,
    tokenizer: CLIPTokenizer,
    autoencoder: vae.TrainedVae,
    trained: TrainedUNet,
    *,
    scaling_factor: float,
    folder: Path,
) -> None:
    """Replaces `folder` with the checkpoint, its weights in float16.

    The new folder is whole before it takes the old one's place.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    # What training has padded and cut captions to is no part of the tokenizer.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    autoencoder.model.register_to_config(scaling_factor=scaling_factor)
    StableDiffusionPipeline(
        vae=autoencoder.model,
        text_encoder=trained.text_encoder,
        tokenizer=tokenizer,
        unet=trained.unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    learnt = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    add_slow_tokenizer_files(learnt, fresh / "tokenizer")
    # Without a dtype asked for, diffusers loads its own modules in float32 and transformers
    # its in the dtype named here: they must agree, or the bare from_pretrained() is broken.
    _change(fresh / "text_encoder" / "config.json", dtype="float32")
    # Derived from the others by diffusers itself, which warns of it when it reads it back.
    _change(fresh / "vae" / "config.json", block_out_channels=None)
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes files that only their owner can read
    (fresh / "README.md").write_text(
        _card(preset, autoencoder, trained, scaling_factor=scaling_factor, folder=fresh)
    )
    if folder.exists():
        shutil.rmtree(folder)
    fresh.replace(folder)


def _change(config: Path, **changes: str | None) -> None:
    """Sets entries of a JSON file; None removes one."""
    entries = json.loads(config.read_text()) | changes
    kept = {
        name: value for name, value in entries.items() if value is not None or name not in changes
    }
    config.write_text(json.dumps(kept, indent=2) + "\n")


def _card(
    preset: Preset,
    autoencoder: vae.TrainedVae,
    trained: TrainedUNet,
    *,
    scaling_factor: float,
    folder: Path,
) -> str:
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    template = Template(files(__package__).joinpath("model_card.md").read_text())
    return template.substitute(
        size=preset.image,
        scenes=f"{preset.scenes:,}",
        latent_channels=preset.latent_channels,
        scaling_factor=scaling_factor,
        vae_channels=preset.vae_channels,
        vae_steps=f"{autoencoder.steps:,}",
        vae_minutes=f"{autoencoder.minutes:.0f}",
        unet_channels="/".join(map(str, preset.unet_channels)),
        unet_parameters=f"{_millions(trained.unet):.1f}",
        text_layers=preset.text_layers,
        text_channels=preset.text_channels,
        tokens=TOKENS,
        steps=f"{trained.steps:,}",
        batch=preset.unet_batch * preset.processes,
        minutes=f"{trained.minutes:.0f}",
        empty=f"{EMPTY_CAPTIONS:.0%}",
        megabytes=f"{weights / 1e6:.1f}",
    )


def _millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6
