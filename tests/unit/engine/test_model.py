"""What a real model offers beside its images: facts, previews, truncation, refusals."""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.core.errors import InvalidInput
from tests.processes import wait_until
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import request, toy_engine, toy_folder, toy_spec
from worker.engine.diffusion import DiffusionEngine
from worker.engine.interface import Canceled, StepUpdate

LIMIT = 60.0
START = Image.fromarray(np.random.default_rng(2).integers(0, 255, (90, 70, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    opened = toy_engine("sd15", max_batch_size=2)
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
    facts = engine.submit(request(scheduler="euler", batch_size=1)).future.result(LIMIT).facts
    assert facts.scheduler_class == "EulerDiscreteScheduler"
    assert facts.scheduler_config["beta_end"] == 0.012
    json.dumps(facts.scheduler_config, allow_nan=False)
    assert facts.content_hash == engine.model.content_hash
    assert (facts.batch_size, facts.dtype, facts.cuda_version) == (1, "float32", None)
    assert facts.cpu_threads is not None


def test_a_fixed_number_of_rows_gives_the_bits_of_that_number(engine: DiffusionEngine) -> None:
    image_request = request(batch_size=1)
    image = engine.submit(image_request).future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("sd15")).pixels(image_request))


def test_after_a_restart_the_bytes_are_the_same(engine: DiffusionEngine) -> None:
    again = toy_engine("sd15", max_batch_size=2)
    first = engine.submit(request()).future.result(LIMIT)
    second = again.submit(request()).future.result(LIMIT)
    assert np.array_equal(first.pixels, second.pixels)
    again.close()


def test_previews_have_the_size_of_the_latents_and_the_look_of_the_image() -> None:
    engine = toy_engine("sd15")
    engine.warm_up()
    updates: list[StepUpdate] = []
    for _ in range(2):
        engine.submit(request(previews=True), updates.append).future.result(LIMIT)
    wait_until(lambda: updates, LIMIT, "an update")
    engine.close()
    images = [update.preview_webp for update in updates]
    assert all(image is not None and image[8:12] == b"WEBP" for image in images)


def test_previews_know_the_mean_and_the_deviation_of_a_vae_s_latents(tmp_path: Path) -> None:
    """The same image as latents of two models, one of which standardizes them: one preview."""
    from diffusers import AutoencoderKL

    mean, deviation = [-0.24, -0.28, -0.01, 0.33], [0.17, 0.19, 0.15, 0.18]  # about the toy's own
    plain = _with_vae_config(tmp_path / "plain", scaling_factor=6.0)
    standard = _with_vae_config(
        tmp_path / "standard", scaling_factor=1.0, latents_mean=mean, latents_std=deviation
    )
    image = torch.from_numpy(np.array(START.resize((8, 8)).resize((64, 64))))
    vae = AutoencoderKL.from_pretrained(plain / "vae")
    with torch.no_grad():
        latents = vae.encode(image.permute(2, 0, 1)[None] / 127.5 - 1).latent_dist.mode()
    each_mean, each_deviation = torch.tensor([mean, deviation]).view(2, 1, 4, 1, 1)
    shown = _preview(plain, latents * 6.0)
    again = _preview(standard, (latents - each_mean) / each_deviation)
    assert np.abs(again - shown).max() <= 3
    assert shown.std() > 10


def _with_vae_config(folder: Path, **values: Any) -> Path:
    """A copy of toy SDXL whose VAE says this of its latents."""
    shutil.copytree(toy_folder("sdxl"), folder)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    return folder


def _preview(folder: Path, latents: torch.Tensor) -> NDArray[np.int64]:
    """What a model shows of clean latents, (8, 8, 3), in 0 … 255."""
    from worker.engine.batched_backend import BatchedBackend
    from worker.engine.device import open_device
    from worker.engine.families.stable_diffusion import StableDiffusionXL
    from worker.engine.loaded import load
    from worker.engine.row import Prediction

    backend = BatchedBackend(
        load(toy_spec("sdxl", source=str(folder)), open_device("cpu")), StableDiffusionXL
    )
    backend.warm_up()
    image_request = request()
    row, _ = backend.prepare(image_request, backend.shape_of(image_request))
    row.seen = Prediction(latents, torch.zeros_like(latents), timestep=0.0)
    shown = backend.preview(row)
    assert shown is not None
    return shown().astype(np.int64)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "lms"])
def test_the_predicted_latents_end_in_the_final_ones(scheduler: str) -> None:
    from tests.unit.engine.concurrency import make_alone
    from tests.unit.engine.toys import toy_backend
    from worker.engine.previews import predicted_latents

    backend = toy_backend("sd15", 1)
    image_request = request(scheduler=scheduler, previews=True, steps=12)
    made = make_alone(backend, image_request)
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
    image_request = request(scheduler="lcm", steps=steps, strength=strength, init_image=START)
    updates: list[StepUpdate] = []
    image = consistent.submit(image_request, updates.append).future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("lcm")).pixels(image_request))
    wait_until(
        lambda: (steps, steps) in [(update.step, update.steps) for update in list(updates)],
        LIMIT,
        "the update of the last step",
    )
    assert (updates[-1].step, updates[-1].steps) == (steps, steps)


