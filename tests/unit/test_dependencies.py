"""The versions that every installation gets are above those with known holes that concern us.

An audit against a database of advisories needs a network; this holds without one.
"""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

FLOORS = {
    "pillow": ("12.3", "decompression bomb checks bypassed: CVE-2026-40192, -55379, -55380"),
    "torch": ("2.10", "weights_only broken: CVE-2025-32434, CVE-2026-24747"),
    "diffusers": ("0.38", "trust_remote_code bypassed: CVE-2026-44513"),
    "celery": ("5.7", "workers that stop consuming after a reconnect"),
    "kombu": ("5.7", "half-open connections to Redis"),
    "python-multipart": ("0.0.18", "quadratic parsing: CVE-2024-53981"),
    "starlette": ("0.49.1", "quadratic Range header: CVE-2025-62727"),
    "idna": ("3.7", "quadratic encoding: CVE-2024-3651"),
}


def pinned() -> dict[str, Version]:
    """What constraints.txt fixes."""
    versions = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            versions[requirement.name.lower()] = Version(specifier.version)
    return versions


@pytest.mark.parametrize("name", FLOORS)
def test_no_pin_is_below_its_floor(name: str) -> None:
    floor, why = FLOORS[name]
    assert pinned()[name] >= Version(floor), why
