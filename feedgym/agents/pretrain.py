"""Pretrains an agent by next-token prediction on logged sessions, with transformers.Trainer.

The Trainer brings bf16 and resuming, and several GPUs if a launcher starts one process for each (``torchrun``): they
share out each batch (:mod:`feedgym.agents.sharing`). A killed run resumes from its last complete checkpoint and ends
with exactly the weights of an uninterrupted run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast, get_args

import torch
import torch.distributed as dist
from annotated_types import Interval
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from feedgym.agents.layers.moe import expert_load
from feedgym.agents.processes import together
from feedgym.agents.sharing import SharesBatches, average, whole_mean
from feedgym.data.batches import Histories
from feedgym.data.sessions import LoggedHistories
from feedgym.data.whole import last_whole_checkpoint, seal
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import BelowOne, Count, CountOrZero, LearningRate, NonNegative, Ranged, Seed, StepsOrZero

Schedule = Literal["cosine", "linear", "constant_with_warmup", "inverse_sqrt"]

POOL = 50
"""Number of batches whose rows are sorted by length together: enough for little padding, few enough to stay mixed."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each step with the number of steps done, the total number and the latest metrics."""


class Examples(Protocol):
    """Training data: its elements are row numbers, and it makes batches of them itself."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, idx: int) -> int:
        """The row number itself."""
        ...

    @property
    def lengths_N(self) -> Tensor:
        """Number of events of each row, for batches of rows with similar length."""
        ...

    def collate(self, model: Any, idx: Sequence[int]) -> dict[str, Tensor]:
        """The model's training batch of some rows."""
        ...


ModelT = TypeVar("ModelT")
ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Ranged):
    """Options of pretraining."""

    epochs: Annotated[float, Interval(ge=0, le=10_000)] = 1.0
    """Passes over the sessions; ignored if ``steps`` is above 0."""
    steps: StepsOrZero = 0
    """Optimiser steps; 0 uses epochs."""
    batch_size: Count = 64
    """Sessions per step; the processes of a launcher share them out."""
    lr: LearningRate = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: CountOrZero = 50
    """Steps during which the learning rate rises from 0."""
    schedule: Schedule = "cosine"
    """Learning rate after the warm-up; cosine and linear fall to 0, inverse_sqrt stays high for long."""
    weight_decay: NonNegative = 0.01
    """AdamW's weight decay of matrices; norms have none."""
    adam_beta2: BelowOne = 0.999
    """AdamW's decay for the average of squared gradients (beta 2)."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are clipped to this norm; 0 disables clipping."""
    group_by_length: bool = False
    """Put histories of similar length into a batch, among 50 batches drawn at random, which reduces padding."""
    bf16: bool = False
    """Compute in bfloat16, which is several times as fast on GPUs and some processors."""
    checkpoint_steps: Count = 500
    """Steps between checkpoints."""
    log_steps: Count = 20
    """Steps between metrics."""
    seed: Seed = 0
    """Seed for the order of the sessions and dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.steps or self.epochs > 0):
            raise ValueError(f"epochs={self.epochs} must be above 0; raise it or give steps.")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule={self.schedule!r} is unknown; choose one of {', '.join(get_args(Schedule))}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionDataset(Dataset):
    """Sessions to learn from, as tensors made once, or with histories that are built from the log batch by batch.

    Its elements are row numbers; a batch is cut out of the tensors by one index operation per column.

    Attributes:
        histories: N rows, the histories before each session.
        item_ids_NK: int64, the sessions; -1 after the last item.
    """

    histories: Histories | LoggedHistories
    item_ids_NK: Tensor

    def __post_init__(self) -> None:
        if len(self.histories) != len(self.item_ids_NK) or len(self.item_ids_NK) == 0:
            raise ValueError(
                f"{len(self.histories)} histories and {len(self.item_ids_NK)} sessions; give one history per session "
                "and at least one session."
            )

    def __len__(self) -> int:
        return len(self.item_ids_NK)

    def __getitem__(self, idx: int) -> int:
        return idx

    @property
    def lengths_N(self) -> Tensor:
        """Events of each history."""
        return self.histories.lengths_N

    def collate(self, model: GenerativeAgent, idx: Sequence[int]) -> dict[str, Tensor]:
        """The model's training batch of the rows ``idx``, histories cut to the longest of them."""
        rows = torch.as_tensor(idx)
        return model.training_batch(self.histories.rows(rows).trimmed(), self.item_ids_NK[rows])


