"""Where the packages lie: inside `darkroom_server` in a wheel, at the root in a checkout.

The rest of the build is in pyproject.toml; this part depends on what is built.
"""

import sys

from setuptools import find_namespace_packages, setup

PARTS = ("api", "deploy", "migrations", "shared", "worker")
DATA = {
    "api": ["core/*.toml"],
    "migrations": ["*.mako"],
    "deploy": [
        "models.toml",
        "demo_model/checkpoint/**",
        "demo_model/controlnets/**",
        "demo_model/first-image.png",
        "demo_model/loras/*",
        "grafana/**",
        "prometheus/*",
    ],
}

# `pip install -e .` leaves a checkout as it is, for tests, type checks and `python -m`.
inside = "" if "editable_wheel" in sys.argv else "darkroom_server."
packages = find_namespace_packages(include=[each for part in PARTS for each in (part, f"{part}.*")])
setup(
    packages=["darkroom_server", *(inside + package for package in packages)],
    package_dir={inside + part: part for part in PARTS} if inside else {},
    package_data={inside + part: files for part, files in DATA.items()},
)
