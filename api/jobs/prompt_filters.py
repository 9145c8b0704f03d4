"""The operator's filters see every prompt before its job is accepted."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from api.context import Resources
from api.core.errors import FieldError, Problem
from api.core.fairness import acting_key
from api.core.principal import Principal
from api.jobs.planning import Plan
from shared.core.errors import FilterUnavailable
from shared.core.filter_process import Prompt
from shared.core.filters import NOTHING, Filters, Finding, Findings
from shared.core.logging import get_logger
from shared.core.settings import Settings

_log = get_logger(__name__)
_SECONDS = 30.0
"""What a prompt may wait for others, and then for the filters to be loaded."""
_TURN_SECONDS = 1.0
"""After which the rest of several prompts stands in line again."""
REFUSALS = ("refused_by_filter", "filter_unavailable")
"""What may be answered where a prompt is submitted."""


class PromptFilters:
    """What an API process needs for them; no thread and no process where none is set."""

    def __init__(self, settings: Settings) -> None:
        self._filters = Filters(settings, "prompt")
        self._threads = ThreadPoolExecutor(2, "filters")
        """One loads them at the start, one asks."""
        if self._filters.may_look:
            self._threads.submit(self._load)

    @property
    def may_look(self) -> bool:
        """Whether there are any, as far as is known."""
        return self._filters.may_look

    async def check(self, resources: Resources, prompts: Sequence[Prompt]) -> list[Findings]:
        """What they have against each.

        Raises:
            Problem: 503, one failed or hung, and nothing may pass unseen; 429, too many wait.
        """
        if not self.may_look:
            return [NOTHING] * len(prompts)
        found: list[Findings] = []
        try:
            while len(found) < len(prompts):
                found += await self._check_some(resources, prompts[len(found) :])
        except FilterUnavailable:
            raise Problem("filter_unavailable") from None
        return found

    def unchecked(self) -> Findings:
        """For a prompt that they did not see.

        Raises:
            FilterUnavailable: nothing may pass unseen.
        """
        return self._filters.unchecked()

    async def _check_some(
        self, resources: Resources, prompts: Sequence[Prompt]
    ) -> Sequence[Findings]:
        turns, key = resources.semaphores.filters, acting_key.get()
        try:
            async with asyncio.timeout(_SECONDS):
                await turns.acquire(key)
        except TimeoutError:
            return [self.unchecked()] * len(prompts)
        return await turns.call(self._threads, key, self._check, prompts)

    def close(self) -> None:
        """End the process and the thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._filters.close()

    def _check(self, prompts: Sequence[Prompt]) -> list[Findings]:
        began = time.monotonic()
        found: list[Findings] = []
        for prompt in prompts:
            found.append(self._filters.check(prompt, lambda: time.monotonic() > began + _SECONDS))
            if time.monotonic() > began + _TURN_SECONDS:
                break
        return found

    def _load(self) -> None:
        try:
            self._filters.start()
        except FilterUnavailable as error:
            _log.error("filters_unavailable", reason=error.message)  # submissions get 503


def prompt_of(plan: Plan, tenant: str) -> Prompt:
    """What filters see of a planned job."""
    return Prompt(plan.prompt, plan.negative_prompt, plan.model, tenant)


async def check_prompt(
    resources: Resources, principal: Principal, model: str, text: str, negative_text: str | None
) -> list[dict[str, str]]:
    """Warnings of a job with this prompt: one for each filter that marks it.

    Raises:
        Problem: 422 `refused_by_filter`, or 503.
    """
    filters = resources.get(PromptFilters)
    if not filters.may_look:
        return []
    prompt = Prompt(text, negative_text, model, str(principal.tenant_id))
    [findings] = await filters.check(resources, [prompt])
    if findings.refusal is not None:
        _log.info("prompt_refused", tenant_id=str(principal.tenant_id), filter=findings.refusal[0])
        raise _refused(findings.refusal)
    return warnings_of(findings)


def warnings_of(findings: Findings) -> list[dict[str, str]]:
    """What a job says of a prompt that was marked."""
    return [{"code": "marked_by_filter", "message": mark.text} for mark in findings.marks]


def _refused(finding: Finding) -> Problem:
    error = FieldError(pointer="/prompt", code=finding.filter, message=finding.reason)
    return Problem("refused_by_filter", finding.reason, errors=[error])
