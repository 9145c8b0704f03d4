"""The ledger agrees with a model of it, whatever clients, workers and zombies do (short run)."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy.orm import Session, sessionmaker

from tests.chaos.ledger_machine import LedgerMachine


def test_random_histories(ledger: sessionmaker[Session]) -> None:
    histories = 0

    class Machine(LedgerMachine):
        database = ledger

        def teardown(self) -> None:
            nonlocal histories
            histories += 1
            super().teardown()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # Each history asserts after every step that the ledger is as the model expects.
    assert histories >= 25
