"""LoRAs: load them as diffusers does, keep those used last, add them row by row.

`load_lora_weights` of the model's own pipeline loads a file into a hollow copy of the model: the
same modules without weights. From there the small matrices are taken, with the scale that diffusers
gives them; the model itself is never touched. While a network or an encoder runs, a hook on each
module adds what each row's LoRAs make of the row's own input. peft's `adapter_names` groups rows by
their adapters, so a row's bits would follow its neighbours.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.core.errors import LoraUnavailable
from shared.core.safetensors import read_header
from worker.engine.checkpoint import first_line
from worker.engine.interface import Lora
from worker.engine.weights_cache import WeightsCache, file_fault, refuse_without_memory

_NAME = "lora"
"""The hollow copy never holds more than one."""


@dataclass(frozen=True)
class Layer:
    """What a LoRA adds to one module."""

    down: nn.Module
    up: nn.Module
    alpha: float
    divisor: float
    """The rank, or its root where the file says so."""

    def scaling(self, scale: float) -> float:
        """As peft computes it, so that it rounds alike."""
        return scale * self.alpha / self.divisor

    def add(self, x: torch.Tensor, result: torch.Tensor, scaling: float) -> torch.Tensor:
        """`result` with the delta of `x`."""
        return result + self.up(self.down(x.to(self.dtype))) * scaling

    @property
    def dtype(self) -> torch.dtype:
        return next(self.down.parameters()).dtype


@dataclass(eq=False)
class Adapter:
    """A LoRA in the terms of one model."""

    parts: Mapping[str, Mapping[str, Layer]]
    """Component of the pipeline -> module -> what is added to it."""

    @cached_property
    def bytes(self) -> int:
        """Of its weights."""
        return sum(
            weight.numel() * weight.element_size()
            for module in self._modules()
            for weight in module.parameters()
        )

    def move(self, network_device: torch.device, encode_device: torch.device) -> None:
        """To where the parts are computed; nothing happens where it is there already."""
        for part, layers in self.parts.items():
            device = encode_device if part.startswith("text_encoder") else network_device
            for layer in layers.values():
                if next(layer.down.parameters()).device != device:
                    layer.down.to(device)
                    layer.up.to(device)

    def upcast(self) -> "Adapter":
        """A copy in float32."""
        copied = copy.deepcopy(self)
        for module in copied._modules():
            module.float()
        return copied

    def _modules(self) -> Iterator[nn.Module]:
        for layers in self.parts.values():
            for layer in layers.values():
                yield from (layer.down, layer.up)


Adapters = tuple[tuple[Adapter, float], ...]
"""The LoRAs of a row in the order in which it names them, each with its scale."""

# --- adding -----------------------------------------------------------------------------------

Deltas = list[tuple[torch.Tensor | None, list[tuple[Layer, float]]]]
"""For each row its elements of the batch (None: all of them), and what is added to them."""


@contextmanager
def applied(
    model: nn.Module,
    part: str,
    rows: Sequence[tuple[Sequence[int] | None, Adapters]],
    device: torch.device,
    batch: int = 1,
) -> Iterator[None]:
    """Let each row's LoRAs act on its own elements of the batch while the block runs.

    Args:
        model: a component of the pipeline.
        part: its name there.
        rows: the elements of each row, and its LoRAs. None stands for the whole batch: a row alone
            then computes exactly what peft's layers compute.
        device: where the model computes; weights that are offloaded lie elsewhere.
        batch: elements of the batch.
    """
    deltas: dict[str, Deltas] = {}
    for elements, adapters in rows:
        index = None if elements is None else torch.tensor(elements)
        found: dict[str, list[tuple[Layer, float]]] = {}
        for adapter, scale in adapters:
            for name, layer in adapter.parts.get(part, {}).items():
                found.setdefault(name, []).append((layer, layer.scaling(scale)))
        if index is not None and found:
            index = index.to(device, non_blocking=True)
        for name, layers in found.items():
            deltas.setdefault(name, []).append((index, layers))
    hooks = [
        model.get_submodule(name).register_forward_hook(partial(_add, of_module, batch))
        for name, of_module in deltas.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def applied_to_encoders(family: Any, loras: Sequence[Lora], adapters: Adapters) -> Iterator[None]:
    """Let the LoRAs of one row act on the text encoders while the block runs."""
    acting = {
        part
        for adapter, _ in adapters
        for part, layers in adapter.parts.items()
        if layers and part != family.network_part
    }
    if not acting:
        yield
        return
    family.encoders_are = tuple((lora.sha256, lora.scale) for lora in loras)
    try:
        with ExitStack() as stack:
            for part in acting:
                encoder = getattr(family.pipeline, part)
                stack.enter_context(
                    applied(encoder, part, [(None, adapters)], family.encode_device)
                )
            yield
    finally:
        family.encoders_are = None


def _add(
    deltas: Deltas, batch: int, _: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor
) -> torch.Tensor:
    """A forward hook: the module's output with the deltas of the rows that have some."""
    x: torch.Tensor = inputs[0]
    for index, layers in deltas:
        if index is None:
            output = _sum(x, output, layers)
        else:
            if len(x) not in (batch, batch + 1):  # Lumina2 has one that belongs to no row
                raise RuntimeError(f"{len(x)} elements are no batch of {batch}.")
            # Copies of the row's own, so that its place in the batch is not in the bits.
            mine = _sum(x.index_select(0, index), output.index_select(0, index), layers)
            output.index_copy_(0, index, mine)
    return output


def _sum(
    x: torch.Tensor, result: torch.Tensor, layers: Sequence[tuple[Layer, float]]
) -> torch.Tensor:
    dtype = result.dtype
    for layer, scaling in layers:
        result = layer.add(x, result, scaling)
    return result.to(dtype)


