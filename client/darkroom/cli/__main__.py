"""`python -m darkroom.cli` is `darkroom`."""

from darkroom.cli.main import run

run()
