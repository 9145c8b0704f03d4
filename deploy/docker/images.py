"""Build the images of deploy/Dockerfile.*: `python -m deploy.docker.images [--save FOLDER]`.

With docker, podman or buildah, whichever answers first. Needs Python 3.11 and no package. A base
image is taken by its digest: all images get the same one, and their labels name it. These variables
change what it does:

    ENGINE         docker, podman or buildah; none: `make release` makes no images
    PYTHON_IMAGE   the base instead of python:…; RCLONE_IMAGE instead of rclone/rclone:…
    PIP_CONF       a pip.conf for a private index, mounted as a secret; CA_PEM a CA that pip trusts
    EXTRA_INDEX    one more index, for PyTorch: the CPU build's, say
    IMAGE_FLAGS    more flags of the engine's `build`
    TAG            instead of the version
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
DOCKERFILES = {
    path.name.partition(".")[2]: path for path in sorted(PROJECT.glob("deploy/Dockerfile.*"))
}
ENGINES = ("docker", "podman", "buildah")
_TRIALS = {
    "api": ("darkroom-server", "migrate", "--help"),
    "backup": ("darkroom-server", "backup", "--help"),
    "playground": ("python", "-m", "darkroom.playground", "--help"),
    "s3": ("rclone", "version"),
    "worker": ("darkroom-server", "worker", "--help"),
}
"""A command of each image that ends by itself."""
_DIGEST = ("images", "--digests", "--format={{.Digest}}")
"""The same for all three."""


class ImagesFailed(Exception):
    """No base image, or a step that went wrong; the message says which."""


class NoEngine(ImagesFailed):
    """Nothing here builds images."""


class NoBase(ImagesFailed):
    """A base image is not available anywhere."""


class Base(NamedTuple):
    """The image that a Dockerfile starts from."""

    argument: str
    """The name of its build argument: ``PYTHON``."""
    name: str


def find_engine(chosen: str | None = None, engines: Sequence[str] = ENGINES) -> str:
    """The chosen engine, or the first that is installed and answers.

    Raises:
        NoEngine: there is none.
    """
    tried = []
    for engine in (chosen,) if chosen else engines:
        if shutil.which(engine) is None:
            tried.append(f"{engine} is not installed")
        elif (asked := _ask(engine, "info")).returncode != 0:
            tried.append(f"{engine}: {asked.stderr.strip().rpartition(chr(10))[2]}")
        else:
            return engine
    raise NoEngine(f"no container engine: {'; '.join(tried)}")


def base_of(dockerfile: Path, variables: Mapping[str, str]) -> Base:
    """Its first `ARG`, or what the variable `…_IMAGE` says."""
    lines = dockerfile.read_text("utf-8").splitlines()
    line = next(line for line in lines if line.startswith("ARG "))
    argument, _, name = line.removeprefix("ARG ").partition("=")
    return Base(argument, variables.get(f"{argument}_IMAGE") or name)


def by_digest(engine: str, name: str) -> str:
    """The image's name with its digest; pulls it if it is not there.

    Raises:
        NoBase: it is not available anywhere.
    """
    if "@sha256:" in name:
        return name
    if not (found := _ask(engine, *_DIGEST, name).stdout.strip()):
        pulled = _ask(engine, "pull", name)
        if pulled.returncode != 0:
            reason = pulled.stderr.strip().rpartition("\n")[2]
            raise NoBase(
                f"{engine} cannot pull {name}; PYTHON_IMAGE or RCLONE_IMAGE name another: {reason}"
            )
        found = _ask(engine, *_DIGEST, name).stdout
    digest = re.search(r"sha256:[0-9a-f]{64}", found)
    repository = re.sub(r":[^:/]+$", "", name)
    return f"{repository}@{digest[0]}" if digest else name


def fetch_bases(engine: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The base of each image, by its digest; pulls what is not here.

    Raises:
        NoBase: one is not available anywhere.
    """
    return {
        image: by_digest(engine, base_of(dockerfile, variables).name)
        for image, dockerfile in DOCKERFILES.items()
    }


def version() -> str:
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def tag_of(image: str, variables: Mapping[str, str]) -> str:
    """The name under which an image is built: ``darkroom-api:0.1.0``."""
    return f"darkroom-{image}:{variables.get('TAG') or version()}"


