"""Reference images: an IP-Adapter beside a UNet, row by row.

diffusers' processors have one scale for a whole batch, and want image tokens of each of its rows.
Here the pipeline's own loader puts the adapter into a hollow copy of the model, from which its
weights are used, and the model itself is never touched: while the network runs, hooks on each
cross-attention add what a row's own query finds in its own references. Several references are the
adapter loaded once for each of them, which is how diffusers gives each a scale of its own.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from PIL import Image
from torch import nn

from shared.core.errors import ModelUnavailable
from shared.core.model_catalog import ModelSpec
from worker.engine import checkpoint
from worker.engine.adapters import hollow
from worker.engine.interface import Reference

_PROJECTIONS = ("ImageProjection", "IPAdapterPlusImageProjection", "IPAdapterFullImageProjection")
"""Those that read CLIP's view of an image; others read faces, which another model must find."""

References = tuple[tuple[Mapping[str, torch.Tensor], float], ...]
"""Of each of a row's references `<attention>.key` and `<attention>.value`, both (halves, 1, tokens,
width), and its scale; their order is part of the bits."""


class IpAdapter:
    """An adapter in the terms of one model."""

    def __init__(self, shell: Any, sha256: str, comes_and_goes: bool) -> None:
        """`comes_and_goes`: whether the image encoder is on the device only while it works."""
        self.sha256 = sha256
        """Of its weights, and of the image encoder's."""
        self._shell = shell
        self._comes_and_goes = comes_and_goes
        self._processors = {
            name.removesuffix(".processor"): processor
            for name, processor in shell.unet.attn_processors.items()
            if hasattr(processor, "to_k_ip")
        }

    @property
    def memory_bytes(self) -> int:
        """Of its weights, and of the image encoder's."""
        return sum(
            weight.numel() * weight.element_size()
            for module in (self._shell.image_encoder, *self._modules())
            for weight in module.parameters()
        )

    def upcast(self) -> "IpAdapter":
        """A copy in float32, over the same hollow weights: copied, they would take memory."""
        own = (self._shell.image_encoder, *self._modules())
        ours = {id(weight) for module in own for weight in module.parameters()}
        hollow_weights = {
            id(weight): weight
            for part in self._shell.components.values()
            if isinstance(part, nn.Module)
            for weight in part.parameters()
            if id(weight) not in ours
        }
        copied = copy.deepcopy(self, hollow_weights)
        for module in (copied._shell.image_encoder, *copied._modules()):
            module.float()
        return copied

    def place(self, network_device: torch.device, encode_device: torch.device) -> None:
        """Move it to where its parts are computed."""
        for module in self._modules():
            module.to(network_device)
        if not self._comes_and_goes:
            self._shell.image_encoder.to(encode_device)

    def encode(
        self,
        reference: Reference,
        guided: bool,
        network_device: torch.device,
        encode_device: torch.device,
    ) -> dict[str, torch.Tensor]:
        """What a row attends to: both halves at once, as diffusers computes them for one image."""
        shell = self._shell
        shell.image_encoder.to(encode_device)
        try:
            embedded = shell.prepare_ip_adapter_image_embeds(
                [reference.image], None, encode_device, 1, guided
            )
        finally:
            if self._comes_and_goes:
                shell.image_encoder.to("cpu")
        (tokens,) = shell.unet.encoder_hid_proj([each.to(network_device) for each in embedded])
        return {
            f"{name}.{what}": layers[0](tokens)
            for name, processor in self._processors.items()
            for what, layers in (("key", processor.to_k_ip), ("value", processor.to_v_ip))
        }

    def _modules(self) -> list[nn.Module]:
        return [self._shell.unet.encoder_hid_proj, *self._processors.values()]