# --- loading ----------------------------------------------------------------------------------


class AdapterCache(WeightsCache[Adapter]):
    """The LoRAs that one model has used last."""

    def __init__(self, pipeline: Any, limit: int, shared_modules: Sequence[str] = ()) -> None:
        """`shared_modules`: beginnings of names of modules that see rows without borders."""
        super().__init__(limit)
        self._pipeline = pipeline
        self._shared_modules = tuple(shared_modules)

    @property
    def supported(self) -> bool:
        """Whether diffusers loads LoRAs into this kind of pipeline."""
        return hasattr(self._pipeline, "load_lora_weights")

    def get(self, loras: Sequence[Lora]) -> Adapters:
        """The LoRAs; loads what is not here, which takes as long as reading the file.

        Raises:
            LoraUnavailable: one cannot be read or does not fit the model.
        """
        return tuple(
            (self.find_or_load(lora.name, lora.sha256, partial(self._load, lora)), lora.scale)
            for lora in loras
        )

    def _load(self, lora: Lora) -> Adapter:
        try:
            if fault := file_fault(lora.path):
                raise LoraUnavailable(fault)
            adapter = load_adapter(self._hollow, lora.path)
            for name in (name for layers in adapter.parts.values() for name in layers):
                if name.startswith(self._shared_modules):
                    raise LoraUnavailable(f"changes {name}, which a batch's rows share")
            return adapter
        except LoraUnavailable as error:
            raise LoraUnavailable(f"LoRA {lora.name!r} {error.message}.") from error
        except Exception as error:  # what diffusers and peft raise has no common type
            refuse_without_memory(error, f"LoRA {lora.name!r}")
            raise LoraUnavailable(
                f"LoRA {lora.name!r} does not fit this model: {first_line(error)[:300]}"
            ) from error

    @cached_property
    def _hollow(self) -> Any:
        return hollow(self._pipeline)


def load_adapter(pipeline: Any, path: Path) -> Adapter:
    """What `load_lora_weights` makes of a file, taken out of a hollow pipeline.

    Raises:
        LoraUnavailable: not all of it has a place in the model; half a sentence.
    """
    from peft.tuners.lora.layer import LoraLayer

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    config = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}
    converted = pipeline.lora_state_dict(str(path), **options, **config)
    converted = converted[0] if isinstance(converted, tuple) else converted
    if any("dora_scale" in key or "lora_magnitude" in key for key in _keys(path, converted)):
        raise LoraUnavailable("has DoRA's magnitudes, which are not supported")
    try:
        pipeline.load_lora_weights(str(path), adapter_name=_NAME, **options)
        parts = {
            part: {
                name: _layer(name, module)
                for name, module in getattr(pipeline, part).named_modules()
                if isinstance(module, LoraLayer) and _NAME in module.r
            }
            for part in _parts(pipeline)
        }
    finally:
        pipeline.unload_lora_weights()
    wanted = sum(1 for key in converted if key.endswith((".lora_A.weight", ".down.weight")))
    found = sum(len(layers) for layers in parts.values())
    if found == 0 or found != wanted:
        raise LoraUnavailable(
            f"does not fit this model: {found} of its {wanted} layers have a place in it"
        )
    return Adapter(parts)


def _keys(path: Path, converted: Mapping[str, Any]) -> set[str]:
    with path.open("rb") as file:
        return {*read_header(file, path.stat().st_size).tensors, *converted}


def _layer(name: str, module: Any) -> Layer:
    if _NAME not in module.lora_A or module.lora_variant:
        raise LoraUnavailable(f"changes {name} in a way that is not supported")
    # `requires_grad` stays as it is: torch folds a product by it, so bits depend on it.
    down, up = module.lora_A[_NAME], module.lora_B[_NAME]
    weights = [*down.parameters(), *up.parameters()]
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        raise LoraUnavailable("holds numbers that are not finite")
    rank = module.r[_NAME]
    divisor = rank**0.5 if module.use_rslora.get(_NAME) else rank
    return Layer(down, up, module.lora_alpha[_NAME], divisor)


def _parts(pipeline: Any) -> list[str]:
    """The components that LoRAs of this kind of pipeline change."""
    names = type(pipeline)._lora_loadable_modules
    return [name for name in names if getattr(pipeline, name, None) is not None]


def hollow(pipeline: Any) -> Any:
    """The pipeline over modules of the same shapes and precisions without memory of their own."""
    shell = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):  # the others would have their offloading hooks removed
            made = _hollow_module(part) if name in _parts(pipeline) else None
            object.__setattr__(shell, name, made)  # not as a change of the pipeline's config
    return shell


def _hollow_module(module: Any) -> nn.Module:
    """A module built from the same config, whose weights are all one and the same zero."""
    with torch.device("meta"):
        kind = type(module)
        made: nn.Module = (
            kind.from_config(module.config) if hasattr(kind, "from_config") else kind(module.config)
        )
    dtypes = {name: weight.dtype for name, weight in module.named_parameters()}
    usual = module.dtype  # diffusers looks at all weights for it
    for name, weight in list(made.named_parameters()):
        dtype = dtypes.get(name, usual)  # quantized weights are integers
        zero = _zero(weight, dtype if dtype.is_floating_point else usual)
        owner, last = _place(made, name)
        owner._parameters[last] = nn.Parameter(zero, requires_grad=False)
    for name, value in list(made.named_buffers()):
        owner, last = _place(made, name)
        owner._buffers[last] = _zero(value, value.dtype)
    return made.eval()


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, last = name.rpartition(".")
    return model.get_submodule(owner), last


def _zero(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros((), dtype=dtype).expand(like.shape)
