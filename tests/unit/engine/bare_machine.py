"""`python -m tests.unit.engine.bare_machine NAMES`: import the GPU benchmark where nobody has
modules of these names, whatever this process has imported before."""

import importlib
import importlib.abc
import sys
from typing import Any

_OURS = ("tests", "worker", "shared", "deploy", "api", "darkroom", "migrations")


class _Nobody(importlib.abc.MetaPathFinder):
    """Has no module of these names."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(self, name: str, *_: Any) -> None:
        """Refuse theirs, and leave all others to the other finders."""
        if name.partition(".")[0] in self._names:
            raise ImportError(f"{name} is not needed on a GPU machine")


def main(names: set[str]) -> None:
    """Forget what is to be imported anew, or not at all, and import the benchmark."""
    for name in list(sys.modules):
        if name.partition(".")[0] in {*names, *_OURS}:
            del sys.modules[name]
    sys.meta_path.insert(0, _Nobody(names))
    for module in ("__main__", "plan"):
        importlib.import_module(f"tests.bench.gpu.{module}")


if __name__ == "__main__":
    main(set(sys.argv[1:]))
