"""docs/openapi.json is the API's own document."""

from deploy.openapi_document import PAGE, document


def test_the_document_is_not_stale() -> None:
    assert PAGE.read_text("utf-8") == document(), "run python -m deploy.openapi_document"