def pretrain(
    model: ModelT,
    dataset: Examples,
    config: PretrainConfig,
    output_dir: Path | str,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> ModelT:
    """Train ``model`` in place by next-token prediction and return it.

    Args:
        model: the agent.
        dataset: the training data, e.g. a :class:`SessionDataset`.
        config: steps, learning rate and so on.
        output_dir: folder for ``checkpoint-*`` folders and, at the end, the model. If it already has a checkpoint,
            training resumes there, with the same config and dataset.
        progress: called after each step.
        callbacks: further callbacks of the Trainer. If several processes train, only the first one has those without a
            true attribute ``everywhere``; all do what these decide.
    """
    everywhere = [callback for callback in callbacks if getattr(callback, "everywhere", False)]
    with together(pretrain, model, dataset, config, output_dir, None, everywhere):
        return _pretrained(model, dataset, config, Path(output_dir), progress, callbacks)


def _pretrained(
    model: ModelT,
    dataset: Examples,
    config: PretrainConfig,
    output_dir: Path,
    progress: Progress | None,
    callbacks: Sequence[TrainerCallback],
) -> ModelT:
    output_dir.mkdir(parents=True, exist_ok=True)
    trainer = _Trainer(
        model=model,
        args=_arguments(config, output_dir),
        train_dataset=dataset,
        data_collator=lambda idx: dataset.collate(model, idx),
        callbacks=[_FinishedCallback(), *callbacks, _Agreed(), *([_ProgressCallback(progress)] if progress else [])],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        with suppress(_Finished):
            checkpoint = last_whole_checkpoint(output_dir)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(output_dir))
    finally:  # mixed precision leaves a forward on the instance that would still compute in bfloat16
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
    return model


def on_one_device(args: ArgumentsT) -> ArgumentsT:
    """Changes the Trainer's arguments so that a process trains on one device, however many GPUs it sees.

    Without a launcher, the Trainer would wrap the model in ``nn.DataParallel``. That cuts every tensor of a batch into
    as many parts as there are GPUs. If 3B decoder rows share B histories, rows would then read other users' histories.
    """
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _arguments(config: PretrainConfig, output_dir: Path) -> TrainingArguments:
    args = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=config.schedule,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),  # else bf16 asks for a GPU
        seed=config.seed,
        data_seed=config.seed,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,
        logging_steps=config.log_steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,  # a model on a GPU looks up its tokens there, and such a batch cannot be pinned
    )
    return on_one_device(args)


class Sealing(SharesBatches):
    """Lets a Trainer seal its checkpoints once they are written, so that only complete ones are resumed.

    It comes before the Trainer's class among the bases. Batches are shared out over processes, too.
    """

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()  # each process writes its own random state
        if self.args.should_save:
            seal(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")


class _Trainer(Sealing, Trainer):
    """Uses the model's own loss, and logs its parts and the experts' load."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sums: dict[str, Any] = defaultdict(float)
        self._num_batches = 0
        self._experts_per_token = getattr(kwargs["model"].config, "num_experts_per_tok", 1)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        examples = cast(Examples, self.train_dataset)
        return _LikeLengths(self.args.train_batch_size, examples.lengths_N.cpu(), self.args.data_seed or 0)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        self._num_batches += 1
        if getattr(outputs, "aux_loss", None) is not None:
            num_tokens = len(outputs.router_logits[0])
            self._sums["aux_loss"] += average(outputs.aux_loss.detach())
            load_E = whole_mean(expert_load(outputs.router_logits, self._experts_per_token), num_tokens)
            self._sums["expert_load_min"] += load_E.min()
            self._sums["expert_load_max"] += load_E.max()
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs |= {name: float(value) / self._num_batches for name, value in self._sums.items()}
        self._sums.clear()
        self._num_batches = 0
        super().log(logs, start_time)


class _LikeLengths(Sampler[int]):
    """An order of rows in which every batch holds rows of similar length, decided by the seed and the epoch alone.

    The Trainer's own sampler goes through each pool from long rows to short ones, so that what is learned last depends
    on the length. It also draws from torch's global generator, whose state is lost when a training resumes within an
    epoch.
    """

    def __init__(self, batch_size: int, lengths_N: Tensor, seed: int) -> None:
        self.batch_size, self.lengths_N, self.seed = batch_size, lengths_N, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls this before each one."""
        self.generator = torch.Generator().manual_seed(self.seed + epoch)

    def __len__(self) -> int:
        return len(self.lengths_N)

    def __iter__(self) -> Iterator[int]:
        num = len(self.lengths_N)
        order_N = torch.randperm(num, generator=self.generator)
        for pool_N in order_N.split(POOL * self.batch_size):  # views: this sorts in place
            pool_N.copy_(pool_N[self.lengths_N[pool_N].argsort(stable=True)])
        whole = num // self.batch_size * self.batch_size
        batches = order_N[:whole].view(-1, self.batch_size)
        batches = batches[torch.randperm(len(batches), generator=self.generator)]
        return iter(torch.cat([batches.flatten(), order_N[whole:]]).tolist())


class _Finished(Exception):
    """Raised if the checkpoint that a run resumes from is its last."""


class _FinishedCallback(TrainerCallback):
    """Ends a finished run once its weights are loaded; within an epoch the Trainer would do one more step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise _Finished


class _Agreed(TrainerCallback):
    """Lets all processes do what the first one's callbacks decide: it stops early, or saves."""

    everywhere = True

    def _agree(self, args: Any, control: Any) -> None:
        if args.world_size > 1:
            names = ("should_save", "should_training_stop", "should_epoch_stop")
            decided = torch.tensor([int(getattr(control, name)) for name in names], device=args.device)
            dist.broadcast(decided, src=0)
            for name, value in zip(names, decided.tolist(), strict=True):
                setattr(control, name, bool(value))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._agree(args, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._agree(args, control)


class _ProgressCallback(TrainerCallback):
    """Calls ``progress`` after every step, with the metrics logged last."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.metrics: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.metrics = {name: float(value) for name, value in (logs or {}).items() if name != "epoch"}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps, self.metrics)
