"""`python -m tests.bench.search_million [PROMPTS]`: search among a million prompts.

Takes half an hour or more: most of it goes into embedding the captions, which are kept for the next
run, and into building the index.
"""

# ruff: noqa: T201 - a command line prints
import sys
import time

from sqlalchemy import text

from tests.bench.search_system import fill, index_bytes, measure_latency, measure_recall
from tests.bench.system import running_system


def main(prompts: int) -> int:
    """Print each number as it is known; exit 1 if a row misses its goal."""
    holds = True
    started = time.monotonic()
    with running_system() as system:
        library = fill(system, prompts)
        with library.engine.connect() as connection:
            table = connection.scalar(text("SELECT pg_table_size('prompts')"))
        print(f"embedded and stored in {time.monotonic() - started:.0f} s")
        print(f"index built in {library.build_seconds:.0f} s, {index_bytes(library) / 1e6:.0f} MB")
        print(f"table of prompts {int(table or 0) / 1e6:.0f} MB", flush=True)
        measured = [measure_recall(library)]
        api = system.api()
        system.process(["-m", "worker", "cpu"], "embedding_model_ready")
        measured += measure_latency(library, api)
        for row in measured:
            holds &= row["holds"]
            mark = "holds" if row["holds"] else "MISSED"
            print(f"{row['name']}: {row['value']:g} {row['unit']} ({row['goal']}, {mark})")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
