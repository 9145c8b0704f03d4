"""Two images of each product in a table, saved under the article's number.

    python product_images.py products.csv --out catalogue

The server turns the columns into prompts. Stop the script and start it again as you like: the same
table is the same batch, and an image that is there is not fetched again.
"""

import argparse
import hashlib
from pathlib import Path

import darkroom

TEMPLATE = "a {colour} {name}, product photo, white background"
COLUMNS = {"sku": ["custom_id", "metadata.sku"]}
DEFAULTS = {"steps": 8, "seeds": [1, 2]}


def main() -> None:
    """Submit the table, then save the images as they come."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("table", type=Path, help="CSV with the columns sku, name and colour")
    parser.add_argument("--out", type=Path, default=Path("catalogue"))
    options = parser.parse_args()
    digest = hashlib.sha256(options.table.read_bytes()).hexdigest()
    with darkroom.Client() as client:
        try:
            batch = client.batches.submit(
                file=options.table,
                template=TEMPLATE,
                columns=COLUMNS,
                defaults=DEFAULTS,
                session_id="catalogue",
                idempotency_key=f"catalogue-{digest}",
            )
        except darkroom.BatchRejected as error:
            for finding in error.errors:
                print(f"{finding.pointer}: {finding.message}")
            raise SystemExit(f"Nothing of {options.table} was queued.") from None
        save(client, batch, options.out)
        done = client.batches.wait(batch)
        print(f"{done.state}: {done.counts.succeeded} of {done.counts.total} products")
        if done.counts.failed:
            client.batches.retry_failed(batch)  # with the same seeds
            raise SystemExit("Some failed and are queued again; run this once more.")


def save(client: darkroom.Client, batch: darkroom.Batch, folder: Path) -> None:
    """Whatever is done already first, then the rest until the batch has ended."""
    for result in client.batches.results(batch):
        if result.error:
            print(f"{result.custom_id}: {result.error.message}")
        for image in result.images:
            target = folder / f"{result.custom_id}_{image.seed}.png"
            if not target.exists():
                print(client.images.save(image, target))


if __name__ == "__main__":
    main()
