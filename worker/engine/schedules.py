"""Build a row's own scheduler: the one its request names, over the checkpoint's config."""

import copy
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from shared.core.errors import InvalidInput
from shared.core.schedulers import SCHEDULERS

_KEPT = 64


class Schedules:
    """Fresh schedulers, quickly: each is a copy of one whose timesteps are already set.

    Timesteps stay on the CPU, and coefficients, too. Schedulers look them up by value and call
    `.item()`; on the device each such look would stop the host until the device is idle. Those of
    flow matching find theirs by index, and must have them where the model is (see `on_device`).
    """

    def __init__(self, base_config: Any, device: torch.device) -> None:
        self._device = device
        self.base_config = base_config
        """The checkpoint's own."""
        self._template = lru_cache(_KEPT)(self._build)

    def make(
        self, name: str, steps: int, sigmas: Sequence[float] | None = None, **options: Any
    ) -> Any:
        """A scheduler with `steps` timesteps set, in its initial state.

        Args:
            name: on the wire.
            steps: of the whole schedule.
            sigmas: the schedule's noise levels, where the family gives them itself.
            options: what else `set_timesteps` takes: `mu` of flow matching; `strength` where the
                schedule itself depends on it, as in latent consistency models.

        Raises:
            InvalidInput: the scheduler does not know how to take that many steps.
        """
        levels = None if sigmas is None else tuple(float(sigma) for sigma in sigmas)
        return copy.deepcopy(self._template(name, steps, levels, **options))

    def _build(
        self, name: str, steps: int, sigmas: tuple[float, ...] | None, **options: Any
    ) -> Any:
        import diffusers

        choice = SCHEDULERS[name]
        overrides = dict(choice.overrides)
        if choice.shift is not None:
            overrides[choice.shift] = flow_shift(self.base_config)
        scheduler = getattr(diffusers, choice.class_name).from_config(self.base_config, **overrides)
        try:
            if sigmas is None:
                scheduler.set_timesteps(steps, device="cpu", **options)
            else:
                scheduler.set_timesteps(sigmas=np.array(sigmas), device="cpu", **options)
        except ValueError as error:
            raise InvalidInput(f"Scheduler {name} cannot take {steps} steps: {error}") from error
        if choice.on_device:
            _move_coefficients(scheduler, self._device)
        return scheduler


def _move_coefficients(scheduler: Any, device: torch.device) -> None:
    """To where diffusers has them."""
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.to(device)
    elif hasattr(scheduler, "get_scalings_for_boundary_condition_discrete"):  # LCM: from timesteps
        scalings = scheduler.get_scalings_for_boundary_condition_discrete
        scheduler.get_scalings_for_boundary_condition_discrete = lambda timestep: scalings(
            timestep.to(device)
        )
    else:  # SCM: the timesteps are the coefficients, and found by index
        scheduler.timesteps = scheduler.timesteps.to(device)


def tables_on_host(scheduler: Any) -> dict[str, torch.Tensor]:
    """Its noise levels, by the names of its attributes."""
    names = ("alphas_cumprod", "sigmas", "timesteps")
    found = {name: getattr(scheduler, name, None) for name in names}
    return {name: table.cpu() for name, table in found.items() if isinstance(table, torch.Tensor)}


def flow_shift(config: Any) -> float:
    """The shift of a flow-matching schedule, whichever kind of scheduler says it."""
    return float(config.get("shift", config.get("flow_shift", 1.0)))


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
