"""Settings for models that do not fit: the same image, less on the device, said in the receipt."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.core.errors import ModelUnavailable
from tests.unit.engine.toys import long_but, request, scheduler_of, toy_engine, toy_folder, toy_spec
from worker.engine.interface import GeneratedImage, RunFacts
from worker.engine.prompts import PromptCache
from worker.models.cache import estimate_memory

LIMIT = 60.0


@pytest.mark.parametrize(
    "settings",
    [
        {"text_encoder": "offload"},
        {"text_encoder": "cpu"},
        {"offload": "model"},
        {"offload": "group"},
    ],
)
@pytest.mark.parametrize("name", long_but(["sdxl"], ["sdxl", "flux"]))
def test_where_weights_wait_does_not_change_the_image(name: str, settings: dict[str, Any]) -> None:
    plain, image = made(name), made(name, **settings)
    assert np.array_equal(plain.pixels, image.pixels)
    assert settings.items() <= image.facts.speed.items()
    assert not settings.keys() & plain.facts.speed.keys()


@lru_cache
def made(name: str, **settings: Any) -> GeneratedImage:
    """An image by an engine of its own."""
    engine = toy_engine(name, **settings)
    image = engine.submit(request(scheduler=scheduler_of(name))).future.result(LIMIT)
    engine.close()
    return image


def test_an_encoder_comes_for_a_new_text_and_goes_again() -> None:
    engine = toy_engine("sd15", text_encoder="offload")
    encoder: Any = engine._backend._loaded.pipeline.text_encoder  # type: ignore[attr-defined]
    moves: list[str] = []
    encoder.to = lambda device: moves.append(str(device))
    for prompt in ("a fox", "a fox", "a boat"):
        engine.submit(request(prompt=prompt, guidance_scale=1.0)).future.result(LIMIT)
    engine.close()
    assert len(moves) == 2 * 2  # two texts, there and back


def test_quantization_without_its_library_is_refused_in_one_sentence() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        toy_engine("flux", quantization="bitsandbytes-8bit")
    assert "bitsandbytes" in refused.value.message
    assert len(refused.value.message.splitlines()) == 1


@pytest.mark.parametrize("kind", ["torchao-int8", "torchao-float8"])
def test_torchao_gives_what_diffusers_gives(kind: str) -> None:
    """It is no dependency: it prints and registers things whenever transformers is imported."""
    torchao = pytest.importorskip("torchao.quantization")
    from diffusers import DiffusionPipeline, PipelineQuantizationConfig, TorchAoConfig

    each = torchao.Int8WeightOnlyConfig if kind.endswith("int8") else torchao.Float8WeightOnlyConfig
    pipeline = DiffusionPipeline.from_pretrained(
        toy_folder("flux"),
        dtype=torch.bfloat16,
        quantization_config=PipelineQuantizationConfig(
            quant_mapping={"transformer": TorchAoConfig(each())}
        ),
    )
    _assert_equals(pipeline, quantization=kind)


def test_gguf_gives_what_diffusers_gives(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline, FluxTransformer2DModel, GGUFQuantizationConfig

    path = _gguf_of("flux", tmp_path / "toy.gguf")
    transformer = FluxTransformer2DModel.from_single_file(
        str(path),
        config=str(toy_folder("flux")),
        subfolder="transformer",
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        dtype=torch.bfloat16,
    )
    pipeline = DiffusionPipeline.from_pretrained(
        toy_folder("flux"), transformer=transformer, dtype=torch.bfloat16
    )
    facts = _assert_equals(pipeline, gguf=str(path))
    assert facts.speed["gguf"] == "toy.gguf"
    plain = toy_engine("flux")
    assert facts.content_hash != plain.model.content_hash
    plain.close()


def test_a_gguf_file_that_is_none_is_refused_in_one_sentence(tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.gguf", tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    for path in (missing, broken):
        with pytest.raises(ModelUnavailable) as refused:
            toy_engine("flux", gguf=str(path))
        assert len(refused.value.message.splitlines()) == 1


def _gguf_of(name: str, path: Path) -> Path:
    """A toy's transformer, its matrices in 8 bits."""
    import gguf
    from diffusers import FluxTransformer2DModel

    q8 = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(str(path), name)
    model = FluxTransformer2DModel.from_pretrained(toy_folder(name), subfolder="transformer")
    for key, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(key, gguf.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _assert_equals(pipeline: Any, **settings: Any) -> RunFacts:
    """The engine's pixels are those of diffusers' pipeline over the same quantized weights."""
    pipeline.set_progress_bar_config(disable=True)
    asked = request(scheduler="flow-euler", guidance_scale=3.5)
    expected = pipeline(
        asked.prompt,
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(asked.seed),
    ).images[0]
    engine = toy_engine("flux", dtype="bfloat16", **settings)
    image = engine.submit(asked).future.result(LIMIT)
    engine.close()
    assert np.array_equal(image.pixels, np.asarray(expected))
    return image.facts


def test_memory_is_estimated_by_what_will_lie_on_the_device() -> None:
    whole = estimate_memory(toy_spec("flux"))
    without = estimate_memory(toy_spec("flux", text_encoder="offload"))
    largest = estimate_memory(toy_spec("flux", offload="model"))
    assert 0 < largest < whole
    assert 0 < without < whole
    assert estimate_memory(toy_spec("flux", offload="group")) == 0


@pytest.mark.parametrize(
    ("variant", "expected"), [(None, 4 + 8 + 64), ("fp16", 4 + 16 + 32), ("bf16", 4 + 8 + 64)]
)
def test_memory_is_estimated_without_weights_that_are_not_loaded(
    tmp_path: Path, variant: str | None, expected: int
) -> None:
    for name, size in {
        "text_encoder/model.safetensors": 4,  # alone, whatever the variant
        "vae/diffusion_pytorch_model.safetensors": 8,
        "vae/diffusion_pytorch_model.fp16.safetensors": 16,
        "unet/diffusion_pytorch_model-00001-of-00001.safetensors": 64,
        "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors": 32,
        "unet/diffusion_pytorch_model.non_ema.safetensors": 128,
        "safety_checker/model.safetensors": 256,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    spec = toy_spec("sd15", source=str(tmp_path), variant=variant)
    assert estimate_memory(spec) == expected


def test_the_prompt_cache_is_bounded_by_bytes() -> None:
    cache = PromptCache(limit=1000)
    for number in range(5):
        cache.get(number, lambda: {"tokens": torch.zeros(1, 100)})  # 400 bytes
        assert cache.bytes <= 1000
    assert cache.bytes == 800
    calls: list[int] = []
    cache.get(4, lambda: calls.append(1) or {})  # type: ignore[func-returns-value]
    assert not calls
