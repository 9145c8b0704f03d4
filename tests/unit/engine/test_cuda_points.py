"""What matters on CUDA, as far as it shows through the device's door on a CPU."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.engine.concurrency import make_alone
from tests.unit.engine.families import TOYS
from tests.unit.engine.reference import reference
from tests.unit.engine.test_one_row import START
from tests.unit.engine.toys import long_but, request, toy_backend, toy_engine, toy_folder
from worker.engine.batch import TickBatch
from worker.engine.device import Device, open_device, start_download
from worker.engine.diffusion import DiffusionEngine
from worker.engine.network import NetworkOverBuffers
from worker.engine.schedules import Schedules

LIMIT = 60.0


@pytest.mark.parametrize(
    ("message", "memory", "fatal"),
    [
        ("GET was unable to find an engine to execute this computation", True, False),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True, False),
        ("cuDNN error: CUDNN_STATUS_BAD_PARAM", False, False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False, False),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False, True),
        ("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling", False, True),
        ("CUDA error: an illegal memory access was encountered", False, True),
    ],
)
def test_an_error_is_of_memory_of_one_call_or_of_the_device(
    message: str, memory: bool, fatal: bool
) -> None:
    device, error = open_device("cpu"), RuntimeError(message)
    assert (device.is_out_of_memory(error), device.is_fatal(error)) == (memory, fatal)


def test_coefficients_of_flow_matching_lie_where_the_model_is() -> None:
    """As in diffusers, where CUDA rounds them to half precision; others stay on the host."""
    config = toy_backend("sd3", 1)._family.schedules.base_config
    flow = Schedules(config, torch.device("meta")).make("flow-euler", 4)
    assert (flow.sigmas.device.type, flow.timesteps.device.type) == ("meta", "cpu")
    config = toy_backend("sd15", 1)._family.schedules.base_config
    assert Schedules(config, torch.device("meta")).make("euler", 4).sigmas.device.type == "cpu"


def test_coefficients_that_come_from_timesteps_lie_where_the_model_is() -> None:
    """LCM's c_skip and c_out, and all of SCM's; what is looked up by value stays on the host."""
    config = toy_backend("lcm", 1)._family.schedules.base_config
    lcm = Schedules(config, torch.device("meta")).make("lcm", 4)
    scalings = lcm.get_scalings_for_boundary_condition_discrete(lcm.timesteps[0])
    assert {scaling.device.type for scaling in scalings} == {"meta"}
    assert lcm.timesteps.device.type == "cpu"
    config = toy_backend("sprint", 1)._family.schedules.base_config
    scm = Schedules(config, torch.device("meta")).make("scm", 4, intermediate_timesteps=None)
    assert scm.timesteps.device.type == "meta"


def test_batch_sizes_are_chosen_and_proven_in_the_mode_that_will_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that says it is no CPU, so that there is a choice, and notes how it was run.

    Only guided shapes are warmed: images without guidance run eagerly, and so does their proof.
    """
    seen: dict[float, set[str]] = {5.0: set(), 1.0: set()}

    class Other(Device):
        @property
        def allocated_bytes(self) -> int | None:
            return 0

    made = NetworkOverBuffers.__init__

    def noted(self: NetworkOverBuffers, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        seen[5.0 if len(self.halves) == 2 else 1.0].add(given[3])

    monkeypatch.setattr(NetworkOverBuffers, "__init__", noted)
    monkeypatch.setattr("worker.engine.warm_up._CANDIDATES", (1, 2))
    engine = DiffusionEngine(_unpinned(), Other(torch.device("cpu")))
    engine.load()
    engine.warm_up()
    proven = {scale: set(modes) for scale, modes in seen.items()}
    for scale in seen:
        engine.submit(request(guidance_scale=scale)).future.result(LIMIT)
    engine.close()
    assert seen == proven == {5.0: {"graphs"}, 1.0: {"off"}}


def _unpinned() -> Any:
    from tests.unit.engine.toys import toy_spec

    return toy_spec("sd15", max_batch_size=None, compile="graphs")


def test_an_image_in_another_layout_does_not_compile_in_a_live_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The latents of an initial image may come channels-last, which no warm-up has seen."""
    backend = toy_backend("sd15", 1)
    image_request = request()
    shape = backend.shape_of(image_request)
    row, _ = backend.prepare(image_request, shape)
    modes: list[str] = []
    made = NetworkOverBuffers.__init__

    def noted(self: NetworkOverBuffers, *given: Any, **named: Any) -> None:
        modes.append(given[3])
        eagerly: list[Any] = [*given[:3], "off"]
        made(self, *eagerly, **named)

    monkeypatch.setattr(NetworkOverBuffers, "__init__", noted)
    batch = TickBatch(shape, backend._family, "inductor")
    with torch.no_grad():
        batch.tick([row])
        row.latents = row.latents.to(memory_format=torch.channels_last)
        batch.tick([row])
    assert modes == ["inductor", "off"]
    assert row.compiled == "off"


def test_predictions_outlive_the_tick_after_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph writes each output over the last one, and schedulers keep some of them."""
    eagerly, memory = NetworkOverBuffers.run_eagerly, dict[Any, torch.Tensor]()

    def over_the_last(self: NetworkOverBuffers, size: int) -> torch.Tensor:
        made = eagerly(self, size)
        return memory.setdefault((self, size), torch.empty_like(made)).copy_(made)

    monkeypatch.setattr(NetworkOverBuffers, "run_eagerly", over_the_last)
    image_request = request(guidance_scale=1.0, scheduler="pndm", steps=6)
    made = make_alone(toy_backend("sd15", 1), image_request)
    assert torch.equal(made.latents, reference(toy_folder("sd15")).latents(image_request))
    assert memory


def test_pixels_that_are_handed_out_are_not_the_device_s_memory() -> None:
    """What is downloaded is page-locked on CUDA; a caller may keep its image for hours."""
    kept: list[torch.Tensor] = []

    class Noting(Device):
        def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
            kept.append(super().to_host(tensor))
            return kept[-1]

    downloaded = start_download(torch.zeros(1, 3, 8, 8), Noting(torch.device("cpu")))
    pixels = downloaded().pixels
    assert not np.shares_memory(pixels, kept[0].numpy())


@pytest.mark.parametrize(
    ("name", "from_image"),
    long_but(
        [("sd3", False), ("sd3", True), ("flux", False), ("qwen", False)],
        [
            (name, from_image)
            for name, toy in TOYS.items()
            for from_image in ((False, True) if toy.from_images else (False,))
        ],
    ),
)
def test_half_precision_equals_diffusers_at_one_row(name: str, from_image: bool) -> None:
    """In bfloat16 as it is computed on a CPU: casts happen where diffusers has them."""
    toy = TOYS[name]
    start = {"init_image": START, "strength": 0.7} if from_image else {}
    image_request = request(guidance_scale=toy.guidance, scheduler=toy.schedulers[0], **start)
    generated = make_alone(toy_backend(name, 1, dtype="bfloat16", **toy.spec), image_request)
    expected = reference(toy_folder(name), torch.bfloat16)
    latents = expected.latents(image_request, toy.arguments(image_request))
    assert torch.equal(generated.latents, latents)


def test_a_network_that_cannot_be_captured_runs_eagerly_and_the_receipt_says_so() -> None:
    engine = toy_engine("zimage", compile="inductor")
    engine.warm_up()
    image_request = request(scheduler="flow-euler", guidance_scale=4.0)
    assert engine.submit(image_request).future.result(LIMIT).facts.speed["compile"] == "off"
    engine.close()
