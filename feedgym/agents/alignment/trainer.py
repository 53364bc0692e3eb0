"""One round of preference alignment on TRL's trainers: a preference loss, and next-token prediction on logged sessions.

This is the update of OneRec (arXiv:2502.18965, §3.3 and Algorithm 2, lines 10-12) with any preference loss instead of
DPO's. L = ntp_weight L_NTP + preference_weight L_preference. Losses that TRL has are TRL's; the others are the method's
own, on the log-probabilities of the same forward pass. The training loop is always TRL's. This module adds how sessions
enter it:

    - Contrasts share one encoded history (:mod:`feedgym.agents.alignment.contrasts`), and the logged sessions are added
      as further rows. So a step is one forward pass, and one load-balancing loss covers all its tokens.
    - The log-probabilities under the reference are those of sampling, if this model drew the sessions. Otherwise they
      are computed before the first step. The reference is the model itself before training, if no other is given. They
      are kept in the round's folder, so a killed round can continue with them.
    - All randomness is off in policy and reference, so the first step has the margin 0. TRL switches off every
      ``nn.Dropout``, so any other random part that a model applies to sessions must be one (as HSTU's hidden actions
      are).

Deviations from the paper: β and λ are not published, so both weights are options. NTP uses the logged sessions of the
pairs' users, not the whole stream. Each round has a new AdamW.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, PrinterCallback
from transformers.modeling_outputs import ModelOutput

from feedgym.agents.alignment.contrasts import Contrasts, Logps, Opinions, PreferenceLoss
from feedgym.agents.alignment.training import restored, shared_arguments
from feedgym.agents.layers.moe import balance_loss
from feedgym.agents.pretrain import Progress, Sealing, _ProgressCallback, on_one_device
from feedgym.agents.processes import together
from feedgym.agents.session_model import HISTORY_COLUMNS
from feedgym.agents.sharing import is_shared, part_of_mean, whole_mean
from feedgym.data.parquet import read_batch, write_batch
from feedgym.data.whole import drop_checkpoints, is_whole, last_whole_checkpoint, seal
from feedgym.tokenizers.vocabulary import Vocabulary

SCORED = ("input_ids", "attention_mask", "completion_mask", *HISTORY_COLUMNS)
"""Columns of a batch that score its sessions."""
SCORED_TOGETHER = 64
"""Contrasts scored at a time outside of training steps, where no gradients take memory."""
ASKED, SAME = 8, 1e-4
"""Number of contrasts scored to test whether the model drew the sessions. Then the largest difference, absolute in nats
and relative, at which log-probabilities count as equal."""


def run_round(
    method: PreferenceLoss,
    model: Any,
    contrasts: Contrasts,
    work: Path | str,
    progress: Progress | None = None,
    reference: Any = None,
) -> dict[str, float]:
    """Train ``model`` in place on a round's contrasts.

    Args:
        method: the loss and its options.
        model: the snapshot that the sessions were sampled from.
        contrasts: the training data.
        work: folder for the reference and checkpoints. A killed round continues from there, with the same method and
            contrasts, and ends in the same weights.
        progress: called after each step.
        reference: the model to stay near; ``model`` before training, if left out.

    Returns:
        ``first_loss`` and ``first_margin`` are those of the first step. ``loss``, ``ntp_loss`` and ``grad_norm`` are
        means over the last epoch's steps. The others are over all contrasts under the trained model. ``accuracy`` is
        the share in which every better session has a higher implicit reward than every worse one, ``margin`` the mean
        difference of these rewards. ``chosen_logp`` and ``rejected_logp`` are means, ``chosen_logp_change`` and
        ``rejected_logp_change`` their changes since the round began (both below 0: likelihood displacement).

    Raises:
        ValueError: the folder holds another round.
    """
    work = Path(work)
    with (
        together(run_round, method, model, contrasts, work),
        lent_to_trl(model),
        warnings.catch_warnings(action="ignore", category=FutureWarning),
    ):
        trainer = round_trainer(method, model, contrasts, work, progress)
        is_first = trainer.accelerator.is_main_process
        with trainer.accelerator.main_process_first():  # the others read what it writes
            if is_first and not is_whole(work / "reference"):  # without it, later training is of no use
                drop_checkpoints(work)
            checkpoint = last_whole_checkpoint(work)
            kept = checkpoint is not None or not is_first
            contrasts.logps = trainer.first_logps(work / "reference", reference, kept)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return _summary(trainer.state.log_history, method, contrasts, trainer.logps(model)) if is_first else {}


def round_trainer(
    method: PreferenceLoss, model: Any, contrasts: Contrasts, work: Path, progress: Progress | None = None
) -> Any:
    """The trainer of a round on a model that is :func:`lent_to_trl`; it needs ``contrasts.logps`` to train."""
    from datasets import Dataset

    trainer = _trainer_class(method.trainer)(
        model=model,
        args=_arguments(method, contrasts, work),
        train_dataset=Dataset.from_dict({"row": range(len(contrasts))}),
        data_collator=contrasts.collate,
        processing_class=_padding_tokenizer(),
        callbacks=[_ProgressCallback(progress)] if progress else [],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.args.train_sampling_strategy = "random"  # KTO's requires another, to find mismatched pairs
    if not hasattr(model, "lm_head"):
        model.forward = MethodType(_scored_forward, model)
    trainer.processing_class = None  # only needed for padding; checkpoints do not need it
    trainer.method, trainer.contrasts = method, contrasts
    trainer.figures = defaultdict(list)
    if trainer.args.world_size > 1:
        trainer.gather_numbers = trainer.accelerator.gather
        trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = trainer.gathered
    return trainer


class _WithLogged:
    """Replaces the model in a loss: adds the logged sessions as further rows of the same forward pass.

    Attributes:
        logp_R: log-probability of each of the other rows.
        ntp_loss: mean cross-entropy of the logged codes; 0 where there are none.
        num_codes: number of logged codes.
        aux_loss: load-balancing loss of all tokens, or None.
    """

    logp_R: Tensor
    ntp_loss: Tensor
    num_codes: Tensor
    aux_loss: Tensor | None

    def __init__(self, model: nn.Module, logged_ids: Tensor) -> None:
        self.model, self.logged_ids = model, logged_ids

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **arguments: Any) -> Any:
        learned = self.logged_ids > Vocabulary.bos_id
        mask_RM = torch.cat([attention_mask, (self.logged_ids != Vocabulary.pad_id).long()])
        with _balanced_over_processes(self.model, mask_RM) as balanced:
            outputs = self.model(
                input_ids=torch.cat([input_ids, self.logged_ids]),
                attention_mask=mask_RM,
                labels=torch.cat([labels, self.logged_ids.masked_fill(~learned, -100)]),
                **arguments,
            )
        num_rows = len(input_ids)
        self.logp_R = outputs.log_probs[:num_rows].sum(1)
        self.num_codes = learned.sum()
        self.ntp_loss = -outputs.log_probs[num_rows:].sum() / self.num_codes.clamp_min(1)
        self.aux_loss = balanced[0] if balanced else outputs.aux_loss
        per_token = {name: value[:num_rows] for name, value in outputs.items() if value.ndim == 2}
        return type(outputs)(**per_token)


@contextmanager
def _balanced_over_processes(model: nn.Module, mask_RM: Tensor) -> Iterator[list[Tensor]]:
    """Collects the load-balancing loss of a batch that processes share; TRL's is of this process's tokens alone."""
    found: list[Tensor] = []

    def collect(module: Any, inputs: Any, output: Any) -> None:
        if getattr(output, "router_logits", None):
            found.append(balance_loss(output.router_logits, module.config.num_experts_per_tok, mask_RM))

    backbone = getattr(getattr(model, "module", model), "model", None)
    if not is_shared() or backbone is None:
        yield found
        return
    handle = backbone.register_forward_hook(collect)
    try:
        yield found
    finally:
        handle.remove()


class _RoundTrainer(Sealing):
    """Extension of a TRL trainer for rounds; it comes before that trainer among the bases."""

    model: Any
    accelerator: Any
    method: PreferenceLoss
    contrasts: Contrasts
    figures: dict[str, list[float]]
    num_contrasts: int

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # nothing to tokenise

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # the collator brings them

    def _send_telemetry(self) -> None:
        """Send nothing: runs are private."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: checkpoints are only for resuming."""

    @torch.no_grad()
    def logps(self: Any, model: nn.Module, mismatched: bool = False) -> Tensor:
        """Log-probabilities [P, S] of all sessions under a model that TRL has prepared."""
        size = max(self.method.config.batch_size, SCORED_TOGETHER)
        parts = torch.arange(len(self.contrasts)).split(size)
        return torch.cat([self._logps_of(model, row_P, mismatched) for row_P in parts])

    def _logps_of(self: Any, model: nn.Module, row_P: Tensor, mismatched: bool = False) -> Tensor:
        batch = self._prepare_inputs(self.contrasts.batch(row_P, mismatched))
        with self.accelerator.autocast():
            return _scores(model, batch).log_probs.sum(1).view(-1, len(row_P)).T.cpu()

    @torch.no_grad()
    def own_logps(self: Any) -> Tensor:
        """Returns log-probabilities [P, S] of all sessions under the model to be trained.

        Those from sampling are taken if this model drew the sessions, which is tested on the first few.
        """
        known_PS = self.contrasts.sampled_logp_PS
        if known_PS is not None:
            some_P = torch.arange(min(len(known_PS), ASKED))
            logp_PS = self._logps_of(self.model, some_P)
            if torch.allclose(logp_PS, known_PS[some_P].to(logp_PS), rtol=SAME, atol=SAME):
                return known_PS.to("cpu", logp_PS.dtype)
        return self.logps(self.model)

    def first_logps(self: Any, folder: Path, reference: Any, kept: bool) -> Logps:
        """Log-probabilities at the round's start: computed now, or read from what a killed round left in ``folder``."""
        path = folder / "reference.safetensors"
        if not kept:
            own_PS = self.own_logps()
            with nullcontext(self.model) if reference is None else _ready(reference, self.args.device) as judge:
                reference_PS = own_PS if reference is None else self.logps(judge)
                mismatched_PS = self.logps(judge, mismatched=True) if self.method.trainer == "KTOTrainer" else None
            write_batch(Logps(own_PS=own_PS, reference_PS=reference_PS, mismatched_PS=mismatched_PS), path)
            seal(folder)
        logps = read_batch(Logps, path)
        if len(logps.own_PS) != len(self.contrasts):
            raise ValueError(
                f"{folder.parent} holds a round of {len(logps.own_PS)} pairs, not {len(self.contrasts)}; give each "
                "round its own folder."
            )
        return logps

    def gathered(self: Any, value: Tensor) -> Tensor:
        """Gather what TRL's figures use: the processes' numbers, or the mean of their vectors over contrasts.

        The vectors differ in length, if the shares of a batch differ by a contrast.
        """
        return whole_mean(value.float().mean(), self.num_contrasts) if value.ndim else self.gather_numbers(value)

    def _compute_loss(self: Any, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool) -> Tensor:
        self.num_contrasts = inputs["reference_SP"].shape[1]
        policy, batch = _WithLogged(model, inputs["logged_ids"]), {name: inputs[name] for name in SCORED}
        of_trl = bool(self.method.of_trl(1))
        if of_trl:
            loss = self.trl_loss(policy, batch, inputs)
        else:
            _scores(policy, batch)
        opinions = Opinions(
            logp_SP=policy.logp_R.view(inputs["reference_SP"].shape),
            reference_SP=inputs["reference_SP"],
            num_codes_SP=inputs["num_codes_SP"],
            prob_win_SP=inputs.get("prob_win_SP"),
        )
        if not of_trl:
            loss = self.method.loss(opinions).mean()
        self._note(opinions, loss=loss, ntp_loss=(policy.ntp_loss, policy.num_codes))
        config = self.method.config
        total = config.preference_weight * part_of_mean(loss, self.num_contrasts)
        total = total + config.ntp_weight * part_of_mean(policy.ntp_loss, policy.num_codes)
        if policy.aux_loss is not None:
            total = total + self.model.config.router_aux_loss_coef * policy.aux_loss
        return total

    @torch.no_grad()
    def _note(self, opinions: Opinions, *, loss: Tensor, ntp_loss: tuple[Tensor, Tensor]) -> None:
        """Keep a step's figures for :meth:`log`: means over its contrasts, and over its logged codes."""
        figures: dict[str, tuple[Tensor, Tensor | float]] = {
            "loss": (loss, self.num_contrasts),
            "ntp_loss": ntp_loss,
            "accuracy": (self.method.accuracy(opinions).mean(), self.num_contrasts),
            "margin": (self.method.margin(opinions).mean(), self.num_contrasts),
        }
        for name, (mean, count) in figures.items():
            self.figures[name].append(whole_mean(mean, count).item())

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        self._metrics["train"] = self.figures  # instead of TRL's, which clears them
        total = {"total_loss": logs.pop("loss")} if "loss" in logs else {}
        super().log(logs | total, start_time)  # type: ignore[misc]


