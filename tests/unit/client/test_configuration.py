"""Where the client finds its address and its key."""

from pathlib import Path

import pytest

from darkroom import Client, ConfigurationError
from darkroom.configuration import find_configuration

KEY = "drk_k3v8e0x9m5q7_verysecret"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder below one without a file, and an environment without variables."""
    monkeypatch.delenv("DARKROOM_URL", raising=False)
    monkeypatch.delenv("DARKROOM_API_KEY", raising=False)
    folder = tmp_path / "project" / "deep" / "inside"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return tmp_path / "project"


def write(project: Path, text: str) -> None:
    (project / ".darkroom").mkdir()
    (project / ".darkroom" / "env").write_text(text)


def test_arguments_go_before_the_environment_and_that_before_the_file(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bare, f"export DARKROOM_URL=http://file:1\nexport DARKROOM_API_KEY='{KEY}'\n")
    assert find_configuration().url == "http://file:1"
    monkeypatch.setenv("DARKROOM_URL", "http://variable:2/")
    found = find_configuration()
    assert (found.url, found.api_key) == ("http://variable:2", KEY)
    assert find_configuration("http://argument:3", "another").api_key == "another"


def test_the_file_is_a_shell_file(bare: Path) -> None:
    write(
        bare, '# made by make run\nDARKROOM_URL=http://a \'broken\nexport DARKROOM_URL="http://b"'
    )
    assert find_configuration(api_key=KEY).url == "http://b"


def test_what_is_missing_is_said(bare: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"DARKROOM_URL.*make run"):
        Client()
    with pytest.raises(ConfigurationError, match="DARKROOM_API_KEY"):
        Client("http://somewhere")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://somewhere", "//somewhere"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http"):
        Client(url, KEY)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Client("http://somewhere", key)
    assert key not in str(refused.value)


def test_the_key_is_never_shown() -> None:
    client = Client("http://somewhere", KEY)
    shown = repr(client) + repr(client.jobs) + repr(find_configuration("http://x", KEY))
    assert "verysecret" not in shown + repr(vars(client)) + repr(vars(client._transport))
