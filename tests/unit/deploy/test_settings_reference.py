"""docs/settings.md says what the code says."""

from deploy.settings_reference import PAGE, page, settings
from shared.core.settings import Settings


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m deploy.settings_reference"


def test_every_setting_has_a_row() -> None:
    names = [setting.name for setting in settings()]
    assert names == [f"DARKROOM_{name.upper()}" for name in Settings.model_fields]


def test_bounds_and_units_are_shown() -> None:
    rows = {setting.name: setting for setting in settings()}
    assert rows["DARKROOM_PRESIGN_TTL"].kind == "duration, ≤ 15 minutes"
    assert rows["DARKROOM_WORKER_THREADS"].kind == "integer, ≥ 2, ≤ 256"
    assert rows["DARKROOM_DATABASE_URL"].default == "**required**"
    assert rows["DARKROOM_LEASE"].section == "The database"
