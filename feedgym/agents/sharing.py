"""Lets processes train one model together, with the loss and the gradient that one process would have.

All processes go through the same batches. Each collates its own share of a batch, and the gradients of the shares are
averaged (torch's DistributedDataParallel, by the Trainer). The average of their mean losses is not the mean over the
batch, if one share has longer sessions than another. So a loss passes each of its means through :func:`part_of_mean`,
which scales it. The average of the processes' parts is then exactly the mean over the batch. With one process all
functions here return what they are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

IDLE = "idle"
"""Key in a batch whose rows only keep a process busy, because the batch has fewer rows than there are processes."""


@dataclass
class SharedStep:
    """A training step of several processes.

    Attributes:
        counts: whether the rows of this process count.
        num_means: number of means of the loss that were scaled so far.
    """

    counts: bool
    num_means: int = 0


_step: SharedStep | None = None


@contextmanager
def shared_step(counts: bool = True) -> Iterator[SharedStep]:
    """Let the functions of this module work across all processes; each must call them in the same order."""
    global _step
    before, _step = _step, SharedStep(counts)
    try:
        yield _step
    finally:
        _step = before


def is_shared() -> bool:
    """Whether a batch is shared by several processes now."""
    return _step is not None


def part_of_mean(mean: Tensor, count: Tensor | float) -> Tensor:
    """Scale the mean over this process's terms; the average over the processes is the mean over all of their terms.

    Args:
        mean: any shape.
        count: number of the terms, or the sum of their weights; of the shape of ``mean`` or one for all.
    """
    if _step is None:
        return mean
    _step.num_means += 1
    own = torch.as_tensor(count, dtype=torch.promote_types(mean.dtype, torch.float32), device=mean.device)
    own = own * _step.counts
    scale = own * dist.get_world_size() / total(own).clamp_min(1e-30)
    return torch.where(own > 0, mean, 0.0) * scale  # the mean of nothing may be NaN


def whole_mean(mean: Tensor, count: Tensor | float) -> Tensor:
    """The mean over the terms of all processes, without gradient; for figures."""
    return average(part_of_mean(mean.detach(), count))


def average(value: Tensor) -> Tensor:
    """The mean over the processes, without gradient."""
    return value if _step is None else total(value) / dist.get_world_size()


def total(value: Tensor) -> Tensor:
    """The sum over all processes, without gradient; also inside ``torch.func.vmap``."""
    return value if _step is None else _Total.apply(value)


class _Total(torch.autograd.Function):
    """A sum over processes that vmap can call."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, value: Tensor) -> tuple[Tensor, Any]:
        return _Total.apply(value), in_dims[0]


def share_of(elements: Sequence[T], process: int, num_processes: int) -> tuple[Sequence[T], bool]:
    """A process's part of a batch's elements, and whether it counts; an empty part is replaced by the first element."""
    begin, end = (len(elements) * number // num_processes for number in (process, process + 1))
    return (elements[begin:end], True) if end > begin else (elements[:1], False)


class SharesBatches:
    """Lets a Trainer share out its batches over the processes of a launcher; it comes first among the bases.

    So the options' batch size is that of a step, whatever the number of processes.
    """

    args: Any
    data_collator: Any
    model: Any

    def get_train_dataloader(self) -> Any:
        """All processes draw the same batches of row numbers; only the rows of their share are collated."""
        args, whole = self.args, self.data_collator
        if args.world_size == 1:
            return super().get_train_dataloader()  # type: ignore[misc]

        def collate(elements: Sequence[Any]) -> Any:
            mine, counts = share_of(elements, args.process_index, args.world_size)
            return whole(mine) if counts else {**whole(mine), IDLE: True}

        self.data_collator = collate
        try:
            loader = super().get_train_dataloader()  # type: ignore[misc]
        finally:
            self.data_collator = whole
        from accelerate.data_loader import BatchSamplerShard

        batches = loader.batch_sampler
        assert isinstance(batches, BatchSamplerShard)  # would deal out whole batches to the processes
        batches.num_processes, batches.process_index, batches.even_batches = 1, 0, False
        return loader

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the gradient of this process's share.

        Raises:
            ValueError: the model's loss has no mean that was scaled, so the step would be another one.
        """
        if self.args.world_size == 1:
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        with shared_step(counts=not inputs.pop(IDLE, False)) as step:
            loss = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not step.num_means:
            raise ValueError(
                f"The loss of {type(self.model).__name__} cannot be shared out over {self.args.world_size} processes, "
                "because no mean in it goes through feedgym.agents.sharing.part_of_mean; start one process."
            )
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; each process has its own dropout and negatives."""
        if self.args.process_index:
            torch.manual_seed(self.args.seed + self.args.process_index)
        return super().train(*args, **kwargs)  # type: ignore[misc]
