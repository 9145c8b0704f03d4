"""A line of a batch to its jobs: defaults, expansion, and the same rules as POST /v1/jobs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from api.batches.errors import FileRefused, LineRefused
from api.batches.expansion import Expander
from api.batches.reading import Line
from api.jobs.planning import Plan, plan_job
from api.jobs.schemas import JobSubmission
from api.problems import Problem, from_validation
from api.webhooks.targets import job_webhook
from shared.model_catalog import ModelCatalog
from shared.settings import Settings

MAX_CUSTOM_ID = 64
_MAX_CHARACTERS = 128 * 1024 * 1024
"""Of all texts of a batch's jobs, those of refused lines included. A file has 100 MB at most, but
defaults and alternatives multiply a few bytes to more."""
_CUSTOM_ID_RULE = f"custom_id is a text of 1 to {MAX_CUSTOM_ID} printable characters."


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of a batch, complete but for the picture behind its `init_image`."""

    line: int
    custom_id: str
    plan: Plan
    init_image: str | None
    start_within: float | None
    finish_within: float | None
    webhook: dict[str, Any] | None


class LineChecker:
    """Checks the lines of one batch in order; remembers which names are taken."""

    def __init__(
        self,
        defaults: dict[str, Any],
        *,
        templates: bool,
        catalog: ModelCatalog,
        settings: Settings,
        families: Mapping[str, str],
        webhook: dict[str, Any] | None = None,
    ) -> None:
        """`families` are as in `plan_job`; `webhook` is for the jobs whose lines bring none."""
        self._defaults = defaults
        self._webhook = webhook
        self._expander = Expander(templates=templates)
        self._catalog = catalog
        self._settings = settings
        self._families = families
        self._names: set[str] = set()
        self._characters_left = _MAX_CHARACTERS

    def check(self, line: Line) -> Iterator[PlannedJob]:
        """The jobs of a line, planned as they are asked for; it is accepted when all have come.

        Raises:
            LineRefused: while iterating: it breaks rules. Nothing of it is accepted.
            FileRefused: while iterating: the lines of the batch take too much work.
        """
        if line.fields is None:
            raise line.refusal or LineRefused.because("empty", "The line is empty.")
        fields = self._with_defaults(line.fields)
        name = self._name(line.number, fields.pop("custom_id", None))
        expansion = self._expander.expand(fields)
        names: list[str] = []
        for number, variant in enumerate(expansion.jobs, 1):
            names.append(name if expansion.count == 1 else f"{name}-{number}")
            self._charge(variant)
            yield self._plan(line.number, names[-1], variant)
        self._take(names)
        self._expander.room -= len(names)

    def _with_defaults(self, fields: dict[str, Any]) -> dict[str, Any]:
        if not self._defaults:
            return dict(fields)
        merged = self._defaults | fields
        # A line's own seed or seeds replace the defaults' other way of saying it.
        if "seeds" in fields and "seed" not in fields:
            merged.pop("seed", None)
        elif "seed" in fields and "seeds" not in fields:
            merged.pop("seeds", None)
        return merged

    def _name(self, number: int, custom_id: Any) -> str:
        if custom_id is None:
            return f"line-{number}"
        if (
            not isinstance(custom_id, str)
            or not 1 <= len(custom_id) <= MAX_CUSTOM_ID
            or not custom_id.isprintable()
        ):
            raise LineRefused.because("malformed_custom_id", _CUSTOM_ID_RULE, "/custom_id")
        return custom_id

    def _charge(self, fields: dict[str, Any]) -> None:
        metadata = fields.get("metadata")
        values = [*fields.values(), *(metadata.values() if isinstance(metadata, dict) else ())]
        self._characters_left -= sum(len(value) for value in values if isinstance(value, str))
        if self._characters_left < 0:
            message = f"Its jobs have texts of more than {_MAX_CHARACTERS} characters."
            raise FileRefused("too_large", message)

    def _take(self, names: list[str]) -> None:
        for name in names:
            if name in self._names:
                message = f"Another line has the custom_id {name}."
                raise LineRefused.because("duplicate_custom_id", message, "/custom_id")
        self._names.update(names)

    def _plan(self, number: int, custom_id: str, fields: dict[str, Any]) -> PlannedJob:
        try:
            asked = JobSubmission.model_validate(fields)
        except ValidationError as error:
            problem = from_validation(error.errors(include_url=False, include_input=False))
            raise LineRefused(*problem.errors) from None
        if asked.init_image is not None and not asked.init_image.startswith(("upl_", "img_")):
            message = "In a batch, init_image is the id of an upload or of an image."
            raise LineRefused.because("malformed_init_image", message, "/init_image")
        try:
            plan = plan_job(asked, self._catalog, self._settings, self._families)
            webhook = job_webhook(asked.webhook, self._settings) or self._webhook
        except Problem as problem:
            raise LineRefused(*problem.errors) from None
        return PlannedJob(
            line=number,
            custom_id=custom_id,
            plan=plan,
            init_image=asked.init_image,
            start_within=asked.start_within,
            finish_within=asked.finish_within,
            webhook=webhook,
        )
