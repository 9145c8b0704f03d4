"""ControlNets: networks that see an image and add to what the blocks of a model's own compute.

A net is called over a whole batch, as the model's network is, whichever of its rows have it. What
it makes is multiplied by each row's own scale, and is nothing for rows without it. Adding nothing
changes no bit, so rows with this net, with others and with none share a batch.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from shared.core.errors import ControlNetUnavailable
from worker.engine.checkpoint import first_line
from worker.engine.interface import Control
from worker.engine.weights_cache import WeightsCache, file_fault, refuse_without_memory

Residuals = Sequence[torch.Tensor | None]
"""What is added to a network's blocks, one by one; None: nothing to that one."""


@dataclass(eq=False)
class ControlNet:
    """A loaded net."""

    network: Any

    @cached_property
    def bytes(self) -> int:
        """Of its weights."""
        weights = [*self.network.parameters(), *self.network.buffers()]
        return sum(weight.numel() * weight.element_size() for weight in weights)

    def upcast(self) -> "ControlNet":
        """A copy in float32."""
        return ControlNet(copy.deepcopy(self.network).float())


@dataclass(frozen=True)
class RowControl:
    """What a net does for one row."""

    net: ControlNet
    condition: torch.Tensor
    """(halves of a call, …): the image as the net takes it."""
    scales: tuple[float, ...]
    """For each of the row's ticks."""


def scales_of(control: Control, ticks: int) -> tuple[float, ...]:
    """The scale in each tick, 0 outside its part of the schedule, as in diffusers' pipelines."""
    return tuple(
        control.scale
        * (1.0 - float(tick / ticks < control.start or (tick + 1) / ticks > control.end))
        for tick in range(ticks)
    )


_Member = tuple[Any, Sequence[int], RowControl]
"""A row, its elements of the batch, and what a net does for it."""


def residuals_of(
    family: Any, inputs: Any, rows: Sequence[tuple[Any, Sequence[int]]], elements: int
) -> Residuals | None:
    """What the nets of these rows add in this tick; None: nothing.

    Args:
        family: of the model.
        inputs: of its network, a whole batch.
        rows: each with its elements of the batch.
        elements: how many there are.

    A net that fails fails the rows that have it (`Row.error`).
    """
    groups: dict[tuple[ControlNet, int], list[_Member]] = {}
    for row, places in rows:
        acting = [control for control in row.controls if control.scales[row.calls]]
        for index, control in enumerate(acting):
            # A row may show one net several images: it is called for each.
            turn = sum(other.net is control.net for other in acting[:index])
            groups.setdefault((control.net, turn), []).append((row, places, control))
    total: Residuals | None = None
    for members in groups.values():
        try:
            added = _added(family, inputs, members, elements)
        except Exception as error:
            if family.device.is_out_of_memory(error) or family.device.is_fatal(error):
                raise
            for row, _, _ in members:
                row.error = error
            continue
        total = added if total is None else list(map(_sum, total, added))
    return total


def _added(family: Any, inputs: Any, members: Sequence[_Member], elements: int) -> Residuals:
    """One call of one net, and each row's share of what it makes."""
    _, _, first = members[0]
    condition, scales = first.condition, torch.zeros(elements)
    if len(condition) != elements:  # alone, a row's condition also keeps its layout in memory
        condition = condition.new_zeros(elements, *condition.shape[1:])
        for _, places, control in members:
            for half, place in enumerate(places):
                condition[place] = control.condition[half]
    for row, places, control in members:
        scales[list(places)] = control.scales[row.calls]
    scales = family.device.from_host(scales).to(condition.device)
    made = family.control(first.net.network, inputs, condition)
    # Some blocks share what is added to them.
    scaled = {id(one): _scaled(one, scales) for one in made if one is not None}
    return [None if one is None else scaled[id(one)] for one in made]


def _scaled(made: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rounded once, as by a Python float. Other rows get zero even of what is not finite."""
    by_element = scales.view(-1, *[1] * (made.dim() - 1))
    return torch.where(by_element != 0, (made * by_element).to(made.dtype), 0)


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other


class ControlNetCache(WeightsCache[ControlNet]):
    """The ControlNets that one model has used last."""

    def __init__(self, family: Any, limit: int) -> None:
        super().__init__(limit)
        self._family = family

    def get(self, controls: Sequence[Control]) -> tuple[ControlNet, ...]:
        """The nets; loads what is not here, which takes as long as reading the files.

        Raises:
            ControlNetUnavailable: one cannot be read or does not fit the model.
        """
        return tuple(
            self.find_or_load(control.name, control.sha256, partial(self._load, control))
            for control in controls
        )

    def _load(self, control: Control) -> ControlNet:
        try:
            return ControlNet(load_network(control.path, self._family))
        except ControlNetUnavailable as error:
            message = f"ControlNet {control.name!r} {error.message}."
            raise ControlNetUnavailable(message) from error
        except Exception as error:  # what diffusers raises has no common type
            refuse_without_memory(error, f"ControlNet {control.name!r}")
            message = f"ControlNet {control.name!r} cannot be loaded: {first_line(error)[:300]}"
            raise ControlNetUnavailable(message) from error


def load_network(path: Path, family: Any) -> Any:
    """The net of a folder in diffusers' format, or of one file in it, in the model's precision.

    Raises:
        ControlNetUnavailable: it is damaged, or for other models; half a sentence.
    """
    import diffusers

    kind = getattr(diffusers, family.control_class)
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ControlNetUnavailable("has no safetensors file")
    for file in files:
        if fault := file_fault(file):
            raise ControlNetUnavailable(fault)
    config = kind.load_config(folder, local_files_only=True)
    if config.get("_class_name") != family.control_class:
        made = config.get("_class_name")
        raise ControlNetUnavailable(f"is a {made}, and this model takes a {family.control_class}")
    network = _from_file(kind, config, path) if path.is_file() else _from_folder(kind, path)
    if fault := family.control_fault(network):
        raise ControlNetUnavailable(fault)
    if not all(bool(torch.isfinite(weight).all()) for weight in network.parameters()):
        raise ControlNetUnavailable("holds numbers that are not finite")
    return network.to(family.dtype).eval()


def _from_folder(kind: Any, folder: Path) -> Any:
    network, report = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"] or report["unexpected_keys"]:
        raise ControlNetUnavailable("has other weights than its config says")
    return network


def _from_file(kind: Any, config: Any, path: Path) -> Any:
    from safetensors.torch import load_file

    with torch.device("meta"):
        network = kind.from_config(config)
    network.load_state_dict(load_file(path), assign=True)
    return network
