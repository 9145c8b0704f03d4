"""The API's description as it is served: the OpenAPI document, and two pages that show it.

The pages bring their scripts along, so they work without the internet.
"""

import asyncio
import gzip
import hashlib
import json
from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from api.core.errors import Problem
from api.core.serialization import IfNoneMatch, etag_matches

router = APIRouter(include_in_schema=False)

_CSP = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; worker-src blob:; frame-ancestors 'none'"
)
"""What the two pages may load: their own files, and styles that their scripts write."""

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}
"""Files of the package `fastapi-offline`, with the media types they are sent as."""

_FOLDER = files("fastapi_offline") / "static"

_START = """if (matchMedia("(prefers-color-scheme: dark)").matches) {
  document.documentElement.classList.add("dark-mode");
}
const ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "none",
  tryItOutEnabled: true,
  displayRequestDuration: true,
  requestSnippetsEnabled: true,
  defaultModelsExpandDepth: 0,
  persistAuthorization: false,
  onComplete: () => ui.layoutActions.show(["operations-tag", "jobs"], true),
});
"""
"""Groups are folded, but for the one that people need first."""

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Darkroom: HTTP API</title>
<link rel="icon" href="docs/assets/favicon.png">
"""

_SWAGGER = f"""{_HEAD}<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<style>
.swagger-ui .info {{ margin: 24px 0; }}
.swagger-ui .info li, .swagger-ui .info p {{ line-height: 1.9; }}
.swagger-ui .info li code, .swagger-ui .info p code {{ padding: 1px 5px; }}
.swagger-ui .scheme-container {{ margin: 0 0 12px; padding: 12px 0; box-shadow: none; }}
</style>
</head>
<body>
<div id="page"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/assets/start.js"></script>
</body>
</html>
"""

_REDOC = f"""{_HEAD}<style>body {{ margin: 0; }}</style>
</head>
<body>
<redoc spec-url="openapi.json"></redoc>
<script src="docs/assets/redoc.standalone.js"></script>
</body>
</html>
"""


class DocumentBytes:
    """The OpenAPI document as it is sent: built and packed once, off the event loop."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._page: tuple[bytes, bytes, str] | None = None
        self._making = asyncio.Lock()

    async def get(self) -> tuple[bytes, bytes, str]:
        """The JSON, the same under gzip, and the hash of it."""
        if self._page is None:
            async with self._making:
                if self._page is None:
                    self._page = await asyncio.to_thread(self._make)
        return self._page

    def _make(self) -> tuple[bytes, bytes, str]:
        plain = json.dumps(self._app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()
        return plain, gzip.compress(plain, mtime=0), hashlib.sha256(plain).hexdigest()[:32]


@router.get("/openapi.json")
async def openapi(request: Request, if_none_match: IfNoneMatch = None) -> Response:
    """The same bytes for everybody, so that asking often costs next to nothing."""
    document: DocumentBytes = request.app.state.document
    plain, packed, digest = await document.get()
    wants_gzip = "gzip" in request.headers.get("accept-encoding", "").lower()
    # Two encodings are two representations, each with a tag of its own (RFC 9110, 8.8.3).
    headers = {
        "ETag": f'"{digest}-gzip"' if wants_gzip else f'"{digest}"',
        "Vary": "Accept-Encoding",
        "Cache-Control": "public, no-cache",
    }
    if if_none_match is not None and etag_matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if wants_gzip:
        headers["Content-Encoding"] = "gzip"
    return Response(packed if wants_gzip else plain, 200, headers, "application/json")


@router.get("/docs")
async def swagger() -> Response:
    """Swagger UI: read the API, and try it with a key."""
    return _page(_SWAGGER)


@router.get("/redoc")
async def redoc() -> Response:
    """Redoc: read the API."""
    return _page(_REDOC)


@router.get("/docs/assets/{name}")
async def asset(name: str) -> Response:
    """A script or style of the pages."""
    headers = {"Cache-Control": "public, max-age=3600"}
    if name == "start.js":
        return Response(_START, 200, headers, "text/javascript")
    if name not in _ASSETS:
        raise Problem("not_found", "There is nothing at this path.")
    return FileResponse(str(_FOLDER / name), headers=headers, media_type=_ASSETS[name])


def _page(html: str) -> Response:
    return HTMLResponse(html, headers={"Content-Security-Policy": _CSP})
