"""What the API refuses because of a model's family, as workers announce it."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.errors import Problem
from api.jobs.options import Expand
from api.jobs.planning import Plan, plan_job
from api.jobs.sizes import OpenSize
from api.jobs.submission import JobSubmission
from shared.core.model_catalog import ControlNetSpec, ModelCatalog, ModelSpec
from shared.core.settings import Settings

SETTINGS = Settings.model_construct(max_images_per_job=16)
NETS = tuple(
    ControlNetSpec(name=family, source="x", family=family)
    for family in ("sd", "sdxl", "sd3", "flux")
)
IMAGE = "img_00000000000000000000000000"


def planned(family: str | None, catalogue: dict[str, Any] | None = None, **asked: Any) -> Plan:
    spec = ModelSpec(**{"name": "m", "source": "m", "scheduler": "flow-euler", **(catalogue or {})})
    families = {} if family is None else {"m": family}
    submission = JobSubmission.model_validate({"prompt": "a fox", **asked})
    return plan_job(submission, ModelCatalog(model=(spec,), controlnet=NETS), SETTINGS, families)


@pytest.mark.parametrize(
    ("family", "asked", "pointer", "code", "said"),
    [
        ("flux", {"width": 520}, "/width", "size_not_supported", "multiples of 16"),
        ("sana", {"height": 528}, "/height", "size_not_supported", "multiples of 32"),
        (
            "flux",
            {"scheduler": "euler"},
            "/scheduler",
            "scheduler_not_supported",
            "runs with flow-euler",
        ),
        (
            "sd3",
            {"scheduler": "ddim"},
            "/scheduler",
            "scheduler_not_supported",
            "flow-euler, flow-heun",
        ),
        (
            "flux",
            {"negative_prompt": "blurry"},
            "/negative_prompt",
            "negative_prompt_not_supported",
            "does not support negative prompts",
        ),
        (
            "sd3",
            {"true_cfg_scale": 4.0},
            "/true_cfg_scale",
            "true_cfg_scale_not_supported",
            "does not support true_cfg_scale",
        ),
        (
            "flux",
            {"prompt_syntax": "weighted"},
            "/prompt_syntax",
            "prompt_syntax_not_supported",
            "does not support prompt weights",
        ),
        (
            "sd3",
            {"long_prompt": True},
            "/long_prompt",
            "long_prompt_not_supported",
            "does not support long prompts",
        ),
        (
            "pipeline",
            {"long_prompt": True},
            "/long_prompt",
            "long_prompt_not_supported",
            "does not support long prompts",
        ),
    ],
)
def test_what_a_family_cannot_do_is_refused_at_its_field(
    family: str, asked: dict[str, Any], pointer: str, code: str, said: str
) -> None:
    with pytest.raises(Problem) as refused:
        planned(family, **asked)
    (error,) = refused.value.errors or []
    assert (error.pointer, error.code) == (pointer, code)
    assert said in error.message
    planned(None, **asked)  # nobody has said which family it is: the worker will


def test_sd3_takes_weights() -> None:
    assert planned("sd3", prompt="a (fox:1.2)", prompt_syntax="weighted").options


@pytest.mark.parametrize("family", ["sd", "sdxl", "lcm", "simulated"])
def test_weights_and_long_prompts_are_for_models_that_read_clip(family: str) -> None:
    options = {"prompt_syntax": "weighted", "long_prompt": True}
    catalogue = {"scheduler": "lcm"}
    assert planned(family, catalogue, prompt="a (fox:1.2) BREAK b", **options).options == options


def controlled(family: str | None, *names: str, **asked: Any) -> Plan:
    catalogue = {"scheduler": "flow-euler" if family in ("sd3", "flux") else "ddim"}
    controls = [{"name": name, "image": IMAGE} for name in names]
    return planned(family, catalogue, controls=controls, **asked)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "simulated", None])
def test_controlnets_are_for_families_whose_pipelines_have_them(family: str | None) -> None:
    name = family if family in ("sd", "sdxl", "sd3", "flux") else "sd"
    assert len(controlled(family, name, name).options["controls"]) == 2
    plain, half = controlled(family), controlled(family, name)
    assert half.cost == pytest.approx(1.4 * plain.cost)
    if family != "sd3":
        assert controlled(family, name, init_image=IMAGE).kind == "img2img"
        assert controlled(family, name, hires={"scale": 2}).options["hires"]


@pytest.mark.parametrize(
    ("family", "names", "asked", "pointer", "code"),
    [
        ("lcm", ("sd",), {}, "/controls", "controls_not_supported"),
        ("pipeline", ("sd",), {}, "/controls", "controls_not_supported"),
        ("flux2", ("flux",), {}, "/controls", "controls_not_supported"),
        ("sd3", ("sd3",), {"init_image": IMAGE}, "/controls", "controls_with_init_image"),
        ("sd3", ("sd3",), {"hires": {"scale": 2}}, "/controls", "controls_with_hires"),
        ("sdxl", ("sdxl", "sd"), {}, "/controls/1/name", "controlnet_not_supported"),
        ("sd", ("sx",), {}, "/controls/0/name", "unknown_controlnet"),
        (None, ("sx",), {}, "/controls/0/name", "unknown_controlnet"),
    ],
)
def test_controlnets_that_a_model_cannot_take_are_refused(
    family: str | None, names: tuple[str, ...], asked: dict[str, Any], pointer: str, code: str
) -> None:
    with pytest.raises(Problem) as refused:
        controlled(family, *names, scheduler=None, **asked)
    found = [(error.pointer, error.code) for error in refused.value.errors or []]
    assert (pointer, code) in found


def test_true_guidance_takes_a_negative_prompt() -> None:
    catalogue = {"true_guidance_scale": 4.0}
    assert planned("flux", catalogue, negative_prompt="blurry").negative_prompt == "blurry"
    plan = planned("flux", negative_prompt="blurry", true_cfg_scale=3.0)
    assert plan.columns()["true_cfg_scale"] == 3.0


def test_a_size_that_an_image_decides_is_one_of_the_family_s() -> None:
    sides = planned("sd3", {"size_multiple": 8}, init_image=IMAGE).starting_from((1000, 700))
    assert (sides.width % 16, sides.height % 16) == (0, 0)


@pytest.mark.parametrize(("family", "steps"), [("sd", 2), ("sd3", 3), ("z-image", 3)])
def test_a_strength_leaves_as_many_steps_as_the_family_s_pipeline_runs(
    family: str, steps: int
) -> None:
    scheduler: dict[str, Any] = {"scheduler": "ddim"} if family == "sd" else {}
    plan = planned(family, steps=5, strength=0.5, init_image=IMAGE, **scheduler)
    assert plan.steps_to_run == steps
    assert plan.executed_steps == steps


def test_where_the_family_is_not_known_the_most_steps_count() -> None:
    plan = planned(None, steps=1, strength=0.5, init_image=IMAGE)
    assert (plan.steps_to_run, plan.executed_steps) == (1, None)
    assert planned(None, steps=4, strength=0.5, init_image=IMAGE).executed_steps == 2


# --- The size that follows an initial image: its shape, within the model's limits ---


SD = ModelSpec(name="sd", source="a/b", revision="c")
DEMO = ModelSpec(
    name="demo", source="a/b", default_width=128, default_height=128, max_width=256, max_height=256
)


@pytest.mark.parametrize(
    ("spec", "image", "size"),
    [
        (DEMO, (256, 128), (192, 96)),
        (DEMO, (128, 256), (96, 192)),
        (DEMO, (96, 96), (128, 128)),
        (SD, (512, 512), (512, 512)),
        (SD, (4096, 3072), (576, 432)),
        (SD, (3072, 4096), (432, 576)),
        (SD, (1920, 1080), (688, 384)),
    ],
)
def test_the_shape_stays(spec: ModelSpec, image: tuple[int, int], size: tuple[int, int]) -> None:
    assert OpenSize(spec, None, None).for_image(*image) == size


def test_the_other_side_follows_the_one_that_is_given() -> None:
    assert OpenSize(SD, 640, None).for_image(1000, 500) == (640, 320)
    assert OpenSize(SD, None, 640).for_image(500, 1000) == (320, 640)
    assert OpenSize(SD, None, 1024).for_image(500, 100) == (1024, 1024)
    assert OpenSize(SD, 64, None).for_image(4096, 64) == (64, 64)


@pytest.mark.parametrize(
    ("width", "height", "expand", "image"),
    [
        (512, None, {"bottom": 4096}, (512, 512)),  # the height would be 1024 and the rest -3072
        (None, 512, {"right": 4096}, (512, 512)),
        (512, None, {"bottom": 512}, (512, 640)),  # 1152 high
        (512, None, {"bottom": 100}, (4096, 64)),  # 8 pixels are left
        (None, None, {"right": 64}, (1, 64)),  # rounded to 64, none is left
        (None, None, {"right": 1024}, (64, 64)),
    ],
)
def test_an_expanded_image_has_room(
    width: int | None, height: int | None, expand: dict[str, int], image: tuple[int, int]
) -> None:
    with pytest.raises(Problem) as refused:
        OpenSize(SD, width, height, Expand(**expand)).for_image(*image)
    assert refused.value.errors[0].code == "expand_over_limit"


def test_an_image_is_expanded_within_the_limits() -> None:
    borders = Expand(left=32, bottom=512)
    assert OpenSize(SD, 544, None, borders).for_image(64, 64) == (544, 1024)
    assert OpenSize(SD, None, 1024, borders).for_image(64, 64) == (544, 1024)
    assert OpenSize(SD, None, None, borders).for_image(64, 64) == (96, 576)


SIDES = st.integers(64, 4096)
MULTIPLES = st.sampled_from([8, 16, 32, 64])


@given(SIDES, SIDES, st.integers(8, 64), st.integers(8, 64), MULTIPLES)
def test_every_size_is_one_that_the_model_makes(
    width: int, height: int, widest: int, highest: int, multiple: int
) -> None:
    spec = ModelSpec(
        name="any",
        source="a/b",
        default_width=min(64, widest) * 8,
        default_height=64,
        max_width=widest * 8,
        max_height=highest * 8,
        size_multiple=multiple,
    )
    made = OpenSize(spec, None, None).for_image(width, height)
    for side, most in zip(made, (spec.max_width, spec.max_height), strict=True):
        assert 64 <= side <= most
        assert side % 8 == 0


@given(SIDES, SIDES)
def test_shapes_that_the_limits_allow_stay_within_a_few_percent(width: int, height: int) -> None:
    made = OpenSize(SD, None, None).for_image(width, height)
    if abs(math.log(width / height)) < math.log(3):
        assert abs(math.log(made[0] / made[1] / (width / height))) < 0.03
        assert 0.75 < made[0] * made[1] / 512**2 < 1.35
