"""The migrated schema is the one in code; going down and up again leaves no trace."""

from deploy.local.servers import EmbeddedServers
from migrations.commands import check, downgrade, upgrade
from shared.settings import Settings


def test_the_migrations_make_exactly_the_tables_in_code(settings: Settings) -> None:
    assert check(settings.database_url.get_secret_value()) is None  # raises where they differ


def test_down_to_nothing_and_up_again(servers: EmbeddedServers) -> None:
    url = servers.postgres.create_database("down_and_up")
    try:
        upgrade(url)
        downgrade("base", url)
        upgrade(url)
        assert check(url) is None
    finally:
        servers.postgres.drop_database("down_and_up")
