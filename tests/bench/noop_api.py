"""The baseline of submissions: the same app with one more route, which does nothing."""

from fastapi import FastAPI

from api.app import create_app as create_darkroom


def create_app() -> FastAPI:
    """Darkroom's own app, middleware and all, and `POST /noop`."""
    app = create_darkroom()

    @app.post("/noop", status_code=202)
    async def noop() -> dict[str, str]:
        return {"state": "queued"}

    return app
