"""`darkroom generate` and `jobs`, against the running system."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from darkroom import Client
from tests.integration.cli.conftest import HELD, Darkroom, Program
from tests.processes import ApiProcess


def test_pictures_land_in_the_folder_and_their_names_on_stdout(
    darkroom: Darkroom, client: Client, tmp_path: Path
) -> None:
    done = darkroom("generate", "a red circle", "--seed", "7", "--n", "2", "--out", "deep/er")
    assert done.exit_code == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == ["7", "8"]
    for path, seed, image_id in rows:
        with Image.open(tmp_path / path) as picture:
            assert picture.size == (64, 64)
        assert client.images.get(image_id).seed == int(seed)
    assert "job_" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_setting_reaches_the_job(darkroom: Darkroom, tmp_path: Path) -> None:
    Image.new("RGB", (96, 64), "blue").save(tmp_path / "start.png")
    done = darkroom(
        *("generate", "the same at night", "--negative", "people", "--seed", "3", "--steps", "6"),
        *("--width", "96", "--height", "64", "--guidance", "3.5", "--scheduler", "euler"),
        *("--model", "sim", "--init", "start.png", "--strength", "0.5", "--session", "nights"),
        *("--resize", "fit", "--metadata", "team=a", "--format", "webp", "--json"),
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
    }
    assert {name: job[name] for name in asked} == asked
    assert answer["files"][0]["path"].endswith(".webp")
    assert (tmp_path / answer["files"][0]["path"]).read_bytes()[8:12] == b"WEBP"
    # A picture made before can be the beginning of the next.
    image = answer["files"][0]["image_id"]
    again = darkroom("generate", "by day", "--init", image, "--json")
    assert json.loads(again.stdout)["job"]["init_image"] == image


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
    assert (told["model"], told["pictures"]) == ("sim", "2")
    assert darkroom("jobs", "list", "--session", "dry").stdout == ""


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


def test_a_server_that_is_not_there_is_exit_code_8(darkroom: Darkroom) -> None:
    done = darkroom("usage", DARKROOM_URL="http://127.0.0.1:9")
    assert done.exit_code == 8
    assert "darkroom doctor" in done.stderr


def test_a_reader_that_goes_away_is_no_error(environ: dict[str, str]) -> None:
    command = f"{sys.executable} -m darkroom.cli models --json"
    script = f"({command}; echo $? >&2) | {{ exec <&-; }}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.strip() == "141"


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
    failed = darkroom("generate", "a hat", "--session", "nowhere", "--out", "/proc/pictures")
    assert failed.exit_code == 2
    assert "--out /proc/pictures" in failed.stderr
    assert client.jobs.list(session_id="nowhere").take(1) == []


def test_a_picture_that_cannot_be_saved_is_named(
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
