"""Trains with several single-threaded processes that average their gradients.

On a CPU that other work shares, two threads inside every small operation wait for each other
more than they compute: a step cost three times the CPU time of a single-threaded one. Two
processes that meet once a step do not.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import parent_process
from threading import Thread
from typing import Protocol

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn


class TrainingTask(Protocol):
    """What every process of a team does."""

    def __call__(self, *, group: ProcessGroup) -> None: ...


class ProcessGroup:
    """The processes that train together; each has a rank, and rank 0 writes and reports."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_leader(self) -> bool:
        """Whether this process is the one that writes files and prints progress."""
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the team."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def agree(self, value: float) -> float:
        """Rank 0's value, in every process."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(shared, src=0)
        return shared.item()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """A block that rank 0 runs first, and the others once its results are on disk."""
        if not self.is_leader:
            self.wait()
        yield
        if self.is_leader:
            self.wait()

    def wait(self) -> None:
        """Returns when every process of the team has got here."""
        if self.size > 1:
            distributed.barrier()


def run(size: int, task: TrainingTask) -> None:
    """Runs `task` in `size` processes, one thread each, or here where size is 1.

    `task` must be picklable: a module-level function or a partial of one.
    """
    if size == 1:
        task(group=ProcessGroup())
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_member, args=(size, port, task), nprocs=size)  # type: ignore[no-untyped-call]


def _member(rank: int, size: int, port: int, task: TrainingTask) -> None:
    Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=size,
        # The others wait here while rank 0 draws or encodes, which takes minutes.
        timeout=timedelta(hours=2),
    )
    task(group=ProcessGroup(rank, size))
    distributed.destroy_process_group()


def _die_with_parent() -> None:
    """Ends this process when the one that started it is gone."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
