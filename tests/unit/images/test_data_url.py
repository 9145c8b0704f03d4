"""`data:` URLs: the form, and the bound that comes before decoding."""

import base64

import pytest

from shared.images import ImageNotRecognized, ImageTooLarge, parse_data_url

HEAD = "data:image/png;base64,"


def url(data: bytes, head: str = HEAD) -> str:
    return head + base64.b64encode(data).decode()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 997, 998, 999, 1000])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "PNG"])
def test_bytes_come_through(length: int, kind: str) -> None:
    data = bytes(index % 251 for index in range(length))
    assert parse_data_url(url(data, f"data:image/{kind};base64,"), 1000) == data


@pytest.mark.parametrize("length", [1001, 1002, 1003, 1004, 50_000])
def test_more_than_the_limit_is_refused(length: int) -> None:
    with pytest.raises(ImageTooLarge):
        parse_data_url(url(bytes(length)), 1000)


def test_the_limit_is_seen_before_anything_is_decoded() -> None:
    """Junk that is too long is "too large": nobody looked at it."""
    with pytest.raises(ImageTooLarge):
        parse_data_url(HEAD + "!" * 10_000, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "", "data:", "data:,", "data:image/png,AAAA", "data:image/png;base64", "AAAA",
        "data:image/svg+xml;base64,AAAA", "data:image/gif;base64,AAAA", "data:text/html;base64,AA",
        "data:image/png;charset=utf-8;base64,AAAA", " " + HEAD + "AAAA", HEAD + "AAA",
        HEAD + "AA=A", HEAD + "AA AA", HEAD + "AAAA\n", HEAD + "AA-_", HEAD + "%41%41%41%41",
        HEAD + "ÀÀÀÀ", HEAD + "\ud800AAA", HEAD + "====", HEAD + "A",
        "https://example.com/a.png", "file:///etc/passwd", "data:image/ｐng;base64,AAAA",
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ImageNotRecognized):
        parse_data_url(text, 1000)
