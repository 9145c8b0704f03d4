"""What an installation gets is pinned, and no pin is below the end of a hole that concerns us.

An audit against a database of advisories needs a network; this holds without one. The floors are
those of packages that read what strangers send, or that carry secrets; a package without one had
no such hole known when it was added (typer, rich, OpenTelemetry, structlog, limits among them).
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

INSTALLED = ("darkroom-server[api,mcp,worker,local,dev]", "darkroom-client[cli,playground]")
"""What `make run` and `make test` install."""

FLOORS = {
    "pillow": ("12.3", "decompression bomb checks bypassed: CVE-2026-40192, -55379, -55380"),
    "torch": ("2.10", "weights_only broken: CVE-2025-32434, CVE-2026-24747"),
    "diffusers": ("0.38", "trust_remote_code bypassed: CVE-2026-44513"),
    "transformers": ("4.48", "deserialization of checkpoints: CVE-2024-11392, -11393, -11394"),
    "celery": ("5.7", "workers that stop consuming after a reconnect"),
    "kombu": ("5.7", "half-open connections to Redis"),
    "python-multipart": ("0.0.18", "quadratic parsing: CVE-2024-53981"),
    "starlette": ("0.49.1", "quadratic Range header: CVE-2025-62727"),
    "h11": ("0.16", "malformed chunked bodies accepted: CVE-2025-43859"),
    "idna": ("3.7", "quadratic encoding: CVE-2024-3651"),
    "cryptography": ("44.0.1", "OpenSSL's raw public keys: CVE-2024-12797"),
    "certifi": ("2024.7.4", "a root that was withdrawn: CVE-2024-39689"),
    "urllib3": ("2.6", "compressed answers without bounds: CVE-2025-66418, -66471"),
    "requests": ("2.32.4", "credentials of .netrc leaked: CVE-2024-47081"),
    "protobuf": ("6.31.1", "recursion without bounds: CVE-2025-4565"),
    "jinja2": ("3.1.6", "out of the sandbox: CVE-2025-27516"),
    "streamlit": ("1.37", "path traversal in static files: CVE-2024-42474"),
    "tornado": ("6.5", "multipart bodies that fill the log: CVE-2025-47287"),
    "pyarrow": ("14.0.1", "code in data files: CVE-2023-47248"),
}


def pinned() -> dict[str, Version]:
    """What constraints.txt fixes."""
    versions: dict[str, Version] = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            versions[canonicalize_name(requirement.name)] = Version(specifier.version)
    return versions


def installed() -> dict[str, Version]:
    """Every package that an installation leads to, with the version that is here."""
    found: dict[str, Version] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in INSTALLED]
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        for extra in ("", *asked.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                package = distribution(name)
            except PackageNotFoundError:
                continue  # of another platform, or not installed here
            found[name] = Version(Version(package.version).public)  # 2.13.0+cpu is 2.13.0
            waiting += [
                requirement
                for requirement in map(Requirement, package.requires or ())
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            ]
    return {name: found[name] for name in found if not name.startswith("darkroom")}


@pytest.mark.parametrize("name", FLOORS)
def test_no_pin_is_below_its_floor(name: str) -> None:
    floor, why = FLOORS[name]
    assert pinned()[name] >= Version(floor), why


def test_whatever_is_installed_is_pinned_to_the_version_that_is_here() -> None:
    here, pins = installed(), pinned()
    assert {"fastapi", "torch", "streamlit", "typer", "opentelemetry-sdk"} <= set(here)
    left_out = {"pip", "setuptools"}  # they come with Python's own virtual environments
    wrong = {
        name: (str(version), str(pins.get(name)))
        for name, version in here.items()
        if name not in left_out and pins.get(name) != version
    }
    assert wrong == {}
