"""The model catalogue: defaults, order, and one clear sentence for each mistake."""

from pathlib import Path

import pytest

from shared.core.model_catalog import CatalogError, load_catalog

PROJECT = Path(__file__).resolve().parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_first_model_is_the_default_and_folders_are_absolute(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    path = write(
        tmp_path,
        '[[model]]\nname = "a"\nsource = "weights"\n\n[[model]]\nname = "b"\nsource = "org/repo"\n',
    )
    catalog = load_catalog(path)
    assert catalog.default.name == "a"
    assert catalog.default.source == str(tmp_path / "weights")
    assert [spec.source for spec in catalog.model if spec.name == "b"] == ["org/repo"]
    assert catalog.get("c") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not toml [", "is not valid TOML"),
        ("", "model: Field required"),
        ('[[model]]\nname = "a"\n', "source: Field required"),
        ('[[model]]\nname = "a"\nsource = "s"\nfast = true\n', "fast: Extra inputs"),
        ('[[model]]\nname = "A b"\nsource = "s"\n', "name: String should match"),
        ('[[model]]\nname = "a"\nsource = "s"\ndefault_width = 100\n', "default_width"),
        ('[[model]]\nname = "a"\nsource = "s"\ndefault_width = 2048\n', "default size is larger"),
        (2 * '[[model]]\nname = "a"\nsource = "s"\n', "two models have the same name"),
    ],
)
def test_a_mistake_is_one_clear_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"models\.toml cannot be read"):
        load_catalog(tmp_path / "models.toml")


def test_the_shipped_catalogue_is_sound() -> None:
    assert load_catalog(PROJECT / "deploy" / "models.toml").default.name == "demo"
