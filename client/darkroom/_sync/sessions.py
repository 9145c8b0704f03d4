# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Sessions with their history, and prompts worth trying."""

from typing import TYPE_CHECKING

from darkroom import wire
from darkroom._sync.pages import Pages
from darkroom._sync.transport import Request, Transport
from darkroom.decoding import decode
from darkroom.errors import UnexpectedAnswer
from darkroom.types.gallery import HistoryImage, Recommendation, Session
from darkroom.types.images import Deleted

if TYPE_CHECKING:
    from darkroom.wire import Identified


class Sessions:
    """`client.sessions`: folders of jobs and their pictures."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, page_size: int | None = None, after: str | None = None) -> Pages[Session]:
        """Sessions, newest first."""
        asked = Request("GET", "/v1/sessions", wire.query({"limit": page_size}))
        return Pages(self._transport, asked, Session, after)

    def get(self, session: "str | Identified") -> Session:
        """How many jobs and pictures it has."""
        return decode(Session, self._transport.json(Request("GET", _path(session))))

    def images(
        self,
        session: "str | Identified",
        q: str | None = None,
        *,
        page_size: int | None = None,
        after: str | None = None,
    ) -> Pages[HistoryImage]:
        """The history: newest first, or with `q` by meaning, best first."""
        asked = Request("GET", f"{_path(session)}/images", wire.query({"q": q, "limit": page_size}))
        return Pages(self._transport, asked, HistoryImage, after)

    def delete(self, session: "str | Identified") -> Deleted:
        """Delete everything in it, for good.

        Raises:
            JobNotFinished: a job of it waits or runs; nothing was deleted.
        """
        return decode(Deleted, self._transport.json(Request("DELETE", _path(session))))


class Prompts:
    """`client.prompts`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def recommend(
        self, q: str | None = None, *, session_id: str | None = None, limit: int | None = None
    ) -> list[Recommendation]:
        """Prompts near to `q`, which may be half typed, or else to what the session made last.

        Args:
            q: the beginning of a prompt, or none.
            session_id: what it has used already is left out.
            limit: 1 to 50; 8 unless told.
        """
        query = wire.query({"q": q, "session_id": session_id, "limit": limit})
        document = self._transport.json(Request("GET", "/v1/prompts/recommendations", query))
        if not isinstance(document, dict) or not isinstance(document.get("data"), list):
            raise UnexpectedAnswer("The recommendations are no list.")
        return [decode(Recommendation, entry) for entry in document["data"]]


def _path(session: "str | Identified") -> str:
    return f"/v1/sessions/{wire.segment(session)}"
