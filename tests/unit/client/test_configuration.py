"""Where the client finds its address and its key."""

import os
from pathlib import Path

import pytest

from darkroom import Client, ConfigurationError
from darkroom.configuration import SavedKeys, find_configuration, masked

KEY = "drk_k3v8e0x9m5q7_verysecret"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder below one without a file, and an environment without variables."""
    monkeypatch.delenv("DARKROOM_URL", raising=False)
    monkeypatch.delenv("DARKROOM_API_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
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
    monkeypatch.setenv("DARKROOM_API_KEY", "drk_variable")
    found = find_configuration()
    assert (found.url, found.api_key) == ("http://variable:2", "drk_variable")
    assert find_configuration("http://argument:3", "another").api_key == "another"


def test_the_file_is_a_shell_file(bare: Path) -> None:
    write(
        bare,
        '# made by make run\nDARKROOM_URL=http://a \'broken\nexport DARKROOM_URL="http://[::1]:2"',
    )
    assert find_configuration(api_key=KEY).url == "http://[::1]:2"


def test_a_key_goes_nowhere_because_a_folder_says_so(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bare, f"DARKROOM_URL=http://elsewhere:3\nDARKROOM_API_KEY={KEY}\n")
    assert find_configuration().url == "http://elsewhere:3", "with the folder's own key"
    with pytest.raises(ConfigurationError, match="not this machine"):
        find_configuration(api_key="drk_mine")
    with pytest.raises(ConfigurationError, match="no API key"):
        find_configuration("http://another:4")
    monkeypatch.setenv("DARKROOM_API_KEY", "drk_mine")
    with pytest.raises(ConfigurationError, match="not this machine"):
        find_configuration()
    monkeypatch.delenv("DARKROOM_API_KEY")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: os.stat_result((0o100644, *[7] * 9)))
    with pytest.raises(ConfigurationError, match="no address"):
        find_configuration()


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


# --- What `darkroom login` has saved ---


def test_a_saved_key_is_found_last_and_only_its_owner_can_read_it(bare: Path) -> None:
    saved = SavedKeys.read().with_key("http://saved:1", KEY)
    assert saved.path.stat().st_mode & 0o777 == 0o600
    assert saved.path.parent.stat().st_mode & 0o777 == 0o700
    found = find_configuration()
    assert (found.url, found.api_key) == ("http://saved:1", KEY)
    assert (found.url_source, found.key_source) == (str(saved.path), str(saved.path))
    write(bare, "DARKROOM_URL=http://file:1\nDARKROOM_API_KEY=drk_file\n")
    assert find_configuration().api_key == "drk_file"
    assert "verysecret" not in repr(saved)


def test_a_saved_key_goes_to_its_own_server_only(bare: Path) -> None:
    SavedKeys.read().with_key("http://one:1", KEY).with_key("http://two:2", "drk_two")
    assert find_configuration("http://one:1/").api_key == KEY
    assert find_configuration().api_key == "drk_two", "the latest login"
    # A folder of someone else's may name a server, but gets no key for it.
    write(bare, "DARKROOM_URL=http://elsewhere:3\n")
    with pytest.raises(ConfigurationError, match="no API key"):
        find_configuration()


def test_the_key_of_a_folder_gives_way_to_one_saved_for_the_server(bare: Path) -> None:
    write(bare, "DARKROOM_URL=http://file:1\nDARKROOM_API_KEY=drk_file\n")
    SavedKeys.read().with_key("http://one:1", KEY)
    assert find_configuration("http://one:1").api_key == KEY
    assert find_configuration("http://file:1").api_key == "drk_file"


def test_a_forgotten_key_is_gone(bare: Path) -> None:
    saved = SavedKeys.read().with_key("http://one:1", KEY).with_key("http://two:2", "drk_two")
    left = saved.without("http://two:2")
    assert (SavedKeys.read(), left.default) == (left, "http://one:1")
    assert left.without("http://one:1").default is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"default": null, "keys": 7}', "\ud800"])
def test_a_damaged_file_is_named(text: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SavedKeys.read().path
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigurationError, match=r"keys\.json cannot be read.*darkroom login"):
        find_configuration()
    monkeypatch.setenv("DARKROOM_URL", "http://variable:2")
    monkeypatch.setenv("DARKROOM_API_KEY", KEY)
    assert find_configuration().url == "http://variable:2", "it is read only where it is needed"


def test_a_masked_key_has_no_secret() -> None:
    assert masked(KEY) == "drk_k3v8e0x9m5q7_…"
    assert masked("drk_onlyone") == "drk_…"
    assert masked("sk-abcdefghijk") == "sk-a…"
