"""The ControlNet in the repository: small, in the catalogue, and images follow what it is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from deploy.demo_model.captions import full_prompt
from deploy.demo_model.edges import CONTROLNET, HIGH, LOW
from deploy.demo_model.evaluate import edge_maps, in_common
from deploy.demo_model.judge import HELD_OUT_SEED
from deploy.demo_model.styles import LORAS
from deploy.demo_model.train import CHECKPOINT
from deploy.demo_model.training_data import scene_and_image
from shared.core.model_catalog import load_catalog
from tests.processes import PROJECT
from tests.unit.engine.concurrency import make_alone
from tests.unit.engine.toys import open_backend, request
from worker.engine.device import open_device
from worker.jobs.inputs import edges
from worker.models.controlnets import ControlNetFiles

CATALOGUE = load_catalog(PROJECT / "deploy" / "models.toml")
CONTROL = {"name": "edges", "scale": 1, "start": 0, "end": 1}


def bytes_of(*folders: object) -> int:
    paths = [path for folder in folders for path in PROJECT.joinpath(str(folder)).rglob("*")]
    return sum(path.stat().st_size for path in paths if path.suffix == ".safetensors")


def test_all_that_comes_with_the_model_is_small() -> None:
    assert 0 < bytes_of(CONTROLNET) < 4e6
    assert bytes_of(CONTROLNET, LORAS) < 6e6
    assert bytes_of(CONTROLNET, LORAS, CHECKPOINT) < 30e6


def test_images_follow_the_edges_that_it_is_given() -> None:
    spec = CATALOGUE.default.model_copy(update={"max_batch_size": 1})
    backend = open_backend(spec, open_device("cpu"))
    shares = []
    for index in range(2):
        scene, drawn = scene_and_image(index, 128, seed=HELD_OUT_SEED)
        seen = edges(Image.fromarray(drawn), LOW, HIGH)
        asked = request(
            prompt=full_prompt(scene, np.random.default_rng(0)),
            width=128,
            height=128,
            steps=12,
            guidance_scale=spec.default_guidance_scale,
        )
        controls = ControlNetFiles(CATALOGUE.controlnet).of([CONTROL], [seen])
        maps = [
            edge_maps(torch.from_numpy(made.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
            for made in (
                make_alone(backend, replace(asked, controls=controls)),
                make_alone(backend, asked),
            )
        ]
        given = torch.from_numpy(np.asarray(seen) / 255).permute(2, 0, 1)[None]
        shares.append([float(in_common(each, given)[0]) for each in maps])
    followed, without = np.mean(shares, axis=0)
    assert followed > 0.75
    assert followed > without + 0.1


def test_edges_in_common_are_those_that_lie_together() -> None:
    lines = torch.zeros(4, 3, 32, 32)
    for image, column in enumerate((8, 10, 11)):
        lines[image, :, :, column] = 1
    assert in_common(lines[:1], lines[1:2]) == pytest.approx(1)
    assert in_common(lines[:1], lines[2:3]) == pytest.approx(0)
    assert in_common(lines[:1], lines[:3].amax(0)[None]) == pytest.approx(2 * 2 / 3 / (1 + 2 / 3))
    assert in_common(lines[3:], lines[3:]) == pytest.approx(1), "no edges are all in common"
    assert in_common(lines[3:], lines[:1]) == pytest.approx(0)
