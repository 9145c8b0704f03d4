"""`darkroom generate` and `jobs`, against the running system."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom import Client
from tests.integration.cli.conftest import HELD, Darkroom, Program
from tests.processes import ApiProcess, slowness

NUMBER = ("--n", "--num-images", "-n")


def test_images_land_in_the_folder_and_their_names_on_stdout(
    darkroom: Darkroom, client: Client, tmp_path: Path
) -> None:
    done = darkroom("generate", "a red circle", "--seed", "7", "--n", "2", "--out", "deep/er")
    assert done.exit_code == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == ["7", "8"]
    for path, seed, image_id in rows:
        with Image.open(tmp_path / path) as image:
            assert image.size == (64, 64)
        assert client.images.get(image_id).seed == int(seed)
    assert "job_" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_number_of_images_has_the_name_of_the_api_too(darkroom: Darkroom) -> None:
    shown = [darkroom("generate", "x", "--dry-run", "--json", name, "3") for name in NUMBER]
    assert [json.loads(each.stdout)["num_images"] for each in shown] == [3, 3, 3]


def test_an_error_is_about_options_and_says_what_was_meant(darkroom: Darkroom) -> None:
    refused = darkroom("generate", "x", "--scheduler", "eular")
    assert "--scheduler" in refused.stderr
    assert "Did you mean euler?" in refused.stderr
    assert "--strength needs --init." in darkroom("generate", "x", "--strength", "0.5").stderr
    misspelt = darkroom("jobs", "submit", '{"prompt": "x", "num_image": 3}')
    assert "/num_image: There is no such field. Did you mean num_images?" in misspelt.stderr


def test_every_setting_reaches_the_job(darkroom: Darkroom, tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), "blue").save(tmp_path / "start.png")
    done = darkroom(
        *("generate", "the same at night", "--negative", "people", "--seed", "3", "--steps", "6"),
        *("--width", "96", "--height", "64", "--guidance", "3.5", "--scheduler", "euler"),
        *("--model", "sim", "--init", "start.png", "--strength", "0.5", "--session", "nights"),
        *("--resize", "fit", "--metadata", "team=a", "--format", "webp", "--quality", "80"),
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    job = answer["job"]
    asked = {
        "kind": "img2img",
        "state": "succeeded",
        "negative_prompt": "people",
        "seeds": [3],
        "steps": 6,
        "width": 96,
        "height": 64,
        "guidance_scale": 3.5,
        "scheduler": "euler",
        "model": "sim",
        "strength": 0.5,
        "resize_mode": "fit",
        "session_id": "nights",
        "metadata": {"team": "a"},
        "output_format": "webp",
        "output_quality": 80,
    }
    assert {name: job[name] for name in asked} == asked
    assert answer["files"][0]["path"].endswith(".webp")
    assert (tmp_path / answer["files"][0]["path"]).read_bytes()[8:12] == b"WEBP"
    # An image made before can be the beginning of the next.
    image = answer["files"][0]["image_id"]
    again = darkroom("generate", "by day", "--init", image, "--json")
    assert json.loads(again.stdout)["job"]["init_image"] == image


def test_masks_and_references_reach_the_job(darkroom: Darkroom, tmp_path: Path) -> None:
    start, mask = Image.new("RGBA", (96, 64), (0, 0, 255, 255)), Image.new("L", (96, 64))
    mask.paste(255, (20, 10, 70, 50))
    mask.save(tmp_path / "mask.png")
    start.convert("RGB").save(tmp_path / "start.png")
    start.putalpha(Image.eval(mask, lambda value: 255 - value))
    start.save(tmp_path / "holed.png")

    def made(*options: str) -> dict[str, Any]:
        done = darkroom("generate", "a lamp", "--steps", "3", "--json", *options)
        assert done.exit_code == 0, done.stderr
        job: dict[str, Any] = json.loads(done.stdout)["job"]
        return job

    options = ("--mask", "mask.png", "--mask-blur", "2", "--mask-crop", "8")
    job = made("--init", "start.png", *options)
    assert (job["kind"], job["mask_blur"], job["padding_mask_crop"]) == ("inpaint", 2, 8)
    again = made("--init", job["init_image"], "--mask", job["mask_image"])
    assert again["mask_image"] == job["mask_image"]
    clear = made("--init", "holed.png", "--mask", "alpha")
    assert (clear["kind"], clear["mask_from_alpha"]) == ("inpaint", True)
    wide = made("--init", "start.png", "--expand", "32,0,0,64")
    assert (wide["width"], wide["height"]) == (128, 128)
    assert wide["expand"] == {"left": 32, "right": 0, "top": 0, "bottom": 64}
    looking = made("--reference", "start.png:0.8", "--reference", job["images"][0]["id"])
    assert [each["scale"] for each in looking["references"]] == [0.8, 0.6]
    assert looking["references"][1]["image"] == job["images"][0]["id"]


def test_what_a_mask_or_a_reference_lacks_is_said_by_its_option(
    darkroom: Darkroom, tmp_path: Path
) -> None:
    Image.new("RGB", (96, 64), "blue").save(tmp_path / "start.png")
    Image.new("L", (96, 64)).save(tmp_path / "black.png")
    for options, said, code in (
        (("--init", "start.png", "--mask", "gone.png"), "--mask gone.png: no such file", 2),
        (("--init", "start.png", "--mask", "black.png"), "--mask", 5),
        (("--mask", "black.png"), "--mask", 5),
        (("--init", "start.png", "--expand", "1,2"), "--expand 1,2: give four numbers", 2),
        (("--reference", "gone.png:0.5"), "--reference gone.png: no such file", 2),
        (("--reference", "start.png:3"), "--reference", 5),
    ):
        done = darkroom("generate", "a lamp", *options)
        assert (done.exit_code, done.stdout) == (code, ""), done.stderr
        assert said in " ".join(done.stderr.split())


def test_controls_are_read_and_uploaded(darkroom: Darkroom, tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), "blue").save(tmp_path / "house.png")
    canny = "name=edges,image=house.png,preprocess=canny,low=20,scale=0.8,start=0.1,end=0.9"
    done = darkroom("generate", "a lake", "--model", "sim", "--control", canny, "--json")
    assert done.exit_code == 0, done.stderr
    (control,) = json.loads(done.stdout)["job"]["controls"]
    assert control.pop("image").startswith("upl_")
    expected = {"scale": 0.8, "start": 0.1, "end": 0.9, "preprocess": "canny", "low": 20}
    assert control == {"name": "edges", "high": 200, **expected}
    for wrong, said, code in (
        ("name=edges", "takes name=NAME,image=FILE", 2),
        ("name=edges,image=house.png,size=2", "takes name=NAME,image=FILE", 2),
        ("name=edges,image=house.png,scale=much", "not a number", 2),
        ("name=edges,image=gone.png", "--control gone.png: no such file", 2),
        ("name=egdes,image=house.png", "--control", 5),
    ):
        done = darkroom("generate", "a lake", "--model", "sim", "--control", wrong)
        assert (done.exit_code, done.stdout) == (code, ""), done.stderr
        assert said in " ".join(done.stderr.split())


def test_a_job_can_be_left_and_found_again(darkroom: Darkroom, tmp_path: Path) -> None:
    left = darkroom("generate", "a lake", "--detach", "--session", "left")
    job = left.stdout.strip()
    assert job.startswith("job_")
    watched = darkroom("jobs", "watch", job, "--out", "here")
    assert watched.exit_code == 0, watched.stderr
    assert (tmp_path / watched.stdout.split("\t")[0]).is_file()
    shown = dict(line.split("\t", 1) for line in darkroom("jobs", "show", job).stdout.splitlines())
    assert shown["state"] == "succeeded"
    assert shown["attempt 1"].startswith("succeeded on ")
    listed = darkroom("jobs", "list", "--session", "left", "--since", "1h", "--json")
    assert [each["id"] for each in json.loads(listed.stdout)] == [job]


def test_a_dry_run_submits_nothing(darkroom: Darkroom) -> None:
    done = darkroom("generate", "a lake", "--n", "2", "--session", "dry", "--dry-run")
    told = dict(line.split("\t") for line in done.stdout.splitlines())
    assert (told["model"], told["images"]) == ("sim", "2")
    assert darkroom("jobs", "list", "--session", "dry").stdout == ""


def test_a_dry_run_says_what_a_second_pass_would_be(darkroom: Darkroom) -> None:
    command = ("generate", "a lake", "--hires", "1.5", "--upscaler", "lanczos", "--dry-run")
    done = darkroom(*command)
    assert done.exit_code == 0, done.stderr
    assert "upscaler lanczos" in done.stdout
    refused = darkroom("generate", "a lake", "--hires", "9", "--dry-run")
    assert refused.exit_code == 5
    assert "--hires: " in refused.stderr


def test_a_dry_run_says_how_the_prompt_would_be_read(darkroom: Darkroom) -> None:
    done = darkroom("generate", "a (red:1.2) lake", "--weighted", "--long-prompt", "--dry-run")
    assert done.exit_code == 0, done.stderr
    facts = [line.split() for line in done.stdout.splitlines()]
    assert ["prompt", "syntax", "weighted"] in facts
    assert ["long", "prompt", "True"] in facts or ["long", "prompt", "yes"] in facts
    refused = darkroom("generate", "a (red lake", "--weighted", "--dry-run")
    assert refused.exit_code == 5
    assert "never closed" in refused.stderr
    plain = darkroom("generate", "a (red lake", "--dry-run")
    assert "syntax" not in plain.stdout


def test_a_dry_run_knows_the_size_that_a_file_gives(darkroom: Darkroom, tmp_path: Path) -> None:
    Image.new("RGB", (256, 128), "blue").save(tmp_path / "wide.png")
    done = darkroom("generate", "a lake", "--init", "wide.png", "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert told["width"] == 2 * told["height"]
    sized = ("--width", "64", "--height", "64", "--resize", "stretch")
    done = darkroom("generate", "a lake", "--init", "wide.png", *sized, "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert (told["width"], told["height"], told["resize_mode"]) == (64, 64, "stretch")


def test_steps_that_a_strength_leaves_out_are_said(darkroom: Darkroom, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "small.png")
    asked = ("generate", "a lake", "--init", "small.png", "--steps", "10", "--strength", "0.5")
    dry = darkroom(*asked, "--dry-run")
    assert "steps\t10, of which 5 run" in dry.stdout.splitlines(), dry.stderr
    job = json.loads(darkroom(*asked, "--json").stdout)["job"]["id"]
    assert "steps\t10, of which 5 run" in darkroom("jobs", "show", job).stdout.splitlines()


def test_a_wait_that_is_over_says_so(darkroom: Darkroom) -> None:
    done = darkroom("generate", "a lake", "--model", HELD, "--timeout", "0", "--json")
    assert done.exit_code == 11
    job = json.loads(done.stderr.splitlines()[-1])["error"]["id"]
    canceled = darkroom("jobs", "cancel", job, "--json")
    assert json.loads(canceled.stdout)[0]["state"] == "canceled"
    watched = darkroom("jobs", "watch", job)
    assert watched.exit_code == 9
    assert f"darkroom jobs retry {job}" in watched.stderr
    retried = darkroom("jobs", "retry", job)
    assert retried.exit_code == 0
    darkroom("jobs", "cancel", job)


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(
    program: Callable[..., Program], client: Client
) -> None:
    running = program("generate", "a lake", "--model", HELD, "--session", "left-alone")
    try:
        running.wait_for(lambda: "queued" in running.stderr, "the job")
        assert running.end(signal.SIGINT) == 130
        (job,) = client.jobs.list(session_id="left-alone")
        assert f"darkroom jobs watch {job.id}" in running.stderr
        assert f"darkroom jobs cancel {job.id}" in running.stderr
        assert "Traceback" not in running.stderr
        assert job.state == "queued"
    finally:
        for left in client.jobs.list(session_id="left-alone", state="queued"):
            client.jobs.cancel(left.id)


def test_what_the_server_refuses_is_said_in_plain_words(darkroom: Darkroom) -> None:
    done = darkroom("generate", "a lake", "--steps", "0")
    assert done.exit_code == 5
    assert "--steps: " in done.stderr
    assert "Request id: " in done.stderr
    assert done.stdout == ""
    told = json.loads(darkroom("generate", "a lake", "--steps", "0", "--json").stderr)
    assert told["error"]["code"] == "validation_failed"


def test_exit_codes_tell_failures_apart(darkroom: Darkroom, api: ApiProcess) -> None:
    assert darkroom("jobs", "show", "job_none").exit_code == 4
    assert darkroom("usage", DARKROOM_API_KEY="drk_wrong_key").exit_code == 3
    assert darkroom("generate", "x", "--init", "no-such-file.png").exit_code == 2
    assert darkroom("generate").exit_code == 2
    assert darkroom("usage", DARKROOM_URL="ftp://nowhere").exit_code == 2
    job = json.loads(darkroom("generate", "a lake", "--json").stdout)["job"]["id"]
    assert darkroom("jobs", "cancel", job).exit_code == 6


def test_a_server_that_is_not_there_is_exit_code_8(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.retries._FIRST_PAUSE", 0.02)
    done = darkroom("usage", DARKROOM_URL="http://127.0.0.1:9")
    assert done.exit_code == 8
    assert "darkroom doctor" in done.stderr


def test_a_reader_that_goes_away_is_no_error(environ: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "darkroom.cli", "models", "--json"],
            env={**os.environ, **environ},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60 * slowness(),
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_job_can_be_submitted_as_json(darkroom: Darkroom) -> None:
    body = json.dumps({"prompt": "a hill", "seed": 11})
    for given, stdin in ((body, None), ("-", body)):
        done = darkroom("jobs", "submit", given, "--json", stdin=stdin)
        assert json.loads(done.stdout)["seeds"] == [11]
    assert darkroom("jobs", "submit", "[1]").exit_code == 2


def test_an_unknown_model_lists_those_there_are(darkroom: Darkroom, client: Client) -> None:
    failed = darkroom("generate", "a hat", "--model", "sdxl")
    assert failed.exit_code == 5
    assert "--model: There is no model 'sdxl'." in failed.stderr
    for model in client.models.list():
        assert model.name in failed.stderr
    assert "Did you mean sim?" in darkroom("generate", "a hat", "--model", "smi").stderr


def test_a_folder_that_takes_no_files_is_found_before_anything_is_made(
    darkroom: Darkroom, client: Client
) -> None:
    # Nobody, root included, can make files in /proc.
    failed = darkroom("generate", "a hat", "--session", "nowhere", "--out", "/proc/images")
    assert failed.exit_code == 2
    assert "--out /proc/images" in failed.stderr
    assert client.jobs.list(session_id="nowhere").take(1) == []


def test_an_image_that_cannot_be_saved_is_named(
    darkroom: Darkroom, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "blocked").write_text("a file where a folder would be")
    job = darkroom("generate", "a hat", "--detach", "--session", "blocked").stdout.strip()
    client.jobs.wait(job)
    failed = darkroom("jobs", "watch", job, "--out", "blocked/here")
    assert failed.exit_code == 2
    (tmp_path / "full").mkdir()
    image = client.jobs.get(job).images[0]
    (tmp_path / "full" / image.file_name).mkdir()  # as a disk that fills up just now
    failed = darkroom("jobs", "watch", job, "--out", "full")
    assert failed.exit_code == 2, failed.stderr
    assert f"darkroom save {image.id} --out DIR" in failed.stderr
