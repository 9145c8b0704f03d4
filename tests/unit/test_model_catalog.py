"""The model catalogue: defaults, order, and one clear sentence for each mistake."""

from pathlib import Path

import pytest

from api.app import create_app
from shared.core import model_catalog
from shared.core.model_catalog import CatalogError, ModelSpec, families_of, load_catalog
from shared.core.settings import Settings
from tests import earlier_version

MODEL = '[[model]]\nname = "a"\nsource = "s"\n'
PROJECT = Path(__file__).resolve().parents[2]
NET = '[[controlnet]]\nname = "n"\nsource = "s"\nfamily = "sd"\n'


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
        (MODEL + 'aliases = ["x"]\n' + MODEL.replace('"a"', '"x"'), "aliases must be unique"),
        (MODEL + 'aliases = ["x", "x"]\n', "model names and aliases must be unique"),
        (MODEL + "quality_steps = { max = 200 }\n", "quality_steps.max is larger than max_steps"),
        (
            MODEL + '[[lora]]\nname = "l"\nsource = "s"\nfamily = "sd9"\n',
            "family must be one of sd",
        ),
        (MODEL + 2 * '[[lora]]\nname = "l"\nsource = "s"\nfamily = "sd"\n', "two LoRAs have"),
        (MODEL + NET.replace("sd", "lcm"), "family must be one of sd, sdxl, sd3, flux"),
        (MODEL + 2 * NET, "two ControlNets have"),
    ],
)
def test_a_mistake_is_one_clear_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CatalogError) as caught:
        load_catalog(write(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_old_key_stops_the_start_and_names_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_catalog, "RENAMED_KEYS", {"fast": "compile"})
    path = write(tmp_path, '[[model]]\nname = "a"\nsource = "s"\nfast = true\n')
    with pytest.raises(CatalogError, match=r"model\.0\.fast: it is now called compile\."):
        load_catalog(path)


def test_renamed_keys_name_keys() -> None:
    known = set(ModelSpec.model_fields)
    assert set(model_catalog.RENAMED_KEYS.values()) <= known
    assert not set(model_catalog.RENAMED_KEYS) & known


def test_families_are_read_from_checkpoints_that_are_here(tmp_path: Path) -> None:
    sources = {"a": "xl", "b": "org/repo", "c": "broken", "d": "other", "e": "simulated:tick=1"}
    for name, text in {
        "xl": '{"_class_name": "StableDiffusionXLPipeline"}',
        "broken": "[",
        "other": '{"_class_name": "KandinskyPipeline"}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(text, "utf-8")
    tables = (f'[[model]]\nname = "{n}"\nsource = "{s}"\n' for n, s in sources.items())
    catalog = load_catalog(write(tmp_path, "\n".join(tables)))
    assert families_of(catalog) == {"a": "sdxl", "e": "simulated"}
    shipped = load_catalog(PROJECT / "deploy" / "models.toml")
    assert families_of(shipped) == {"demo": "sd"}


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"models\.toml cannot be read"):
        load_catalog(tmp_path / "models.toml")


def test_the_shipped_catalogue_is_sound() -> None:
    assert load_catalog(PROJECT / "deploy" / "models.toml").default.name == "demo"


def test_a_catalogue_of_an_earlier_version_is_told_what_its_keys_are_called_now() -> None:
    with pytest.raises(CatalogError, match="rows: it is now called max_batch_size"):
        load_catalog(earlier_version.MODELS)


def test_the_api_stops_at_such_a_catalogue_with_a_sentence() -> None:
    settings = Settings(
        database_url="postgresql://darkroom:a-long-enough-password@127.0.0.1/none",
        redis_url="redis://:a-long-enough-password@127.0.0.1/0",
        models_file=earlier_version.MODELS,
    )
    with pytest.raises(SystemExit, match=r"darkroom api: .* now called max_batch_size"):
        create_app(settings)
