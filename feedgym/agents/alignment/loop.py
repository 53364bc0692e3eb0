"""Training loop of the methods that learn from groups: several sessions per user, each with its own weight.

It is transformers' Trainer, as in pretraining. TRL's GRPOTrainer does not fit: it draws sessions itself, by
``generate`` and from text prompts. Here they are already drawn and scored, in the same way for every method. A group
shares one encoded history. The decoder rows of a batch of B users are [first sessions; second sessions; ...; logged
sessions], and row r reads history r mod B. So a step is one forward pass, and one load-balancing loss covers all its
tokens.

All randomness is off: with dropout, the policy would differ from the one whose log-probabilities it is compared with.

``logp_UGKL`` is the log-probability of each code over the joint vocabulary of all levels. It is the model's own, not
restricted to what can be served; :mod:`feedgym.agents.alignment.policy_gradient` explains what this means.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from feedgym.agents.alignment.training import TrainingConfig, restored, shared_arguments
from feedgym.agents.pretrain import Progress, Sealing, _ProgressCallback, on_one_device
from feedgym.agents.processes import together
from feedgym.agents.session_model import history_columns
from feedgym.agents.sharing import part_of_mean, whole_mean
from feedgym.data.batches import Histories
from feedgym.data.whole import last_whole_checkpoint
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import Count, LearningRate, Passes
from feedgym.tokenizers.vocabulary import Vocabulary

Loss = Callable[[Tensor, Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""Computes a batch's loss and figures. Its arguments are the log-probabilities [B, G, K, L] of the codes (0 where there
is none) and a mask of existing codes. The third is the batch's rows of the columns that the method added."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig(TrainingConfig):
    """Options for training on a round's groups; a row is a group, that is, one user."""

    learning_rate: LearningRate = 5e-4
    epochs: Passes = 2
    batch_size: Count = 8


class GroupRows:
    """A round's groups, of which decoder tokens and histories are made a batch at a time.

    Attributes:
        item_ids_UGK: int32 items of each user's sessions, the logged one last; -1 after the last item.
        histories: U rows.
        columns: further inputs of the loss by name; first axis U.
    """

    def __init__(self, model: GenerativeAgent, histories: Histories, item_ids_UGK: Tensor, logged_UK: Tensor) -> None:
        longest, limit = max(item_ids_UGK.shape[2], logged_UK.shape[1]), model.config.session_length
        if longest > limit:
            raise ValueError(
                f"Sessions of {longest} items exceed the model's session_length={limit}; cut them or build a longer "
                "model."
            )
        padded = [F.pad(ids, (0, longest - ids.shape[-1]), value=-1) for ids in (item_ids_UGK, logged_UK[:, None])]
        self.item_ids_UGK = torch.cat([ids.int() for ids in padded], dim=1)
        self.model, self.histories = model, histories
        self.session_length = longest
        self.columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.item_ids_UGK)

    def batch(self, users: Tensor) -> dict[str, Tensor]:
        """The model's inputs for some users' groups and logged sessions."""
        tokens_RM = self.model.session_tokens(self.item_ids_UGK[users].transpose(0, 1).flatten(0, 1).long()).cpu()
        return {
            "input_ids": tokens_RM,
            "attention_mask": (tokens_RM != Vocabulary.pad_id).long(),
            **history_columns(self.histories.rows(users).to("cpu").trimmed()),
        }

    def collate(self, elements: Sequence[int]) -> dict[str, Any]:
        """A training batch: the model's inputs, and the further inputs of the loss."""
        users = torch.as_tensor(elements)
        return {**self.batch(users), "columns": {name: value[users] for name, value in self.columns.items()}}

    @torch.no_grad()
    def logps(self, model: Any, config: LoopConfig) -> Tensor:
        """Log-probabilities [U, G, K, L] of all groups' codes under a model, whose weights and flags stay unchanged."""
        device, was_training = next(model.parameters()).device, model.training
        model.eval()
        try:
            parts = []
            for users in torch.arange(len(self)).split(config.batch_size):
                inputs = {name: value.to(device) for name, value in self.batch(users).items()}
                with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                    parts.append(scored(model, inputs, self.session_length).logp_BGKL[:, :-1].cpu())
            return torch.cat(parts)
        finally:
            model.train(was_training)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A model's outputs for the sessions of a batch of B users, the logged one last.

    Attributes:
        logp_BGKL: log-probability of each code; 0 where there is none.
        mask_BGKL: true where there is a code.
        entropy: mean entropy of the next code over the joint vocabulary, nats; over the groups' codes.
        aux_loss: load-balancing loss of all tokens, or None.
    """

    logp_BGKL: Tensor
    mask_BGKL: Tensor
    entropy: Tensor
    aux_loss: Tensor | None


def scored(model: Any, inputs: Mapping[str, Tensor], session_length: int) -> Scored:
    """Teacher-force a batch of :class:`GroupRows`."""
    outputs = model(**inputs)
    num_users = len(inputs["profile_UF"])
    # An item is [BOS, code 1, ..., code L]: the token at each of the first L places predicts the next one.
    tokens = inputs["input_ids"].unflatten(1, (session_length, -1))
    logp = outputs.logits.unflatten(1, (session_length, -1))[:, :, :-1].float().log_softmax(-1)
    codes_RKL = tokens[:, :, 1:]
    mask_RKL = codes_RKL > Vocabulary.bos_id
    logp_RKL = logp.gather(-1, codes_RKL[..., None]).squeeze(-1).masked_fill(~mask_RKL, 0.0)
    with torch.no_grad():
        entropy_RKL = -(logp.exp() * logp).sum(-1)[:-num_users]
        entropy = entropy_RKL[mask_RKL[:-num_users]].mean()
    logp_BGKL, mask_BGKL = (value.unflatten(0, (-1, num_users)).transpose(0, 1) for value in (logp_RKL, mask_RKL))
    return Scored(
        logp_BGKL=logp_BGKL, mask_BGKL=mask_BGKL, entropy=entropy, aux_loss=getattr(outputs, "aux_loss", None)
    )


def train_groups(
    model: Any, rows: GroupRows, config: LoopConfig, loss: Loss, work: Path, progress: Progress | None = None
) -> dict[str, float]:
    """Train ``model`` in place on a round's groups, all processes of a launcher together; see :class:`GroupTrainer`."""
    with together(train_groups, model, rows, config, loss, work):
        return GroupTrainer(model, rows, config, loss, work, progress).run()