def test_a_strength_that_leaves_a_latent_consistency_model_too_few_timesteps(
    consistent: DiffusionEngine,
) -> None:
    image_request = request(scheduler="lcm", steps=30, strength=0.4, init_image=START)
    with pytest.raises(InvalidInput):
        consistent.submit(image_request).future.result(LIMIT)


@pytest.mark.parametrize(
    "changes", [{"negative_prompt": "blurry"}, {"init_image": START, "strength": 0.5}]
)
def test_another_pipeline_runs_through_its_own_call(
    whole: DiffusionEngine, changes: dict[str, Any]
) -> None:
    image_request = request(scheduler="euler-ancestral", **changes)
    image = whole.submit(image_request).future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("pag")).pixels(image_request))
    assert whole.model.family == "pipeline"


@pytest.fixture(scope="module")
def patched() -> Iterator[DiffusionEngine]:
    """An engine over a pipeline whose sizes are multiples of 16."""
    opened = toy_engine("sd3pag")
    opened.warm_up()
    yield opened
    opened.close()


@pytest.mark.parametrize("changes", [{}, {"init_image": START, "strength": 0.5}])
def test_a_pipeline_makes_the_size_that_was_asked_for(
    patched: DiffusionEngine, changes: dict[str, Any]
) -> None:
    image_request = request(width=96, height=80, **changes)
    image = patched.submit(image_request).future.result(LIMIT)
    assert image.pixels.shape == (80, 96, 3)
    assert patched.model.family == "flow"


def test_flow_matching_rounds_the_steps_that_run_up(patched: DiffusionEngine) -> None:
    image_request = request(width=96, height=80, steps=5, init_image=START, strength=0.5)
    assert patched.submit(image_request).future.result(LIMIT).steps == 3


@pytest.mark.parametrize("changes", [{"width": 72}, {"height": 72}])
def test_a_size_that_a_pipeline_would_round_is_refused(
    patched: DiffusionEngine, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="multiples of 16 pixels"):
        patched.submit(request(**changes))


def test_an_image_of_another_size_is_not_handed_over(
    whole: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that rounds sizes and does not say by what."""
    from diffusers import StableDiffusionPAGPipeline

    call = StableDiffusionPAGPipeline.__call__

    @functools.wraps(call)
    def rounding(pipeline: Any, **arguments: Any) -> Any:
        sides = {side: arguments[side] // 16 * 16 for side in ("width", "height")}
        return call(pipeline, **{**arguments, **sides})

    monkeypatch.setattr(StableDiffusionPAGPipeline, "__call__", rounding)
    with pytest.raises(InvalidInput, match="makes 64x64 of 72x64 pixels"):
        whole.submit(request(width=72)).future.result(LIMIT)
    image = whole.submit(request(width=80)).future.result(LIMIT)
    assert image.pixels.shape == (64, 80, 3)


def test_what_another_pipeline_refuses_by_itself_is_not_tried_again(
    whole: DiffusionEngine,
) -> None:
    """It says so in an error of Python's, which would pass for a fault of the worker."""
    with pytest.raises(InvalidInput, match=r"refuses this: .*1001"):
        whole.submit(request(scheduler="ddim", steps=1001)).future.result(LIMIT)


def test_another_pipeline_can_be_canceled_between_steps(whole: DiffusionEngine) -> None:
    ticks = whole.counters.ticks
    ticket = whole.submit(request(steps=900))
    neighbour = whole.submit(request(seed=3))
    wait_until(lambda: whole.counters.ticks >= ticks + 2, LIMIT, "its second step")
    ticket.cancel()
    assert isinstance(ticket.future.exception(LIMIT), Canceled)
    image = neighbour.future.result(LIMIT)
    assert np.array_equal(image.pixels, reference(toy_folder("pag")).pixels(request(seed=3)))


def test_a_scheduler_without_a_table_of_noise_levels_runs_as_its_own_pipeline_does() -> None:
    """EDM's, as Playground v2.5 has it: no scheduler on offer can take its config over."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

    engine = toy_engine("edm")
    engine.warm_up()
    assert engine.model.family == "pipeline"
    image_request = request(
        negative_prompt="blurry", init_image=START.resize((64, 64)), strength=0.5
    )
    images = [
        engine.submit(each).future.result(LIMIT)
        for each in (request(negative_prompt="blurry"), image_request)
    ]
    engine.close()
    from_text = StableDiffusionXLPipeline.from_pretrained(toy_folder("edm"))
    from_image = StableDiffusionXLImg2ImgPipeline(**from_text.components)
    common = {
        "prompt": image_request.prompt,
        "negative_prompt": "blurry",
        "num_inference_steps": image_request.steps,
        "guidance_scale": image_request.guidance_scale,
    }
    start = {"image": image_request.init_image, "strength": 0.5}
    for image, pipeline, more in (
        (images[0], from_text, {"width": 64, "height": 64}),
        (images[1], from_image, start),
    ):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator("cpu").manual_seed(image_request.seed)
        (expected,) = pipeline(**common, **more, generator=generator).images
        assert np.array_equal(image.pixels, np.asarray(expected))
        assert image.facts.scheduler_class == "EDMEulerScheduler"
        assert "does not fit this model" in image.facts.notes[0]