def load_ip_adapter(
    pipeline: Any, spec: ModelSpec, network_device: torch.device, encode_device: torch.device
) -> IpAdapter | None:
    """The adapter that a model is declared with; None without one.

    Raises:
        ModelUnavailable: with one sentence that says why.
    """
    if spec.ip_adapter is None:
        return None
    if not hasattr(pipeline, "unet") or not hasattr(pipeline, "load_ip_adapter"):
        raise ModelUnavailable(f"Model {spec.name!r} does not support IP-Adapters.")
    declared = spec.ip_adapter
    folder, sha256 = checkpoint.locate_ip_adapter(declared, spec.name)
    shell = hollow(pipeline)
    try:
        shell.load_ip_adapter(
            str(folder),
            subfolder="",
            weight_name=declared.file,
            image_encoder_folder=declared.image_encoder,
            local_files_only=True,
        )
        projection = type(shell.unet.encoder_hid_proj.image_projection_layers[0]).__name__
        if projection not in _PROJECTIONS:
            raise ValueError("it reads faces and not images")
        comes_and_goes = spec.offload != "none" or spec.text_encoder == "offload"
        adapter = IpAdapter(shell, sha256, comes_and_goes)
        adapter.place(network_device, encode_device)
        _try(adapter, network_device, encode_device)
    except Exception as error:  # what diffusers and transformers raise has no common type
        first = checkpoint.first_line(error)[:300]
        raise ModelUnavailable(
            f"The IP-Adapter {declared.file} does not fit model {spec.name!r}: {first}"
        ) from error
    return adapter


def _try(adapter: IpAdapter, network_device: torch.device, encode_device: torch.device) -> None:
    """Make sure that its parts fit each other, or the first job would find out."""
    black = Reference(Image.new("RGB", (64, 64)), "", 1.0)
    with torch.no_grad():
        adapter.encode(black, False, network_device, encode_device)


# --- adding -----------------------------------------------------------------------------------

Rows = Sequence[tuple[torch.Tensor | None, References]]
"""For each row its elements of the batch (None: all of them), and what they attend to."""


@contextmanager
def attending(
    network: nn.Module,
    rows: Sequence[tuple[Sequence[int] | None, References]],
    device: torch.device,
) -> Iterator[None]:
    """Let each row's elements of the batch attend to its references while the block runs.

    `device` is where the network computes: weights that are offloaded lie elsewhere.

    None stands for the whole batch: a row alone then computes exactly what diffusers computes. In
    a batch it computes the same on copies of its own elements, and the other rows keep their bits.
    """
    placed = [
        (None if elements is None else torch.tensor(elements).to(device, non_blocking=True), mine)
        for elements, mine in rows
    ]
    names = {name for _, mine in rows for keys, _ in mine for name in keys}
    hooks = []
    for name in {name.rpartition(".")[0] for name in names}:
        attention = network.get_submodule(name)
        hook = _Hook(name, int(cast("Any", attention).heads), placed)
        hooks += [
            attention.get_submodule("to_q").register_forward_hook(hook.keep_query),
            attention.get_submodule("to_out.0").register_forward_pre_hook(hook.add),
        ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class _Hook:
    """One cross-attention: between its own attention and its last projection."""

    def __init__(self, name: str, heads: int, rows: Rows) -> None:
        self._name = name
        self._heads = heads
        self._rows = rows
        self._query: torch.Tensor | None = None

    def keep_query(self, _: nn.Module, __: tuple[Any, ...], output: torch.Tensor) -> None:
        self._query = output

    def add(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.Tensor]:
        query, self._query = self._query, None
        hidden: torch.Tensor = inputs[0]
        if query is None:
            raise RuntimeError(f"{self._name} has no query.")
        for index, references in self._rows:
            if index is None:
                hidden = self._sum(query, hidden, references)
            else:
                mine = self._sum(
                    query.index_select(0, index), hidden.index_select(0, index), references
                )
                hidden.index_copy_(0, index, mine)
        return (hidden,)

    def _sum(
        self, query: torch.Tensor, hidden: torch.Tensor, references: References
    ) -> torch.Tensor:
        """As `IPAdapterAttnProcessor2_0` computes it, reference by reference."""
        batch, _, width = query.shape

        def split(tensor: torch.Tensor) -> torch.Tensor:
            heads = self._heads
            return tensor.view(batch, -1, heads, width // heads).transpose(1, 2)

        for tensors, scale in references:
            found = nn.functional.scaled_dot_product_attention(
                split(query),
                split(tensors[f"{self._name}.key"]),
                split(tensors[f"{self._name}.value"]),
            )
            hidden = hidden + scale * found.transpose(1, 2).reshape(batch, -1, width)
        return hidden