@cache
def _trainer_class(name: str) -> type:
    """TRL's trainers for rounds, in a function because importing TRL takes seconds."""
    import trl

    class Pairwise(_RoundTrainer, trl.DPOTrainer):
        """Trainer for DPO, its relatives and methods with their own loss."""

        def trl_loss(self, policy: _WithLogged, batch: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
            chosen_P, rejected_P = inputs["reference_SP"]
            columns = {"ref_chosen_logps": chosen_P, "ref_rejected_logps": rejected_P}
            return trl.DPOTrainer._compute_loss(self, policy, batch | columns, return_outputs=False)

    class Single(_RoundTrainer, trl.KTOTrainer):
        """Trainer for KTO; its mismatched sessions are those of the next contrast, not of the next row of the batch."""

        def trl_loss(self, policy: _WithLogged, batch: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
            mismatched_RM, reference_SP = inputs["mismatched_ids"], inputs["reference_SP"]
            good_SP = torch.zeros_like(reference_SP, dtype=torch.bool)
            good_SP[: self.method.num_chosen] = True
            columns = {
                "label": good_SP.flatten(),
                "ref_logps": reference_SP.flatten(),
                "KL_input_ids": mismatched_RM,
                "KL_attention_mask": (mismatched_RM != Vocabulary.pad_id).long(),
                "KL_completion_mask": (mismatched_RM > Vocabulary.bos_id).long(),
                "ref_KL_logps": inputs["mismatched_SP"].flatten(),
            }
            return trl.KTOTrainer._compute_loss(self, policy, batch | columns, return_outputs=False)

        def _compute_kl_logps(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
            logp_R = super()._compute_kl_logps(model.model, batch)  # without logged sessions
            gap = (logp_R - batch["ref_KL_logps"]).mean()
            return logp_R + (whole_mean(gap, self.num_contrasts) - gap) if is_shared() else logp_R

    return {"DPOTrainer": Pairwise, "KTOTrainer": Single}[name]


def _arguments(method: PreferenceLoss, contrasts: Contrasts, work: Path) -> Any:
    import trl

    config, single = method.config, method.trainer == "KTOTrainer"
    args = (trl.KTOConfig if single else trl.DPOConfig)(
        **shared_arguments(config, work),
        **method.of_trl(int(contrasts.num_codes_PS.max())),
        precompute_ref_log_probs=True,
        router_aux_loss_coef=0.0,  # added by the round for all rows, the logged ones too
        max_length=None,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential" if single else "random",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return on_one_device(args)


def _scores(model: Any, batch: dict[str, Tensor]) -> Any:
    """The output of a model prepared by TRL for the columns :data:`SCORED`."""
    columns = dict(batch)
    counted = columns.pop("completion_mask").bool()
    return model(**columns, labels=batch["input_ids"].masked_fill(~counted, -100), use_cache=False, fused_lm_head=True)


def _scored_forward(
    self: Any, *, labels: Tensor | None = None, fused_lm_head: bool = False, **inputs: Any
) -> ModelOutput:
    """The output of TRL's fused head, for logits that are not a product with an output matrix (HSTU's cosines)."""
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


@contextmanager
def lent_to_trl(model: Any) -> Iterator[None]:
    """Make a model fit for TRL, and at the end undo what trainers do to it besides training.

    TRL sets the dropout rates to 0 and sets its own ``forward`` on the instance, and mixed precision sets another one.
    A deep copy would go on calling them with this model's weights.
    """
    with restored(model):
        if hasattr(model, "lm_head"):  # transformers finds no output matrix without input embeddings
            model._input_embed_layer = "tokens"
        if not hasattr(model, "generation_config"):
            model.generation_config = GenerationConfig()  # TRL writes its padding there
        yield


@contextmanager
def _ready(reference: Any, device: torch.device) -> Iterator[Any]:
    """Prepare another model on a device as TRL does; at the end restore its state and device."""
    from trl.trainer.utils import add_fused_lm_head

    home = next(reference.parameters()).device
    with lent_to_trl(reference):
        reference.eval().to(device)
        if hasattr(reference, "lm_head"):
            add_fused_lm_head(reference)
        else:
            reference.forward = MethodType(_scored_forward, reference)
        yield reference
    reference.to(home)


def _padding_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that TRL requires; only its padding token is used."""
    vocabulary = {"[PAD]": Vocabulary.pad_id}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[PAD]")), pad_token="[PAD]"
    )


def _summary(
    history: Sequence[dict[str, float]], method: PreferenceLoss, contrasts: Contrasts, logp_PS: Tensor
) -> dict[str, float]:
    """Figures of the round; see :func:`run_round`."""
    steps, opinions = [entry for entry in history if "ntp_loss" in entry], contrasts.opinions(logp_PS)
    last = steps[-math.ceil(len(contrasts) / method.config.batch_size) :]
    change_PS, num_chosen = logp_PS - contrasts.logps.own_PS, method.num_chosen
    return {
        "first_loss": steps[0]["loss"],
        "first_margin": steps[0]["margin"],
        **{name: sum(entry[name] for entry in last) / len(last) for name in ("loss", "ntp_loss", "grad_norm")},
        "accuracy": method.accuracy(opinions).mean().item(),
        "margin": method.margin(opinions).mean().item(),
        "chosen_logp": logp_PS[:, :num_chosen].mean().item(),
        "rejected_logp": logp_PS[:, num_chosen:].mean().item(),
        "chosen_logp_change": change_PS[:, :num_chosen].mean().item(),
        "rejected_logp_change": change_PS[:, num_chosen:].mean().item(),
    }