def build_command(engine: str, image: str, base: str, variables: Mapping[str, str]) -> list[str]:
    """The command that builds one image from the project's folder."""
    dockerfile = DOCKERFILES[image]
    asked = base_of(dockerfile, variables)
    command = [engine, "build", f"--file={dockerfile}", f"--tag={tag_of(image, variables)}"]
    if engine != "docker":
        command.append("--format=docker")  # OCI's has no HEALTHCHECK
    command.append(f"--build-arg={asked.argument}={base}")
    if image == "worker" and variables.get("EXTRA_INDEX"):
        command.append(f"--build-arg=EXTRA_INDEX={variables['EXTRA_INDEX']}")
    for secret, variable in (("pip.conf", "PIP_CONF"), ("ca.pem", "CA_PEM")):
        if variables.get(variable) and asked.argument == "PYTHON":
            command.append(f"--secret=id={secret},src={Path(variables[variable]).resolve()}")
    labels = {"version": version(), "base.name": asked.name, "base.digest": base.partition("@")[2]}
    command += [f"--label=org.opencontainers.image.{key}={labels[key]}" for key in labels]
    return [*command, *shlex.split(variables.get("IMAGE_FLAGS", "")), "."]


def build(engine: str, variables: Mapping[str, str]) -> Iterator[str]:
    """Build them all, or none where a base is missing; gives each one's name.

    Raises:
        ImagesFailed: a base is missing or a step failed.
    """
    for image, base in fetch_bases(engine, variables).items():
        command = build_command(engine, image, base, variables)
        print(f"{tag_of(image, variables)} from {base}", flush=True)
        if subprocess.run(command, cwd=PROJECT, check=False).returncode != 0:
            raise ImagesFailed(f"{engine} could not build {DOCKERFILES[image].name}: see above")
        yield tag_of(image, variables)


def save(engine: str, tag: str, folder: Path) -> Path:
    """Write an image into an archive that `docker load` and `podman load` read.

    Not compressed: podman 4.3 loads no gzip.

    Raises:
        ImagesFailed: the engine cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{tag.replace(':', '-')}.tar"
    archive.unlink(missing_ok=True)  # podman and buildah write into no file that is there
    command = {
        "docker": ["save", f"--output={archive}", tag],
        "podman": ["save", "--quiet", f"--output={archive}", tag],
        "buildah": ["push", "--quiet", tag, f"docker-archive:{archive}:{tag}"],
    }[engine]
    saved = _ask(engine, *command)
    if saved.returncode != 0:
        raise ImagesFailed(f"{engine} cannot save {tag}: {saved.stderr.strip()}")
    return archive


def try_archive(engine: str, archive: Path, tag: str) -> None:
    """Load an archive into an engine that has forgotten the image, and run the image.

    Raises:
        ImagesFailed: it cannot be loaded, or its command does not start.
    """
    command = _TRIALS[tag.partition(":")[0].removeprefix("darkroom-")]
    run = ["run", "--rm", "--network=none", f"--entrypoint={command[0]}", tag, *command[1:]]
    for step in (["rmi", tag], ["load", f"--input={archive}"], run):
        done = _ask(engine, *step)
        if done.returncode != 0:
            raise ImagesFailed(f"{archive.name}: {shlex.join(step)}: {done.stderr.strip()}")


def _ask(engine: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([engine, *arguments], capture_output=True, text=True, check=False)


def main() -> None:
    """Build, and save where asked; or only fetch what images start from."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write archives, and try them")
    parser.add_argument("--fetch", action="store_true", help="fetch the base images, build none")
    options = parser.parse_args()
    folder: Path | None = options.save
    try:
        engine = find_engine(os.environ.get("ENGINE"))
        if options.fetch:
            fetch_bases(engine, os.environ)
            return
        for tag in build(engine, os.environ):
            if folder is not None:
                archive = save(engine, tag, folder)
                if engine != "buildah":  # which runs nothing
                    try_archive(engine, archive, tag)
                print(archive, flush=True)
    except NoEngine as error:
        print(f"No images: {error}", file=sys.stderr)
        sys.exit(os.EX_UNAVAILABLE)
    except ImagesFailed as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
