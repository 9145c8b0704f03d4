"""Trains the demo model and writes its checkpoint: `python -m deploy.demo_model.train`.

Five stages, each of which goes on where a killed run stopped: draw the scenes, train the VAE,
teach the text encoder the captions, encode the scenes, train the UNet. The checkpoint is
written at the end and, with `--export-only`, from the state on disk at any time.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from deploy.demo_model import diffusion, text, vae
from deploy.demo_model.export import export
from deploy.demo_model.latents import training_set
from deploy.demo_model.pictures import pictures
from deploy.demo_model.preset import CPU, CUDA, SEED, Preset
from deploy.demo_model.team import Team
from deploy.demo_model.team import run as run_team

CHECKPOINT = Path(__file__).parent / "checkpoint"
WORK = Path(".darkroom/demo-model")


def main() -> None:
    """Parses the command line and trains."""
    options = _parser().parse_args()
    device = _device(options.device)
    preset = CUDA if device.type == "cuda" else CPU
    if options.export_only:
        export_averaged(preset, options.work, options.checkpoint)
        return
    minutes = options.minutes or preset.minutes_unet
    run_team(
        preset.processes,
        partial(
            run,
            preset,
            work=options.work,
            checkpoint=options.checkpoint,
            device=device,
            minutes_vae=min(minutes, preset.minutes_vae),
            minutes_unet=minutes,
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
    team: Team,
) -> None:
    """All stages; the minutes count the training of earlier runs in `work` too."""
    torch.manual_seed(SEED)
    with team.first_alone():
        drawn = pictures(preset.scenes, preset.picture, work)
    autoencoder = vae.train(preset, drawn, work=work, device=device, minutes=minutes_vae, team=team)
    with team.first_alone():
        tokenizer = _tokenizer(work)
        text_encoder = text.train(preset, tokenizer, work, device)
        data = training_set(drawn, autoencoder.model, tokenizer, work, device)
    trained = diffusion.train(
        preset,
        data,
        tokenizer,
        text_encoder,
        work=work,
        device=device,
        minutes=minutes_unet,
        team=team,
    )
    if team.leads:
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
    drawn = pictures(preset.scenes, preset.picture, work)
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


def _tokenizer(work: Path) -> CLIPTokenizer:
    folder = work / "tokenizer"
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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--work", type=Path, default=WORK, help="where training state is kept")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="what is written")
    parser.add_argument(
        "--export-only",
        action="store_true",
        help="write the checkpoint from the state in --work, without training",
    )
    return parser


if __name__ == "__main__":
    main()
