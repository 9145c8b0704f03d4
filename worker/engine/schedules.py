"""Build a row's own scheduler: the one its request names, over the checkpoint's config."""

import copy
import math
from collections import OrderedDict
from typing import Any

from shared.core.errors import InvalidInput
from shared.core.schedulers import SCHEDULERS

_KEPT = 64


class Schedules:
    """Fresh schedulers, quickly: each is a copy of one whose timesteps are already set.

    Timesteps and coefficients stay on the CPU. Schedulers look them up by value and call
    `.item()`; on the device each such look would stop the host until the device is idle.
    """

    def __init__(self, base_config: Any) -> None:
        self._base_config = base_config
        self._templates: OrderedDict[tuple[str, int, float | None], Any] = OrderedDict()

    def make(self, name: str, steps: int, strength: float | None) -> Any:
        """A scheduler with `steps` timesteps set, in its initial state.

        `strength` is given only where the schedule itself depends on it, as in latent consistency
        models.

        Raises:
            InvalidInput: the scheduler does not know how to take that many steps.
        """
        key = (name, steps, strength)
        template = self._templates.get(key)
        if template is None:
            template = self._build(*key)
            self._templates[key] = template
            if len(self._templates) > _KEPT:
                self._templates.popitem(last=False)
        self._templates.move_to_end(key)
        return copy.deepcopy(template)

    def _build(self, name: str, steps: int, strength: float | None) -> Any:
        import diffusers

        choice = SCHEDULERS[name]
        scheduler = getattr(diffusers, choice.class_name).from_config(
            self._base_config, **choice.overrides
        )
        options = {"strength": strength} if strength is not None else {}
        try:
            scheduler.set_timesteps(steps, device="cpu", **options)
        except ValueError as error:
            raise InvalidInput(f"Scheduler {name} cannot take {steps} steps: {error}") from error
        return scheduler


def config_of(scheduler: Any) -> dict[str, Any]:
    """A scheduler's whole config as JSON values."""
    return {
        name: _plain(value) for name, value in scheduler.config.items() if not name.startswith("_")
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity; DPM++ has one in `lambda_min_clipped`
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else str(value)
