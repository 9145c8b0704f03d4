"""Makes the tokenizer and teaches the text encoder what captions say before it meets images.

A caption names a handful of attributes. Reading them out of the caption is a matter of
minutes when it is the task, and of hours when only a denoising loss asks for it; so the
encoder learns that first, and continues, more slowly, beside the UNet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from deploy.demo_model import state
from deploy.demo_model.captions import caption
from deploy.demo_model.preset import SEED, TOKENS, Preset
from deploy.demo_model.scenes import (
    FLOWER_COLOURS,
    HOUSE_COLOURS,
    LANDS,
    RELIEFS,
    TIMES,
    WATERS,
    Scene,
    sample_scene,
)

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_VOCABULARY = 1_000
_CAPTIONS_FOR_TOKENIZER = 20_000

ATTRIBUTES: dict[str, int] = {
    "time": len(TIMES),
    "land": len(LANDS),
    "relief": len(RELIEFS),
    "sun": 2,
    "moon": 2,
    "stars": 2,
    "water": 1 + len(WATERS),
    "flowers": 1 + len(FLOWER_COLOURS),
    "house": 1 + len(HOUSE_COLOURS),
    "trees": 2,
}
"""Number of classes of each attribute; where a thing can be absent, class 0 is its absence."""


def attributes(scene: Scene) -> list[int]:
    """The scene's class in each of ATTRIBUTES, in that order."""

    def optional(value: str | None, options: tuple[str, ...]) -> int:
        return 0 if value is None else 1 + options.index(value)

    return [
        TIMES.index(scene.time),
        LANDS.index(scene.land),
        RELIEFS.index(scene.relief),
        int(scene.sun),
        int(scene.moon),
        int(scene.stars),
        optional(scene.water, WATERS),
        optional(scene.flowers, FLOWER_COLOURS),
        optional(scene.house, HOUSE_COLOURS),
        int(scene.trees),
    ]


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer with a byte-pair vocabulary learnt from captions, saved in `folder`.

    Every byte has a token, so that any prompt can be read, if not understood.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[*alphabet, *(f"{letter}</w>" for letter in alphabet), _BEGIN, _END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(_captions(_CAPTIONS_FOR_TOKENIZER), trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    add_slow_tokenizer_files(learnt, folder)
    tokenizer = CLIPTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def add_slow_tokenizer_files(learnt: dict[str, Any], folder: Path) -> None:
    """vocab.json and merges.txt, which transformers 4 asks for and 5 no longer writes.

    `learnt` is the `model` of a tokenizer.json.
    """
    (folder / "vocab.json").write_text(json.dumps(learnt["vocab"], ensure_ascii=False))
    lines = [f"{left} {right}" for left, right in learnt["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [n, TOKENS], padded and cut as StableDiffusionPipeline does."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def build(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=preset.text_channels,
            intermediate_size=4 * preset.text_channels,
            projection_dim=preset.text_channels,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    preset: Preset,
    tokenizer: CLIPTokenizer,
    start: CLIPTextModel | None,
    work: Path,
    device: torch.device,
) -> CLIPTextModel:
    """Teaches the encoder to tell the scene from its caption, from the mean over all tokens;
    `start` has learnt it."""
    encoder = build(preset, tokenizer).to(device).train()
    if start is not None:
        encoder.load_state_dict(start.state_dict())
        return encoder
    saved = state.load(work / "text.pt", device)
    if saved is not None:
        encoder.load_state_dict(saved["encoder"])
        return encoder
    heads = nn.Linear(preset.text_channels, sum(ATTRIBUTES.values())).to(device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, preset.text_steps)
    for step in range(preset.text_steps):
        scenes, texts = _batch(step, preset.text_batch)
        ids = tokens(tokenizer, texts).to(device)
        truth = torch.tensor([attributes(scene) for scene in scenes], device=device)
        guesses = heads(encoder(ids).last_hidden_state.mean(dim=1)).split(
            list(ATTRIBUTES.values()), dim=1
        )
        losses = [
            nn.functional.cross_entropy(guess, truth[:, i]) for i, guess in enumerate(guesses)
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            right = [
                (guess.argmax(1) == truth[:, i]).float().mean().item()
                for i, guess in enumerate(guesses)
            ]
            named = zip(ATTRIBUTES, right, strict=True)
            print(
                f"text {(step + 1) / preset.text_steps:6.1%}  loss {loss.item():.4f}  "
                + " ".join(f"{name} {share:.2f}" for name, share in named),
                flush=True,
            )
    state.save({"encoder": encoder.state_dict()}, work / "text.pt")
    return encoder


def _batch(step: int, size: int) -> tuple[list[Scene], list[str]]:
    rng = np.random.default_rng([SEED, 2, step])
    scenes = [sample_scene(rng) for _ in range(size)]
    return scenes, [caption(scene, rng) for scene in scenes]


def _captions(count: int) -> list[str]:
    rng = np.random.default_rng([SEED, 3])
    return [caption(sample_scene(rng), rng) for _ in range(count)]
