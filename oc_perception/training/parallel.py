# SPDX-License-Identifier: Apache-2.0
"""The processes that train together: one, or those that `torchrun` started.

Each learns from its own shards of the batch; gradients are added up over all of them before each
update. Models are called by `loss`, and some differentiate inside it, which rules out the hooks
of DistributedDataParallel; one sum over all gradients at once is as fast for models of this size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

_PATIENCE = timedelta(hours=1)  # the others wait while the first process evaluates


@dataclass(frozen=True)
class ProcessGroup:
    """This process is number `rank` of `size` and computes on `device`."""

    rank: int
    size: int
    device: str

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates, prints and writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            distributed.barrier()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process; each must ask."""
        if self.size == 1:
            return flag
        count = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(count)
        return count.item() > 0

    def add_up(self, parameters: Iterable[nn.Parameter], values: Tensor) -> Tensor:
        """Replace the gradients of `parameters` by their sums over processes; returns the sums of
        `values` `(N,)`.
        """
        if self.size == 1:
            return values
        chosen = [p for p in parameters if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
        flat = torch.cat([*(g.flatten() for g in gradients), values])
        distributed.all_reduce(flat)
        *parts, sums = flat.split([*(p.numel() for p in chosen), len(values)])
        for parameter, gradient, part in zip(chosen, gradients, parts, strict=True):
            parameter.grad = gradient.copy_(part.view_as(parameter))
        return sums


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, over NCCL on `cuda` (each takes the GPU of its
    local number) and Gloo on `cpu`.
    """
    if not _under_torchrun():
        yield ProcessGroup(0, 1, device)
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    group = ProcessGroup(distributed.get_rank(), distributed.get_world_size(), device)
    try:
        yield group
        # Until the first process has finished: torchrun would end it if another one failed on its
        # way out, as Gloo can where a process ends right after an exchange of tensors (PyTorch
        # pull request 179291).
        group.wait()
    finally:
        distributed.destroy_process_group()


def is_first_process() -> bool:
    """Whether this is the only process or the first of those that torchrun started."""
    return not _under_torchrun() or os.environ["RANK"] == "0"


def _under_torchrun() -> bool:
    return distributed.is_available() and distributed.is_torchelastic_launched()
