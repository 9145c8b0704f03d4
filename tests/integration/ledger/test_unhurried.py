"""Building an index takes minutes where there are many rows, and everything else milliseconds."""

from sqlalchemy import text

from shared.core.database import open_engine, unhurried
from shared.core.settings import Settings


def test_only_the_unhurried_have_no_limit_on_a_statement(settings: Settings) -> None:
    engine = open_engine(settings, pool_size=1)
    limit = text("SHOW statement_timeout")
    try:
        with unhurried(engine) as connection:
            assert connection.scalar(limit) == "0"
        with engine.connect() as connection:
            assert connection.scalar(limit) == "30s"
    finally:
        engine.dispose()
