"""What a real model offers beside its pictures: facts, previews, truncation, refusals."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.errors import InvalidInput
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import request, toy_engine, toy_folder
from worker.engine import Canceled, StepUpdate
from worker.engine.diffusion import DiffusionEngine

LIMIT = 60.0
START = Image.fromarray(np.random.default_rng(2).integers(0, 255, (90, 70, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    opened = toy_engine("sd15", rows=2)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def whole() -> Iterator[DiffusionEngine]:
    """An engine over a pipeline that it cannot batch."""
    opened = toy_engine("pag")
    opened.warm_up()
    yield opened
    opened.close()


def test_warm_up_makes_every_size_and_fits_the_previews() -> None:
    engine = toy_engine("sd15", warm_sizes=((64, 64), (96, 64)))
    report = engine.warm_up()
    assert report.sizes == ((64, 64), (96, 64))
    assert [(time.width, time.height) for time in report.tick_times] == [(64, 64), (96, 64)]
    assert report.preview_error is not None
    assert report.preview_error < 0.3
    assert engine.busy_seconds == 0.0
    engine.close()


def test_facts_are_enough_for_a_receipt_and_are_json(engine: DiffusionEngine) -> None:
    facts = engine.submit(request(scheduler="euler", rows=1)).future.result(LIMIT).facts
    assert facts.scheduler_class == "EulerDiscreteScheduler"
    assert facts.scheduler_config["beta_end"] == 0.012
    json.dumps(facts.scheduler_config, allow_nan=False)
    assert facts.content_hash == engine.model.content_hash
    assert (facts.rows, facts.dtype, facts.cuda_version) == (1, "float32", None)
    assert facts.cpu_threads is not None


def test_a_fixed_number_of_rows_gives_the_bits_of_that_number(engine: DiffusionEngine) -> None:
    asked = request(rows=1)
    image = engine.submit(asked).future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("sd15")).pixels(asked))


def test_after_a_restart_the_bytes_are_the_same(engine: DiffusionEngine) -> None:
    again = toy_engine("sd15", rows=2)
    first = engine.submit(request()).future.result(LIMIT)
    second = again.submit(request()).future.result(LIMIT)
    assert np.array_equal(first.pixels, second.pixels)
    again.close()


def test_previews_have_the_size_of_the_latents_and_the_look_of_the_picture() -> None:
    engine = toy_engine("sd15")
    engine.warm_up()
    updates: list[StepUpdate] = []
    for _ in range(2):
        engine.submit(request(previews=True), updates.append).future.result(LIMIT)
    engine.close()
    pictures = [update.preview_webp for update in updates]
    assert pictures
    assert all(picture is not None and picture[8:12] == b"WEBP" for picture in pictures)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "lms"])
def test_the_predicted_latents_end_in_the_final_ones(scheduler: str) -> None:
    from tests.unit.engine.crowds import make_alone
    from tests.unit.engine.toys import toy_backend
    from worker.engine.previews import predicted_latents

    backend = toy_backend("sd15", 1)
    asked = request(scheduler=scheduler, previews=True, steps=12)
    made = make_alone(backend, asked)
    alphas = backend._loaded.pipeline.scheduler.alphas_cumprod
    assert made.seen is not None
    predicted = predicted_latents(made.seen, alphas, "epsilon")
    assert (predicted - made.latents).abs().mean() < 0.25 * made.latents.abs().mean()


def test_the_part_that_no_encoder_reads_is_named(engine: DiffusionEngine) -> None:
    assert engine.truncated_part("a fox") is None
    text = "Fox " * 25 + "and the Very End"
    cut = engine.truncated_part(text)
    assert cut is not None
    assert text.endswith(cut)
    assert cut.endswith("the Very End")


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "no-such"},
        {"width": 68},
        {"strength": 0.5},
        {"init_image": START},
        {"init_image": START, "strength": 0.1, "steps": 5},
        {"init_image": START, "strength": 0.4, "steps": 2, "scheduler": "lcm"},
    ],
)
def test_what_the_model_cannot_do_is_refused(
    engine: DiffusionEngine, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput):
        engine.submit(request(**changes))


def test_more_steps_than_a_schedule_has_fail_the_image(engine: DiffusionEngine) -> None:
    with pytest.raises(InvalidInput):
        engine.submit(request(scheduler="lcm", steps=60)).future.result(LIMIT)


@pytest.fixture(scope="module")
def consistent() -> Iterator[DiffusionEngine]:
    """An engine over a latent consistency model."""
    opened = toy_engine("lcm")
    yield opened
    opened.close()


def test_a_latent_consistency_model_takes_no_other_scheduler(consistent: DiffusionEngine) -> None:
    with pytest.raises(InvalidInput):
        consistent.submit(request(scheduler="euler"))


@pytest.mark.parametrize(("steps", "strength"), [(2, 0.4), (4, 0.2), (1, 0.8)])
def test_a_latent_consistency_model_runs_all_steps_at_any_strength(
    consistent: DiffusionEngine, steps: int, strength: float
) -> None:
    asked = request(scheduler="lcm", steps=steps, strength=strength, init_image=START)
    updates: list[StepUpdate] = []
    image = consistent.submit(asked, updates.append).future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("lcm")).pixels(asked))
    assert (updates[-1].step, updates[-1].steps) == (steps, steps)


def test_a_strength_that_leaves_a_latent_consistency_model_too_few_timesteps(
    consistent: DiffusionEngine,
) -> None:
    asked = request(scheduler="lcm", steps=30, strength=0.4, init_image=START)
    with pytest.raises(InvalidInput):
        consistent.submit(asked).future.result(LIMIT)


@pytest.mark.parametrize(
    "changes", [{"negative_prompt": "blurry"}, {"init_image": START, "strength": 0.5}]
)
def test_another_pipeline_runs_through_its_own_call(
    whole: DiffusionEngine, changes: dict[str, Any]
) -> None:
    asked = request(scheduler="euler-ancestral", **changes)
    image = whole.submit(asked).future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("pag")).pixels(asked))
    assert whole.model.family == "pipeline"


def test_another_pipeline_can_be_canceled_between_steps(whole: DiffusionEngine) -> None:
    ticks = whole.counters.ticks
    ticket = whole.submit(request(steps=400))
    neighbour = whole.submit(request(seed=3))
    while whole.counters.ticks < ticks + 2:
        assert not ticket.future.done()
    ticket.cancel()
    assert isinstance(ticket.future.exception(LIMIT), Canceled)
    image = neighbour.future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("pag")).pixels(request(seed=3)))
