"""Settings: what is refused outside the local stack, and what is understood."""

import pytest
from pydantic import ValidationError

from shared.core.settings import Settings

GOOD = {
    "environment": "production",
    "database_url": "postgresql://u:Kf93jd2kQ@db/darkroom",
    "redis_url": "redis://:Kf93jd2kQ@redis:6379/0",
    "s3_access_key": "key",
    "s3_secret_key": "Kf93jd2kQ",
}


def test_the_driver_is_named() -> None:
    url = Settings(**GOOD).database_url.get_secret_value()
    assert url == "postgresql+psycopg://u:Kf93jd2kQ@db/darkroom"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("database_url", "postgresql://u:postgres@db/darkroom"),
        ("database_url", "postgresql://u:@db/darkroom"),
        ("database_url", "mysql://u:Kf93jd2kQ@db/darkroom"),
        ("redis_url", "redis://:changeme@redis:6379/0"),
        ("redis_url", "redis://redis:6379/0"),
        ("redis_url", "redis://user@redis:6379/0"),
        ("s3_secret_key", "minioadmin"),
        ("s3_secret_key", ""),
        ("presign_ttl", "PT16M"),
    ],
)
def test_weak_or_impossible_values_are_refused(field: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(**{**GOOD, field: value})


def test_secrets_do_not_show() -> None:
    assert "Kf93jd2kQ" not in repr(Settings(**GOOD))
