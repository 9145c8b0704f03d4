"""The trainer at a tiny size: every stage runs, a killed run goes on, the result is loadable."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
)
from safetensors.torch import load_file

from deploy.demo_model import edges, state, styles, train
from deploy.demo_model import preset as presets
from deploy.demo_model.evaluate import balanced_accuracy, sign_test, ssim, suns
from deploy.demo_model.preset import Preset
from deploy.demo_model.process_group import ProcessGroup
from deploy.demo_model.scenes import Scene, Time, draw
from deploy.demo_model.training_data import scene_and_image


@pytest.fixture(scope="module")
def tiny() -> Preset:
    return replace(
        presets.CPU,
        processes=1,
        image=64,
        scenes=24,
        vae_channels=8,
        vae_blocks=(1, 1, 1, 1),
        text_channels=32,
        text_layers=1,
        text_steps=3,
        text_batch=8,
        unet_channels=(16, 32),
        unet_batch=4,
    )


@pytest.mark.long
def test_training_goes_on_where_it_stopped(tiny: Preset, tmp_path: Path) -> None:
    work, checkpoint = tmp_path / "work", tmp_path / "checkpoint"
    two_seconds, cpu = 2 / 60, torch.device("cpu")

    def train_for(minutes_unet: float, work: Path = work) -> None:
        train.run(
            tiny,
            work=work,
            checkpoint=checkpoint,
            device=cpu,
            minutes_vae=min(two_seconds, minutes_unet),
            minutes_unet=minutes_unet,
            from_nothing=False,
            group=ProcessGroup(),
        )

    train_for(two_seconds)
    first = state.load(work / "unet.pt", cpu)
    drawn_at = (work / "latents.npy").stat().st_mtime_ns
    assert first is not None
    assert first["spent"] >= 2
    train_for(first["spent"] / 60 + two_seconds)  # its last step may have taken seconds
    second = state.load(work / "unet.pt", cpu)

    assert second is not None
    assert second["step"] > first["step"] > 0
    assert second["spent"] >= first["spent"] + 2
    assert (work / "latents.npy").stat().st_mtime_ns == drawn_at
    pipe = AutoPipelineForText2Image.from_pretrained(checkpoint, use_safetensors=True)
    image = pipe("green hills", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (64, 64, 3)

    # A run without state begins with the checkpoint's weights, of all networks.
    weights = {path: load_file(path) for path in checkpoint.rglob("*.safetensors")}
    assert len(weights) == 3
    train_for(0, tmp_path / "elsewhere")
    for path, before in weights.items():
        after = load_file(path)
        assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.long
def test_a_style_is_a_lora_that_changes_the_image(tmp_path: Path) -> None:
    few = replace(presets.CPU, processes=1, scenes=8, unet_batch=2)
    styles.train(
        "ember",
        few,
        work=tmp_path,
        checkpoint=train.CHECKPOINT,
        loras=tmp_path,
        minutes=2 / 60,
        group=ProcessGroup(),
    )
    pipe = AutoPipelineForText2Image.from_pretrained(train.CHECKPOINT, use_safetensors=True)

    def paint() -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        made = pipe("green hills", num_inference_steps=2, generator=generator, output_type="np")
        image: np.ndarray = made.images[0]
        return image

    plain = paint()
    pipe.load_lora_weights(tmp_path, weight_name="ember.safetensors")
    assert not np.allclose(paint(), plain)
    pipe.unload_lora_weights()
    assert np.array_equal(paint(), plain)


@pytest.mark.long
def test_a_controlnet_goes_on_where_it_stopped_and_changes_the_image(tmp_path: Path) -> None:
    few = replace(presets.CPU, processes=1, scenes=8, unet_batch=2)
    net = tmp_path / "net"
    file, spent, step = tmp_path / "edges" / "net.pt", 0.0, 0
    for seconds in (2, 4):
        edges.train(
            few,
            work=tmp_path,
            checkpoint=train.CHECKPOINT,
            controlnet=net,
            minutes=(spent + seconds) / 60,
            group=ProcessGroup(),
        )
        kept = state.load(file, torch.device("cpu"))
        assert kept is not None
        assert kept["spent"] >= spent
        assert kept["step"] > step
        spent, step = kept["spent"], kept["step"] + 1_000  # more than it could make anew
        state.save({**kept, "step": step}, file)

    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        train.CHECKPOINT,
        controlnet=ControlNetModel.from_pretrained(net, use_safetensors=True),
        use_safetensors=True,
    )
    line = torch.zeros(1, 3, 128, 128)
    line[..., 64] = 1

    def paint(scale: float) -> np.ndarray:
        made = pipe(
            "green hills",
            image=line,
            controlnet_conditioning_scale=scale,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(1),
            output_type="np",
        )
        image: np.ndarray = made.images[0]
        return image

    assert not np.allclose(paint(1.0), paint(0.0))


def test_styles_have_their_colors() -> None:
    _, image = scene_and_image(4, 128)
    blue = styles.shaded(image, "moonlight").astype(int)
    assert blue.shape == image.shape
    assert (blue[..., 2] > blue[..., 0]).all()
    assert np.ptp(blue) > 200
    red = styles.shaded(image, "ember")
    assert red[..., 0].mean() > red[..., 1].mean() > red[..., 2].mean()


# --- The evaluation's measures, on cases whose answers are known ---


def test_balanced_accuracy_does_not_reward_always_saying_no() -> None:
    truth = np.array([True] * 5 + [False] * 95)
    assert balanced_accuracy(truth, np.zeros(100, dtype=bool)) == 0.5
    assert balanced_accuracy(truth, truth) == 1.0


def test_sign_test_counts_the_tail() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(1 / 32)
    assert sign_test(4, 1) == pytest.approx(6 / 32)


def test_ssim_is_one_for_equal_images_and_less_for_others() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    noise = 0.3 * torch.randn(image.shape, generator=generator)
    assert torch.allclose(ssim(image, image), torch.ones(2))
    assert (ssim(image, image + noise) < 0.95).all()
    assert (ssim(image, -image) < 0).all()


@pytest.mark.parametrize("time", ["noon", "sunset", "dawn"])
def test_suns_are_counted(time: Time) -> None:
    def pixels(scene: Scene) -> torch.Tensor:
        image = np.asarray(draw(scene, np.random.default_rng(2), 128))
        return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

    one = pixels(Scene(time, "desert", "mountains", sun=True))
    none = pixels(Scene(time, "desert", "mountains"))
    assert suns(none).tolist() == [0]
    assert suns(one).tolist() == [1]
    assert suns(torch.maximum(one, one.flip(-1))).tolist() == [2]
