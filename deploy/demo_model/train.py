"""Trains the demo model and writes its checkpoint: `python -m deploy.demo_model.train`.

Five stages, each of which continues where a killed run stopped: draw the scenes, train the VAE,
teach the text encoder the captions, encode the scenes, train the UNet. The checkpoint is
written at the end and, with `--export-only`, from the state on disk at any time.
"""

from __future__ import annotations

import argparse
import os
import shutil
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from deploy.demo_model import diffusion, text, vae
from deploy.demo_model.export import export
from deploy.demo_model.preset import CPU, CUDA, SEED, Preset
from deploy.demo_model.process_group import ProcessGroup
from deploy.demo_model.process_group import run as run_group
from deploy.demo_model.training_data import images, training_set

CHECKPOINT = Path(__file__).parent / "checkpoint"
WORK = Path(".darkroom/demo-model")


def main() -> None:
    options = _parser().parse_args()
    device = _device(options.device)
    preset = CUDA if device.type == "cuda" else CPU
    if options.export_only:
        export_averaged(preset, options.work, options.checkpoint)
        return
    if device.type == "cpu" and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    minutes = options.minutes or preset.minutes_unet
    run_group(
        preset.processes,
        partial(
            run,
            preset,
            work=options.work,
            checkpoint=options.checkpoint,
            device=device,
            minutes_vae=options.minutes_vae or min(minutes, preset.minutes_vae),
            minutes_unet=minutes,
            from_nothing=options.from_nothing,
        ),
    )


def run(
    preset: Preset,
    *,
    work: Path,
    checkpoint: Path,
    device: torch.device,
    minutes_vae: float,
    minutes_unet: float,
    from_nothing: bool,
    group: ProcessGroup,
) -> None:
    """All stages; the minutes count the training of earlier runs in `work` too."""
    torch.manual_seed(SEED)
    start = None if from_nothing else _start(checkpoint)
    with group.first_alone():
        drawn = images(preset.scenes, preset.image, work)
    autoencoder = vae.train(
        preset,
        drawn,
        start=start and start.vae,
        work=work,
        device=device,
        minutes=minutes_vae,
        group=group,
    )
    with group.first_alone():
        tokenizer = _tokenizer(work, checkpoint if start else None)
        text_encoder = text.train(preset, tokenizer, start and start.text_encoder, work, device)
        data = training_set(drawn, autoencoder.model, tokenizer, work, device)
    trained = diffusion.train(
        preset,
        data,
        tokenizer,
        text_encoder,
        start=start and start.unet,
        work=work,
        device=device,
        minutes=minutes_unet,
        group=group,
    )
    if group.is_leader:
        export(
            preset,
            tokenizer,
            autoencoder,
            trained,
            scaling_factor=data.scaling_factor,
            folder=checkpoint,
        )
        print(f"wrote {checkpoint}")


def export_averaged(preset: Preset, work: Path, checkpoint: Path) -> None:
    """Writes the checkpoint of a run that has not ended, or not yet."""
    cpu = torch.device("cpu")
    drawn = images(preset.scenes, preset.image, work)
    autoencoder = vae.averaged(preset, work, cpu)
    tokenizer = _tokenizer(work)
    data = training_set(drawn, autoencoder.model, tokenizer, work, cpu)
    trained = diffusion.averaged(preset, text.build(preset, tokenizer), work)
    export(
        preset,
        tokenizer,
        autoencoder,
        trained,
        scaling_factor=data.scaling_factor,
        folder=checkpoint,
    )
    print(f"wrote {checkpoint} after {trained.steps} steps")


def _start(checkpoint: Path) -> StableDiffusionPipeline | None:
    """What an earlier run wrote, to continue from."""
    if not (checkpoint / "model_index.json").exists():
        return None
    return StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)


def _tokenizer(work: Path, checkpoint: Path | None = None) -> CLIPTokenizer:
    """The run's tokenizer: that of the checkpoint that it continues from, or one made now."""
    folder = work / "tokenizer"
    if checkpoint is not None and not folder.exists():
        shutil.copytree(checkpoint / "tokenizer", folder)
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    return text.make_tokenizer(folder)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo_model.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="the UNet's training time over all runs; the VAE has as much, up to an hour",
    )
    parser.add_argument("--minutes-vae", type=float, help="the VAE's own")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--work", type=Path, default=WORK, help="where training state is kept")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="what is written")
    parser.add_argument(
        "--from-nothing",
        action="store_true",
        help="begin with untrained networks, not with those of --checkpoint",
    )
    parser.add_argument(
        "--export-only",
        action="store_true",
        help="write the checkpoint from the state in --work, without training",
    )
    return parser


if __name__ == "__main__":
    main()
