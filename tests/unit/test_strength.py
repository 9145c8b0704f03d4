"""How many steps a strength leaves: what diffusers' own pipelines count."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, StableDiffusionImg2ImgPipeline

from shared.core.families import possible_steps
from shared.core.schedulers import StrengthRule, steps_to_run
from worker.engine.pipeline_backend import rule_of


@pytest.mark.parametrize(
    ("pipeline", "rule"), [(StableDiffusionImg2ImgPipeline, "down"), (FluxImg2ImgPipeline, "up")]
)
def test_steps_are_counted_as_the_pipeline_counts_them(pipeline: type, rule: StrengthRule) -> None:
    assert rule_of(object.__new__(pipeline)) == rule
    for steps in (1, 3, 20, 50, 100):
        for hundredths in range(1, 101):
            strength = hundredths / 100
            scheduler = SimpleNamespace(timesteps=torch.arange(steps), order=1)
            itself = SimpleNamespace(scheduler=scheduler)
            _, run = pipeline.get_timesteps(itself, steps, strength, "cpu")  # type: ignore[attr-defined]
            assert steps_to_run(steps, strength, rule) == run


@pytest.mark.parametrize(
    ("scheduler", "family", "possible"),
    [
        ("euler", "sd", {28}),
        ("lcm", "sdxl", {28}),
        ("lcm", "lcm", {100}),
        ("flow-euler", "flux", {29}),
        ("euler", "flow", {29}),
        ("lcm", "pipeline", {28}),
        ("lcm", "simulated", {100}),
        ("euler", None, {28, 29}),
        ("lcm", None, {28, 29, 100}),
    ],
)
def test_how_many_steps_run_depends_on_the_family(
    scheduler: str, family: str | None, possible: set[int]
) -> None:
    assert possible_steps(100, 0.29, scheduler, family) == possible
    assert possible_steps(100, None, scheduler, family) == {100}
