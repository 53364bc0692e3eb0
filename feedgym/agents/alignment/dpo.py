"""One round of iterative preference alignment: DPO on preference pairs and next-token prediction on logged sessions.

The update of OneRec (arXiv:2502.18965, §3.3 and Algorithm 2, lines 10-12): L = L_NTP + λ·L_DPO, the reference being the
model as it is when the round starts. The DPO loss, its metrics and the training loop are TRL's DPOTrainer; what is
added here is how a session recommender enters it:

    - A pair shares one encoded history: the decoder rows are [all chosen; all rejected; all logged], and row r reads
      history r mod B. So a step is one forward pass, and one load-balancing loss covers all its tokens.
    - The reference's log-probabilities are taken once, before the first step. They are kept in the round's folder, so a
      round that was killed goes on with them.
    - Nothing random is on in policy and reference, so the first step has the margin 0: TRL switches off every
      ``nn.Dropout``, and whatever else a model does at random on sessions must be one (as HSTU's hidden actions are).

Deviations from the paper: β and λ are not published, so both weights are free; NTP is on the logged sessions of the
pairs' users and not on the whole stream; a fresh AdamW each round.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Annotated, Any, Literal, get_args

import torch
import torch.nn.functional as F
from annotated_types import Interval
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, PrinterCallback
from transformers.modeling_outputs import ModelOutput

from feedgym.agents.alignment.pairs import best_and_worst
from feedgym.agents.pretrain import Progress, Sealing, _ProgressCallback, on_one_device
from feedgym.agents.session_model import history_columns
from feedgym.data.batches import EventBatch, Preferences, ScoredSessions, TensorRows
from feedgym.data.parquet import read_batch, write_batch
from feedgym.data.whole import drop_checkpoints, is_whole, last_whole_checkpoint, seal
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import Count, CountOrZero, LearningRate, NonNegative, Passes, Positive, Ranged, Seed
from feedgym.tokenizers.vocabulary import Vocabulary

LossType = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "nca_pair", "apo_zero", "sppo_hard"]
Schedule = Literal["linear", "cosine", "constant_with_warmup"]

STEP_METRICS = {
    "dpo_loss": "loss",
    "ntp_loss": "ntp_loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
}
"""What is logged of a step: TRL's names and ours."""


