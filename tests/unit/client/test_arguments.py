"""What may be given as a file, and what is refused before anything is sent."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image as Pillow

from darkroom import Client, ImageList
from darkroom.display import open_image, png, progress_bar
from darkroom.encoding import read_file


@pytest.fixture
def sent() -> list[httpx2.Request]:
    """What the client has sent."""
    return []


@pytest.fixture
def client(sent: list[httpx2.Request]) -> Client:
    """A client whose connections end here."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(404, json={"code": "not_found", "title": "There is no such thing"})

    return Client("http://x", "drk_a_b", transport=httpx2.MockTransport(answer))


MISSPELT: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.generate("x", num_image=3), "num_images"),
    (lambda c: c.jobs.submit("x", stpes=3), "steps"),
    (lambda c: c.jobs.dry_run("x", guidance=3), "guidance_scale"),
    (lambda c: c.search("x", sesion_id="s"), "session_id"),
    (lambda c: c.images.similar("img_1", metdata={}), "metadata"),
    (lambda c: c.batches.submit(["x"], default={}), "defaults"),
    (lambda c: c.batches.dry_run(["x"], onerror="skip"), "on_error"),
]


@pytest.mark.parametrize(("call", "meant"), MISSPELT)
def test_a_misspelt_keyword_is_refused_with_what_was_meant(
    call: Callable[[Any], Any], meant: str, client: Client, sent: list[httpx2.Request]
) -> None:
    with pytest.raises(TypeError, match=f"no keyword argument .* Did you mean '{meant}'"):
        call(client)
    assert sent == []


def test_what_only_a_newer_server_knows_can_be_sent(
    client: Client, sent: list[httpx2.Request]
) -> None:
    with pytest.raises(Exception, match="no such thing"):
        client.jobs.submit("x", steps=3, extra_body={"sparkle": True})
    assert b'"sparkle":true' in sent[0].content.replace(b" ", b"")


@pytest.mark.parametrize("text", ["photo.png", "./a/b.JPG", "C:\\photos\\cat.webp", "{file}"])
@pytest.mark.parametrize("method", ["submit", "dry_run"])
def test_a_text_that_looks_like_a_path_is_no_reference(
    text: str, method: str, client: Client, sent: list[httpx2.Request], tmp_path: Path
) -> None:
    (tmp_path / "without-extension").touch()
    path = text.format(file=tmp_path / "without-extension")
    with pytest.raises(TypeError, match=r"looks like a file: give pathlib\.Path"):
        getattr(client.jobs, method)("x", init_image=path)
    with pytest.raises(TypeError, match="looks like a file"):
        getattr(client.jobs, method)("x", references=[{"image": path}])
    with pytest.raises(TypeError, match="looks like a file"):
        client.images.similar(path)
    assert sent == []


@pytest.mark.parametrize(
    "text", ["img_01m8d7f373", "https://example.com/a.png", "data:image/png;base64,AA==", "x\0y"]
)
def test_ids_and_addresses_are_sent_as_they_are(
    text: str, client: Client, sent: list[httpx2.Request]
) -> None:
    with pytest.raises(Exception, match="no such thing"):
        client.jobs.submit("x", init_image=text)
    assert len(sent) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV", "PA"])
def test_an_image_of_pillows_is_sent_as_png(mode: str) -> None:
    image = Pillow.new("RGBA", (8, 6), (200, 30, 20, 120)).convert("L").convert(mode)
    name, data = read_file(image)
    assert name == "image.png"
    with Pillow.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.size) == ("PNG", (8, 6))
        if mode in ("L", "LA", "RGB", "RGBA"):
            assert opened.tobytes() == image.tobytes()


def as_sent(image: Pillow.Image) -> Pillow.Image:
    return Pillow.open(io.BytesIO(read_file(image)[1]))


def test_a_photograph_of_pillows_is_sent_upright() -> None:
    image, packed = Pillow.new("RGB", (40, 20)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(packed, "JPEG", exif=exif)
    upright = as_sent(Pillow.open(packed))
    assert (upright.size, upright.getexif().get(0x0112)) == ((20, 40), None)


@pytest.mark.parametrize("mode", ["I", "F", "I;16B"])
def test_an_image_without_a_white_is_refused(mode: str) -> None:
    with pytest.raises(TypeError, match=f"mode '{mode}' does not say which value is white"):
        read_file(Pillow.new(mode, (8, 6)))


@pytest.mark.parametrize(
    ("mode", "sent_as", "keeps_profile"),
    [
        *(("CMYK", "RGB", False), ("LAB", "RGB", False), ("RGB", "RGB", True)),
        *(("La", "LA", True), ("RGBa", "RGBA", True), ("RGBX", "RGB", True)),
    ],
)
def test_a_profile_goes_with_its_colors(mode: str, sent_as: str, keeps_profile: bool) -> None:
    image = Pillow.new(mode, (8, 6))
    image.info["icc_profile"] = b"profile" * 20
    sent = as_sent(image)
    assert (sent.mode, "icc_profile" in sent.info) == (sent_as, keeps_profile)
    assert "icc_profile" in image.info


def test_with_the_same_key_the_same_files_are_the_same_request(
    client: Client, sent: list[httpx2.Request]
) -> None:
    small, large = Pillow.new("RGB", (8, 6)), b"x" * 6_000_000
    lists: Any = {"references": [{"image": large}], "mask_image": small}
    for _ in range(2):
        with pytest.raises(Exception, match="no such thing"):
            client.jobs.submit("x", idempotency_key="order", init_image=small, **lists)
    assert [request.url.path for request in sent] == ["/v1/jobs", "/v1/jobs"]
    assert sent[0].content == sent[1].content
    assert len(sent[0].content) < 16 * 2**20


def test_files_that_no_body_holds_and_those_without_a_key_are_uploaded(
    client: Client, sent: list[httpx2.Request]
) -> None:
    for key, file in (("order", b"x" * 11_000_001), (None, b"x")):
        with pytest.raises(Exception, match="no such thing"):
            client.jobs.submit("x", idempotency_key=key, init_image=file)
    assert [request.url.path for request in sent] == ["/v1/uploads", "/v1/uploads"]


def test_files_are_read_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    with path.open("rb") as file:
        assert read_file(file) == ("a.bin", b"abc")
    assert read_file(path) == ("a.bin", b"abc")
    assert read_file(io.BytesIO(b"abc")) == read_file(b"abc") == ("file", b"abc")
    assert read_file(("n.csv", b"abc")) == ("n.csv", b"abc")


def test_other_things_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    things: list[tuple[Any, str]] = [
        (str(path), r"not as a str: Path\("),
        ([1, 2], "not as list"),
        (io.StringIO("abc"), 'mode "rb"'),
    ]
    for thing, said in things:
        with pytest.raises(TypeError, match=said):
            read_file(thing)


# --- What notebooks and Pillow get ---


def test_without_pillow_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        open_image(b"")
    assert png("image/webp", lambda: b"RIFF") is None
    assert png("image/png", lambda: b"\x89PNG") == b"\x89PNG"


def test_what_cannot_be_read_is_not_shown() -> None:
    assert png("image/png", lambda: None) is None
    assert png("image/webp", lambda: None) is None
    assert ImageList[Any]()._repr_html_().count("<figure") == 0


def test_outside_of_notebooks_a_bar_is_shown_only_when_asked_for() -> None:
    assert progress_bar(None) is None
    assert progress_bar(wanted=False) is None
    assert progress_bar(wanted=True) is not None
