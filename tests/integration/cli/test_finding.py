"""Search, history, recommendations, receipts: what was made is found and made again."""

import json
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from darkroom import Client
from tests.integration.cli.conftest import Darkroom

SEEDS = count(1000)
"""An image of its own for each test: files with the same bytes are one to `inspect`."""

pytestmark = pytest.mark.usefixtures("cpu_worker")


@pytest.fixture
def made(darkroom: Darkroom) -> dict[str, Any]:
    """One more image of the session `finds`."""
    done = darkroom(
        *("generate", "a yellow lighthouse", "--seed", str(next(SEEDS))),
        *("--session", "finds", "--json"),
    )
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["files"][0]
    return found


def test_an_image_is_found_by_meaning(darkroom: Darkroom, made: dict[str, Any]) -> None:
    done = darkroom(
        "search", "yellow lighthouse", "--session", "finds", "--seed", str(made["seed"])
    )
    assert done.exit_code == 0, done.stderr
    assert made["image_id"] in [line.split("\t")[1] for line in done.stdout.splitlines()]
    alike = darkroom("search", "--like", made["path"], "--session", "finds", "--json")
    assert alike.exit_code == 0, alike.stderr
    assert all(hit["image"]["session_id"] == "finds" for hit in json.loads(alike.stdout))
    assert darkroom("search").exit_code == 2
    nothing = darkroom("search", "lighthouse", "--since", "2999-01-01")
    assert (nothing.exit_code, nothing.stdout) == (0, "")


def test_starred_images_are_listed_without_a_query(
    darkroom: Darkroom, made: dict[str, Any]
) -> None:
    assert darkroom("star", made["image_id"]).exit_code == 0
    listed = darkroom("search", "--starred", "--session", "finds", "--json")
    assert listed.exit_code == 0, listed.stderr
    newest, *_ = json.loads(listed.stdout)
    assert newest["image"]["id"] == made["image_id"]
    assert newest["score"] is None
    shown = darkroom("search", "--starred", "--session", "finds")
    assert made["image_id"] in shown.stdout


def test_orders_of_a_search(darkroom: Darkroom, made: dict[str, Any]) -> None:
    query = ("search", "a lighthouse", "--session", "finds")
    near = darkroom(*query, "--rank", "similarity", "--diverse", "--json")
    assert near.exit_code == 0, near.stderr
    assert json.loads(near.stdout)
    assert darkroom(*query, "--rank", "best").exit_code != 0
    assert darkroom("search", "--like", made["image_id"], "--rank", "similarity").exit_code == 2


def test_history_lists_sessions_and_their_images(darkroom: Darkroom, made: dict[str, Any]) -> None:
    sessions = [line.split("\t")[0] for line in darkroom("history").stdout.splitlines()]
    assert "finds" in sessions
    newest = darkroom("history", "finds", "-n", "1", "--json")
    assert json.loads(newest.stdout)[0]["id"] == made["image_id"]
    assert darkroom("history", "no-such-session").exit_code == 4
    by_meaning = darkroom("history", "finds", "--query", "lighthouse")
    assert "a yellow lighthouse" in by_meaning.stdout


def test_what_is_deleted_is_gone_and_counted(darkroom: Darkroom, made: dict[str, Any]) -> None:
    image = made["image_id"]
    asked = darkroom("delete", image)
    assert asked.exit_code == 2
    assert "--yes" in asked.stderr
    assert darkroom("delete", "batch_1", "--yes").exit_code == 2
    assert darkroom("delete", "--yes").exit_code == 2
    done = darkroom("delete", image, "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    [said] = json.loads(done.stdout)
    assert (said["id"], said["images"], said["objects"]) == (image, 1, 0)
    assert darkroom("delete", image, "-y").exit_code == 4
    other = darkroom("generate", "a boat", "--session", "to-delete", "--json")
    assert other.exit_code == 0, other.stderr
    gone = darkroom("delete", "--session", "to-delete", "--yes")
    assert gone.stdout.startswith("to-delete\t1 sessions, 1 jobs, 1 images")


@pytest.mark.parametrize("name", [".", ".."])
def test_a_session_of_dots_is_refused_in_plain_words(darkroom: Darkroom, name: str) -> None:
    for arguments in (["history", name], ["delete", "--session", name, "--yes"]):
        done = darkroom(*arguments)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"Error: This is neither an id nor a name: '{name}'")
    done = darkroom("generate", "a boat", "--session", name)
    assert done.exit_code == 5
    assert "--session" in done.stderr
    assert "Traceback" not in done.stderr


