"""Write docs/openapi.json: `python -m deploy.openapi_document`.

A running system serves the same document at `/openapi.json`. It is kept in the repository so that a
change of the API shows in its review, and so that clients can be made without a running system.
"""

import json
from pathlib import Path

from api.app import create_app
from shared.core.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "openapi.json"


def document() -> str:
    """The document as it is written; nothing is connected to for it."""
    settings = Settings(
        database_url="postgresql://darkroom:a-long-enough-password@127.0.0.1/none",
        redis_url="redis://:a-long-enough-password@127.0.0.1/0",
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key="access-key-of-nobody",
        s3_secret_key="a-long-enough-secret-key-of-nobody",  # noqa: S106  (opens nothing)
    )
    return json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    PAGE.write_text(document(), "utf-8")
    print(PAGE.relative_to(PROJECT))


if __name__ == "__main__":
    main()