@dataclass(frozen=True, kw_only=True)
class DPORoundConfig(Ranged):
    """The update of one alignment round."""

    beta: Positive = 0.1
    """How dear it is to leave the reference: the scale of the implicit rewards; IPO's tau."""
    loss_type: LossType = "sigmoid"
    """TRL's name of the preference loss; sigmoid is DPO itself. ipo and sigmoid_norm average over a session's codes,
    the others sum."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """Probability that a pair is the wrong way round, below 0.5; for the loss robust alone."""
    dpo_weight: Positive = 1.0
    """Weight of the preference loss."""
    ntp_weight: NonNegative = 0.5
    """Weight of next-token prediction on the logged sessions (mean over codes). Without it the preference loss pushes
    probability off the catalogue."""
    learning_rate: LearningRate = 3e-4
    """Peak learning rate of AdamW; no weight decay."""
    warmup_steps: CountOrZero = 0
    """Steps in which the learning rate rises from 0."""
    schedule: Schedule = "linear"
    """What the learning rate does afterwards; linear and cosine fall to 0."""
    epochs: Passes = 3
    """Passes over the pairs."""
    batch_size: Count = 16
    """Pairs a step and device."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool = False
    """Compute in bfloat16, which GPUs and some processors multiply several times as fast."""
    checkpoint_steps: Count = 200
    """Steps between checkpoints."""
    seed: Seed = 0
    """Seed of the order of the pairs."""
    margin: NonNegative = 0.0
    """Pairs whose scores differ by less are skipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("loss_type", get_args(LossType)), ("schedule", get_args(Schedule))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}.")
        if self.label_smoothing and self.loss_type != "robust":
            raise ValueError(
                f"label_smoothing does nothing to loss_type={self.loss_type!r}; choose robust or set it to 0."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogps(TensorRows):
    """Log-probabilities of the sessions of P pairs under one model.

    Attributes:
        chosen_P: float, sums over the codes of the better session.
        rejected_P: float, of the worse one.
    """

    chosen_P: Tensor
    rejected_P: Tensor


class DPO:
    """Iterated DPO: the best of each user's sessions by the reward against the worst (OneRec, Algorithm 2)."""

    title = "DPO"
    Config = DPORoundConfig

    def __init__(self, config: DPORoundConfig) -> None:
        self.config = config

    def update(
        self,
        model: GenerativeAgent,
        histories: EventBatch,
        sampled: ScoredSessions,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """See :meth:`feedgym.protocols.AlignmentMethod.update`; the figures are those of :func:`dpo_round`."""
        pairs = best_and_worst(sampled, logged_UK, self.config.margin)
        if not len(pairs):
            return {"pairs": 0}
        metrics = dpo_round(model, histories.rows(pairs.user_idx_P), pairs, self.config, work, progress)
        return {"pairs": len(pairs), **metrics}


def dpo_round(
    model: GenerativeAgent,
    histories: EventBatch,
    preferences: Preferences,
    config: DPORoundConfig,
    output_dir: Path | str,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train ``model`` in place on a round's pairs; what it was before is the reference.

    Args:
        model: the snapshot the pairs were sampled from.
        histories: P rows, row p belongs to pair p; ``preferences.user_idx_P`` is not looked at.
        preferences: P pairs. A ``logged_PK`` of -1 throughout adds nothing to next-token prediction.
        config: losses, learning rate and so on.
        output_dir: gets ``checkpoint-*`` folders; where it already has one the round goes on there, with the same
            config and pairs, and ends in the same weights.
        progress: called after each step.

    Returns:
        ``first_loss`` and ``first_margin`` of the first step (ln 2 for the loss sigmoid, and 0); ``loss``, ``ntp_loss``
        and ``grad_norm``, means over the last epoch's steps; and of all pairs under the trained model: ``accuracy``
        (share whose chosen session gained more than the rejected one), ``margin`` (beta times the difference of the
        gains, nats), ``chosen_logp`` and ``rejected_logp`` (means) and ``chosen_logp_change`` and
        ``rejected_logp_change`` since the round began (both below 0: likelihood displacement).

    Raises:
        ValueError: no pairs, pairs that do not match the histories, or sessions that are too long for the model.
    """
    output_dir = Path(output_dir)
    pairs = Pairs(model, histories, preferences)
    with lent_to_trl(model), warnings.catch_warnings(action="ignore", category=FutureWarning):
        trainer = round_trainer(model, pairs, config, output_dir, progress)
        if not is_whole(output_dir / "reference"):  # without it, what was trained since is of no use
            drop_checkpoints(output_dir)
        checkpoint = last_whole_checkpoint(output_dir)
        pairs.reference = trainer.reference_logps(output_dir / "reference", kept=checkpoint is not None)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return _summary(trainer.state.log_history, pairs.reference, trainer.pair_logps(), config)


class Pairs:
    """A round's pairs as decoder tokens, cut into batches by indexing.

    Attributes:
        tokens_3PM: int64 decoder tokens of the chosen, rejected and logged sessions.
        histories: P rows.
        reference: log-probabilities under the reference; to be set before the training.
    """

    reference: PairLogps

    def __init__(self, model: GenerativeAgent, histories: EventBatch, preferences: Preferences) -> None:
        if not len(preferences) or len(histories) != len(preferences):
            raise ValueError(
                f"{len(histories)} histories and {len(preferences)} preference pairs; give one history a pair and at "
                "least one pair."
            )
        sessions = (preferences.chosen_PK, preferences.rejected_PK, preferences.logged_PK)
        longest, limit = max(ids.shape[1] for ids in sessions), model.config.session_length
        if longest > limit:
            raise ValueError(
                f"Sessions of {longest} items exceed the model's session_length={limit}; cut them or build a longer "
                "model."
            )
        padded = [F.pad(ids, (0, longest - ids.shape[1]), value=-1) for ids in sessions]
        self.tokens_3PM = torch.stack([model.session_tokens(ids) for ids in padded]).cpu()
        self.histories = histories.to("cpu")

    def __len__(self) -> int:
        return self.tokens_3PM.shape[1]

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What TRL needs of the pairs ``rows`` to score them: decoder rows [all chosen; all rejected]."""
        tokens_RM = self.tokens_3PM[:2, rows].flatten(0, 1)
        return {
            "input_ids": tokens_RM,
            "attention_mask": (tokens_RM != Vocabulary.pad_id).long(),
            "completion_mask": (tokens_RM > Vocabulary.bos_id).long(),
            **history_columns(self.histories.rows(rows).trimmed()),
        }

    def collate(self, elements: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """A training batch: the pairs, the reference's opinion of them and the logged sessions."""
        rows = torch.tensor([element["row"] for element in elements])
        return {
            **self.batch(rows),
            "ref_chosen_logps": self.reference.chosen_P[rows],
            "ref_rejected_logps": self.reference.rejected_P[rows],
            "logged_ids": self.tokens_3PM[2, rows],
        }


class _WithLogged:
    """Stands for the model in TRL's loss: the logged sessions ride along as further rows of the same forward pass.

    Attributes:
        ntp_loss: mean cross-entropy of the logged codes; 0 where there are none.
        aux_loss: load-balancing loss of all tokens, or None.
    """

    ntp_loss: Tensor
    aux_loss: Tensor | None

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(
        self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, logged_ids: Tensor, **arguments: Any
    ) -> Any:
        learned = logged_ids > Vocabulary.bos_id
        outputs = self.model(
            input_ids=torch.cat([input_ids, logged_ids]),
            attention_mask=torch.cat([attention_mask, (logged_ids != Vocabulary.pad_id).long()]),
            labels=torch.cat([labels, logged_ids.masked_fill(~learned, -100)]),
            **arguments,
        )
        num_rows = len(input_ids)
        self.ntp_loss = -outputs.log_probs[num_rows:].sum() / learned.sum().clamp_min(1)
        self.aux_loss = outputs.aux_loss
        per_token = {name: value[:num_rows] for name, value in outputs.items() if value.ndim == 2}
        return type(outputs)(**per_token)


def round_trainer(
    model: Any, pairs: Pairs, config: DPORoundConfig, output_dir: Path, progress: Progress | None = None
) -> Any:
    """TRL's trainer for a round on a model that is :func:`lent_to_trl`; it needs ``pairs.reference`` to train."""
    from datasets import Dataset

    trainer = _trainer_class()(
        model=model,
        args=_arguments(config, output_dir),
        train_dataset=Dataset.from_dict({"row": range(len(pairs))}),
        data_collator=pairs.collate,
        processing_class=_padding_tokenizer(),
        callbacks=[_ProgressCallback(progress)] if progress else [],
    )
    trainer.remove_callback(PrinterCallback)
    if not hasattr(model, "lm_head"):
        model.forward = MethodType(_scored_forward, model)
    trainer.processing_class = None  # it spoke for the padding; a checkpoint has no use for it
    trainer.pairs, trainer.config = pairs, config
    return trainer


def _scored_forward(
    self: Any, *, labels: Tensor | None = None, fused_lm_head: bool = False, **inputs: Any
) -> ModelOutput:
    """What TRL's fused head answers, of a model whose logits are no product with an output matrix (HSTU's cosines)."""
    forward = type(self).forward
    if not fused_lm_head or labels is None:
        return forward(self, labels=labels, **inputs)
    from trl.trainer.utils import FusedCausalLMOutput

    logits, targets = forward(self, **inputs).logits[:, :-1].float(), labels[:, 1:]
    logp, mask = logits.log_softmax(-1), targets != -100
    per_token = {
        "log_probs": logp.gather(2, targets.clamp_min(0)[..., None]).squeeze(2),
        "entropy": -(logp.exp() * logp).sum(-1),
        "mean_logits": logits.detach().mean(-1),
        "is_top1": logp.argmax(-1) == targets,
    }
    return FusedCausalLMOutput(**{name: value.masked_fill(~mask, 0) for name, value in per_token.items()})


def _arguments(config: DPORoundConfig, output_dir: Path) -> Any:
    from trl import DPOConfig

    args = DPOConfig(
        output_dir=str(output_dir),
        beta=config.beta,
        loss_type=[config.loss_type],
        label_smoothing=config.label_smoothing,
        precompute_ref_log_probs=True,
        router_aux_loss_coef=0.0,  # added below for all rows, the logged ones too
        max_length=None,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=config.schedule,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),  # else bf16 asks for a GPU
        gradient_checkpointing=False,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return on_one_device(args)


@cache
def _trainer_class() -> type:
    """TRL's DPOTrainer for rounds; a function, for importing TRL takes seconds."""
    from trl import DPOTrainer

    class RoundTrainer(Sealing, DPOTrainer):
        """DPO on pairs that are tokens already, plus next-token prediction."""

        model: Any
        pairs: Pairs
        config: DPORoundConfig

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # nothing to tokenise

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # the collator brings them

        def _send_telemetry(self) -> None:
            """A run here is nobody else's business."""

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Checkpoints are for resuming alone."""

        def pair_logps(self) -> PairLogps:
            """Log-probabilities of all pairs under the present weights."""
            batches = torch.arange(len(self.pairs)).split(self.config.batch_size)
            logps = [
                torch.stack(self.compute_ref_log_probs(self.model, self._prepare_inputs(self.pairs.batch(rows))))
                for rows in batches
            ]
            chosen_P, rejected_P = torch.cat(logps, dim=1).cpu()
            return PairLogps(chosen_P=chosen_P, rejected_P=rejected_P)

        def reference_logps(self, folder: Path, kept: bool) -> PairLogps:
            """Those under the round's first weights: the model's own, or the ones a killed round left in ``folder``."""
            path = folder / "reference.safetensors"
            if not kept:
                write_batch(self.pair_logps(), path)
                seal(folder)
            reference = read_batch(PairLogps, path)
            if len(reference.chosen_P) != len(self.pairs):
                raise ValueError(
                    f"{folder.parent} holds a round of {len(reference.chosen_P)} pairs, not {len(self.pairs)}; give "
                    "each round a folder of its own."
                )
            return reference

        def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
            policy = _WithLogged(model)
            dpo_loss = super()._compute_loss(policy, inputs, return_outputs=False)
            loss = self.config.dpo_weight * dpo_loss + self.config.ntp_weight * policy.ntp_loss
            if policy.aux_loss is not None:
                loss = loss + self.model.config.router_aux_loss_coef * policy.aux_loss
            self._metrics["train"]["dpo_loss"].append(dpo_loss.item())
            self._metrics["train"]["ntp_loss"].append(policy.ntp_loss.item())
            return loss

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            metrics = self._metrics["train"]
            kept = {ours: metrics[theirs] for theirs, ours in STEP_METRICS.items() if theirs in metrics}
            self._metrics["train"] = defaultdict(list, kept)
            total = {"total_loss": logs.pop("loss")} if "loss" in logs else {}
            super().log(logs | total, start_time)

    return RoundTrainer


@contextmanager
def lent_to_trl(model: Any) -> Iterator[None]:
    """Make a model fit for TRL, and undo in the end what trainers do to it besides training.

    TRL sets the dropout rates to 0 and puts its own ``forward`` on the instance, and mixed precision another one; a
    deep copy would go on calling them with this model's weights.
    """
    rates = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    training = model.training
    try:
        if hasattr(model, "lm_head"):  # transformers finds no output matrix where it finds no input embeddings
            model._input_embed_layer = "tokens"
        if not hasattr(model, "generation_config"):
            model.generation_config = GenerationConfig()  # TRL writes its padding there
        yield
    finally:
        for module, rate in rates:
            module.p = rate
        for name in ("forward", "_original_forward", "_input_embed_layer"):
            model.__dict__.pop(name, None)
        model.train(training)


def _padding_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer TRL insists on; it is asked for the padding token and nothing else."""
    vocabulary = {"[PAD]": Vocabulary.pad_id}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[PAD]")), pad_token="[PAD]"
    )


def _summary(
    history: Sequence[dict[str, float]], before: PairLogps, after: PairLogps, config: DPORoundConfig
) -> dict[str, float]:
    """The round in figures; see :func:`dpo_round`."""
    steps = [entry for entry in history if "ntp_loss" in entry]
    last = steps[-math.ceil(len(before.chosen_P) / config.batch_size) :]
    chosen_P, rejected_P = after.chosen_P - before.chosen_P, after.rejected_P - before.rejected_P
    return {
        "first_loss": steps[0]["loss"],
        "first_margin": steps[0]["margin"],
        **{name: sum(entry[name] for entry in last) / len(last) for name in ("loss", "ntp_loss", "grad_norm")},
        "accuracy": (chosen_P > rejected_P).double().mean().item(),
        "margin": config.beta * (chosen_P - rejected_P).mean().item(),
        "chosen_logp": after.chosen_P.mean().item(),
        "rejected_logp": after.rejected_P.mean().item(),
        "chosen_logp_change": chosen_P.mean().item(),
        "rejected_logp_change": rejected_P.mean().item(),
    }
