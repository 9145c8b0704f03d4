"""What the embedding model's library may import with it."""

import importlib.util
import sys
from pathlib import Path

import pytest

from worker.search import embedders


@pytest.mark.parametrize("datasets", [True, False])
def test_pandas_is_kept_out_unless_something_cannot_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets: bool
) -> None:
    (tmp_path / "pandas.py").touch()
    (tmp_path / "sentence_transformers.py").write_text(
        "try:\n    import pandas\nexcept ImportError:\n    pandas = None\n"
    )
    if datasets:
        (tmp_path / "datasets.py").touch()
    elif importlib.util.find_spec("datasets"):
        pytest.skip("datasets is installed here")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("sentence_transformers", "pandas"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        assert bool(embedders._import().pandas) is datasets
        importlib.import_module("pandas")  # whoever wants it later gets it
    finally:
        for name in ("sentence_transformers", "pandas"):
            sys.modules.pop(name, None)
