"""The judge of the evaluation: a small CNN that tells from an image what the scene is.

It learns from drawn scenes only, of a seed that the model's training never saw, and it is
shown blurred, noisy and recoloured versions of them too. Otherwise it would hold a small
artefact of a generated image for a thing, and its verdicts would say little.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploy.demo_model import state
from deploy.demo_model.text import ATTRIBUTES, attributes
from deploy.demo_model.training_data import scene_and_image

TRAIN_SEED, HELD_OUT_SEED = 11, 12
_SCENES = 6_000
_STEPS = 1_000
_BATCH = 64
_INPUT = 64


class Judge(nn.Module):
    """Scores every class of every attribute, from images in -1 to 1 of any size."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for channels in (24, 48, 96, 128):
            layers += [
                nn.Conv2d(width, channels, 3, stride=2, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            width = channels
        self._trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self._heads = nn.Linear(width * (_INPUT // 16) ** 2, sum(ATTRIBUTES.values()))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [n, 3, height, width] to one score tensor [n, classes] per attribute."""
        small = nn.functional.adaptive_avg_pool2d(images, _INPUT)
        scores: Tensor = self._heads(self._trunk(small))
        return list(torch.split(scores, list(ATTRIBUTES.values()), dim=1))

    @torch.no_grad()
    def verdicts(self, images: Tensor) -> np.ndarray:
        """The likeliest class of each attribute, int64 [n, attributes]."""
        self.eval()
        chunks = [torch.stack([s.argmax(1) for s in self(c)], 1) for c in torch.split(images, 100)]
        verdicts: np.ndarray = torch.cat(chunks).numpy()
        return verdicts


def drawn(count: int, size: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Drawn images [count, 3, size, size] in -1 to 1 and their classes [count, attributes]."""
    scenes, painted = zip(
        *(scene_and_image(index, size, seed=seed) for index in range(count)), strict=True
    )
    pixels = torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, np.array([attributes(scene) for scene in scenes])


def trained(size: int, work: Path) -> Judge:
    """The judge, from `work` or trained now."""
    judge = Judge()
    saved = state.load(work / "judge.pt", torch.device("cpu"))
    if saved is None:
        torch.manual_seed(TRAIN_SEED)
        judge = Judge()
        images, classes = drawn(_SCENES, size, TRAIN_SEED)
        _train(judge, nn.functional.adaptive_avg_pool2d(images, _INPUT), classes)
        state.save(judge.state_dict(), work / "judge.pt")
    else:
        judge.load_state_dict(saved)
    return judge.eval()


def _train(judge: Judge, images: Tensor, classes: np.ndarray) -> None:
    truth = torch.from_numpy(classes)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, _STEPS)
    judge.train()
    for step in range(_STEPS):
        rows = torch.randint(len(images), (_BATCH,))
        scores = judge(_disturbed(images[rows]))
        losses = [
            nn.functional.cross_entropy(score, truth[rows, i]) for i, score in enumerate(scores)
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"judge {(step + 1) / _STEPS:5.0%}  loss {loss.item():.4f}", flush=True)


def _disturbed(images: Tensor) -> Tensor:
    """Half of the batch blurred, all with some noise and a change of contrast and colour."""
    blurred = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    half = torch.rand(len(images), 1, 1, 1) < 0.5
    mixed = torch.where(half, blurred, images)
    gain = 1 + 0.06 * torch.randn(len(images), 3, 1, 1)
    shift = 0.04 * torch.randn(len(images), 3, 1, 1)
    return (mixed * gain + shift + 0.04 * torch.randn_like(mixed)).clamp(-1, 1)