class GroupTrainer(Sealing, Trainer):
    """A method's loss on groups, plus next-token prediction on the logged sessions."""

    model: Any

    def __init__(
        self,
        model: Any,
        rows: GroupRows,
        config: LoopConfig,
        loss: Loss,
        output_dir: Path,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(config, output_dir),
            train_dataset=range(len(rows)),  # type: ignore[arg-type]
            data_collator=rows.collate,
            callbacks=[_ProgressCallback(progress)] if progress else [],
        )
        self.remove_callback(PrinterCallback)
        self.rows, self.config, self.method_loss = rows, config, loss
        self._figures: dict[str, list[float]] = defaultdict(list)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The total loss of a batch; its parts are logged."""
        columns = inputs.pop("columns")
        told = scored(model, inputs, self.rows.session_length)
        loss, figures = self.method_loss(told.logp_BGKL[:, :-1], told.mask_BGKL[:, :-1], columns)
        num_users, num_codes = len(told.logp_BGKL), told.mask_BGKL[:, -1].sum()
        ntp_loss = -told.logp_BGKL[:, -1].sum() / num_codes.clamp_min(1)
        total = part_of_mean(loss, num_users) + self.config.ntp_weight * part_of_mean(ntp_loss, num_codes)
        if told.aux_loss is not None:
            total = total + self.model.config.router_aux_loss_coef * told.aux_loss
        counts = {"ntp_loss": num_codes, "entropy": told.mask_BGKL[:, :-1].sum()}
        figures = {"loss": loss, "ntp_loss": ntp_loss, "entropy": told.entropy} | figures
        for name, value in figures.items():
            self._figures[name].append(whole_mean(value, counts.get(name, num_users)).item())
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the parts of the steps' losses in addition to what the Trainer logs."""
        if "loss" in logs:
            means = {name: sum(values) / len(values) for name, values in self._figures.items()}
            logs = {**logs, "total_loss": logs["loss"], **means}
        self._figures.clear()
        super().log(logs, start_time)

    def run(self) -> dict[str, float]:
        """Train, starting from the last complete checkpoint if there is one; return the figures of :func:`summary`."""
        checkpoint = last_whole_checkpoint(Path(str(self.args.output_dir)))
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return summary(self.state.log_history, math.ceil(len(self.rows) / self.config.batch_size))


def summary(history: Sequence[dict[str, float]], steps_per_epoch: int) -> dict[str, float]:
    """Loss, ratio and divergence of the first step, and means of all figures over the last epoch's steps."""
    steps = [entry for entry in history if "ntp_loss" in entry]
    last = steps[-steps_per_epoch:]
    kept = steps[0].keys() - {"epoch", "step", "learning_rate", "total_loss"}
    first = {f"first_{name}": steps[0][name] for name in ("loss", "ratio", "kl") if name in kept}
    return first | {name: sum(entry[name] for entry in last) / len(last) for name in sorted(kept)}


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Switch dropout off; at the end undo this and everything the Trainer does to a model besides training."""
    with restored(model):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        yield


def _arguments(config: LoopConfig, output_dir: Path) -> TrainingArguments:
    args = TrainingArguments(**shared_arguments(config, output_dir), dataloader_pin_memory=False)
    return on_one_device(args)