def test_prompts_are_recommended(darkroom: Darkroom) -> None:
    done = darkroom("recommend", "a lighth", "-n", "3", "--json")
    assert done.exit_code == 0, done.stderr
    assert 1 <= len(json.loads(done.stdout)) <= 3


@pytest.mark.long
def test_an_image_says_how_it_was_made_and_is_made_again(
    darkroom: Darkroom, made: dict[str, Any]
) -> None:
    told = dict(
        line.split("\t", 1) for line in darkroom("inspect", made["path"]).stdout.splitlines()
    )
    assert (told["prompt"], told["seed"]) == ("a yellow lighthouse", str(made["seed"]))
    assert told["image"] == made["image_id"]
    body = json.dumps(json.loads(darkroom("inspect", made["path"], "--json").stdout)["job"])
    job = darkroom("jobs", "submit", body).stdout.strip()
    assert darkroom("jobs", "watch", job).exit_code == 0
    again = darkroom("reproduce", made["image_id"])
    assert again.exit_code == 0, again.stderr
    assert again.stdout.splitlines()[0] == "verdict\tidentical"


def test_an_image_is_made_larger(darkroom: Darkroom, made: dict[str, Any]) -> None:
    done = darkroom("upscale", made["image_id"], "--scale", "1.5", "--out", "larger", "--json")
    assert done.exit_code == 0, done.stderr
    [larger] = json.loads(done.stdout)["files"]
    with Image.open(made["path"]) as before, Image.open(larger["path"]) as after:
        assert after.size == (before.width * 3 // 2, before.height * 3 // 2)
    refused = darkroom("upscale", made["image_id"], "--strength", "0.5")
    assert refused.exit_code == 5
    assert "--strength" in refused.stderr


def test_a_file_without_a_receipt_is_told_apart(darkroom: Darkroom) -> None:
    Image.new("RGB", (64, 64)).save("plain.png")
    done = darkroom("inspect", "plain.png")
    assert done.exit_code == 5
    assert "receipt_missing" in done.stderr


def test_images_are_starred_and_saved(darkroom: Darkroom, made: dict[str, Any]) -> None:
    image = made["image_id"]
    assert json.loads(darkroom("star", image, "--json").stdout)[0]["starred"] is True
    starred = darkroom("search", "lighthouse", "--starred", "--session", "finds")
    assert image in starred.stdout
    assert json.loads(darkroom("star", image, "--remove", "--json").stdout)[0]["starred"] is False
    saved = darkroom("save", image, "--out", "kept")
    assert saved.stdout.strip() == f"kept/{image}.png"
    assert darkroom("save", "img_none").exit_code == 4


def test_open_prints_where_to_look(
    darkroom: Darkroom, made: dict[str, Any], client: Client
) -> None:
    for what, end in (("docs", "/docs"), ("playground", ":8501")):
        assert darkroom("open", what, "--print").stdout.strip().endswith(end)
    assert made["image_id"] not in darkroom("open", "docs", "--print").stdout
    assert darkroom("open", made["image_id"], "--print").stdout.startswith("http")
    assert darkroom("open", "something").exit_code == 2
    upload = client.uploads.create(client.images.download(made["image_id"]))
    assert darkroom("open", upload.id, "--print").stdout.startswith("http")
    batch = client.batches.submit(["a hat", "a scarf"], defaults={"steps": 2})
    client.batches.wait(batch, 120)
    sheet = darkroom("open", batch.id, "--print").stdout.strip()
    file = Path(unquote(urlsplit(sheet).path))
    with Image.open(file) as image:
        assert image.format == "WEBP"
    file.unlink()
