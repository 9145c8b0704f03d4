"""What "Make it elsewhere" copies makes the same job."""

import shlex
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import darkroom
from darkroom.cli.app import app
from darkroom.playground import submission
from darkroom.playground.snippets import as_command
from tests.images import encode
from tests.processes import ApiProcess

MASKED: dict[str, Any] = {"init_image": "PICTURE", "mask_image": "PICTURE"}
HIRES = {"scale": 1.5, "strength": 0.5, "steps": 7, "upscaler": "lanczos"}
CANNY = {"preprocess": "canny", "low": 50, "high": 150, "start": 0.25}


@pytest.mark.parametrize(
    "fields",
    [
        {"negative_prompt": "-rain", "num_images": 2, "guidance_scale": 3.5, "steps": 3},
        {"prompt": "-1 degrees", "prompt_syntax": "weighted", "long_prompt": True},
        {"output_format": "webp", "output_quality": 80, "true_cfg_scale": 2},
        {"hires": HIRES},
        {"references": [{"image": "PICTURE", "scale": 0.5}, {"image": "PICTURE"}]},
        {"controls": [{"name": "edges", "image": "PICTURE", **CANNY}]},
        {**MASKED, "masked_content": "fill", "mask_blur": 2, "padding_mask_crop": 8},
        {**MASKED, "strength": 0.5, "width": 128, "height": 64, "resize_mode": "fit"},
        {"init_image": "PICTURE", "mask_from_alpha": True},
        {"init_image": "PICTURE", "expand": {"left": 64, "top": 8}, "width": 192, "height": 128},
    ],
    ids="-".join,
)
def test_a_command_submits_the_same_job(
    client: darkroom.Client, api: ApiProcess, fields: dict[str, Any]
) -> None:
    given = _with_picture(fields, client)
    first = client.jobs.submit(given.pop("prompt", "a hat"), model="held", seed=5, **given)
    settings = submission.settings_of(client.jobs.get(first.id))
    del settings["seeds"]
    command = shlex.split(as_command(settings | {"seed": 5}))
    done = CliRunner().invoke(
        app,
        [*command[1:2], "--detach", *command[2:]],
        env={"DARKROOM_URL": api.url, "DARKROOM_API_KEY": api.key},
    )
    assert done.exit_code == 0, done.output
    second = client.jobs.get(done.stdout.strip())
    assert submission.settings_of(second) == {**settings, "seeds": list(second.seeds)}
    for job in (first.id, second.id):
        client.jobs.cancel(job)


def test_a_command_says_what_it_cannot() -> None:
    masked = {"prompt": "a hat", "mask_image": "upl_1", "init_image": "upl_2"}
    first, second, command = as_command(
        {**masked, "mask_from_alpha": True, "preserve_unmasked": False}
    ).splitlines()
    assert first == "# The command line has no option for preserve_unmasked."
    assert second == "# The command line has no option for mask_from_alpha."
    assert command == "darkroom generate 'a hat' --mask upl_1 --init upl_2"


def _with_picture(value: Any, client: darkroom.Client) -> Any:
    if value == "PICTURE":
        picture = Image.new("RGBA", (64, 64), "white")
        picture.paste((255, 255, 255, 0), (0, 0, 32, 64))
        return client.uploads.create(encode(picture)).id
    if isinstance(value, list):
        return [_with_picture(each, client) for each in value]
    if isinstance(value, dict):
        return {name: _with_picture(each, client) for name, each in value.items()}
    return value
