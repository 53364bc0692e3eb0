"""Base of methods that learn from preferences: their options, the sessions they compare, and the hooks of their loss.

A *contrast* is one user's history with S sessions, the better ones first. It is a pair (S = 2), one session against
several, or good ones and bad ones. Decoder rows are [all first sessions; all second ones; ...], and row r reads history
r mod P, so each contrast's history is encoded once. The logged session of the same request is added.

Every log-probability here is the model's own, over all codes; serving restricts it to what can be served. So these
losses also move probability onto and off the catalogue. Next-token prediction on logged sessions keeps it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.agents.alignment.training import TrainingConfig
from feedgym.agents.session_model import history_columns
from feedgym.data.batches import Histories, TensorRows
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import Positive
from feedgym.tokenizers.vocabulary import Vocabulary

COUNTED_TOGETHER = 4096
"""Contrasts whose codes are counted at a time, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class UpdateConfig(TrainingConfig):
    """Options for training the model for one round on contrasts: pairs, or users with all their sessions."""

    preference_weight: Positive = 1.0
    """Weight of the method's own loss."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Logps(TensorRows):
    """Log-probabilities of the sessions of P contrasts at the start of a round: sums over codes.

    Attributes:
        own_PS: float, under the model's first weights.
        reference_PS: float, under the reference; the same where that is the model itself.
        mismatched_PS: float, under the reference, of the next contrast's sessions after this one's history; None for
            methods that do not use it.
    """

    own_PS: Tensor
    reference_PS: Tensor
    mismatched_PS: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Opinions:
    """Log-probabilities of the sessions of P contrasts under the model in training and the reference.

    Attributes:
        logp_SP: float, log-probability under the model: sum over codes, with gradients in training.
        reference_SP: float, under the reference.
        num_codes_SP: float, codes of each session.
        prob_win_SP: float, see :func:`feedgym.agents.alignment.pairs.prob_of_winning`; None for methods that do not use
            it.
    """

    logp_SP: Tensor
    reference_SP: Tensor
    num_codes_SP: Tensor
    prob_win_SP: Tensor | None = None

    @property
    def gain_SP(self) -> Tensor:
        """Gain in log-probability over the reference: log pi(y|x) - log pi_ref(y|x), nats."""
        return self.logp_SP - self.reference_SP

    @property
    def mean_SP(self) -> Tensor:
        """Mean log-probability of a code."""
        return self.logp_SP / self.num_codes_SP.clamp_min(1)


class PreferenceLoss:
    """Part that differs between methods: one of TRL's losses by its name, or a loss of the method's own.

    Attributes:
        trainer: the TRL trainer that runs it; ``KTOTrainer`` for good and bad sessions that are not paired.
        Config: its options, including those of :class:`UpdateConfig`.
    """

    title: ClassVar[str]
    Config: ClassVar[type]
    trainer: ClassVar[str] = "DPOTrainer"

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def num_chosen(self) -> int:
        """Number of better sessions of a contrast; they come first."""
        return 1

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """The arguments that make TRL compute this loss; empty if :meth:`loss` computes it.

        Args:
            num_codes: codes of the longest session.
        """
        return {}

    def loss(self, opinions: Opinions) -> Tensor:
        """The loss [P] of contrasts, if TRL does not have it."""
        raise NotImplementedError

    def rewards(self, opinions: Opinions) -> Tensor:
        """The implicit rewards [S, P] that ``margin`` and ``accuracy`` use; by default beta times the gain."""
        return self.config.beta * opinions.gain_SP

    def margin(self, opinions: Opinions) -> Tensor:
        """Mean reward of the better sessions less that of the worse ones, [P]."""
        rewards_SP = self.rewards(opinions)
        return rewards_SP[: self.num_chosen].mean(0) - rewards_SP[self.num_chosen :].mean(0)

    def accuracy(self, opinions: Opinions) -> Tensor:
        """1 where each better session has a higher reward than all worse ones, else 0, [P]."""
        rewards_SP = self.rewards(opinions)
        return (rewards_SP[: self.num_chosen].amin(0) > rewards_SP[self.num_chosen :].amax(0)).double()


class Contrasts:
    """P contrasts, of which decoder tokens and histories are made a batch at a time.

    Attributes:
        item_ids_PSK: int32 items of the sessions, the better ones first; -1 after the last item.
        logged_PK: int32 items of the logged sessions.
        histories: P rows.
        prob_win_PS: see :class:`Opinions`.
        sampled_logp_PS: log-probabilities of the sessions under the model that drew them; None if unknown.
        logps: log-probabilities at the start of the round; must be set before training.
    """

    logps: Logps

    def __init__(
        self,
        model: GenerativeAgent,
        histories: Histories,
        item_ids_PSK: Tensor,
        logged_PK: Tensor,
        prob_win_PS: Tensor | None = None,
        sampled_logp_PS: Tensor | None = None,
    ) -> None:
        if not len(item_ids_PSK) or len(histories) != len(item_ids_PSK):
            raise ValueError(
                f"{len(histories)} histories and {len(item_ids_PSK)} preference pairs; give one history per pair, at "
                "least one pair."
            )
        longest, limit = max(item_ids_PSK.shape[2], logged_PK.shape[1]), model.config.session_length
        if longest > limit:
            raise ValueError(
                f"Sessions of {longest} items exceed the model's session_length={limit}; cut them or build a longer "
                "model."
            )
        self.item_ids_PSK, self.logged_PK = (
            F.pad(ids, (0, longest - ids.shape[-1]), value=-1).int().cpu() for ids in (item_ids_PSK, logged_PK)
        )
        self.model, self.histories, self.prob_win_PS = model, histories, prob_win_PS
        self.sampled_logp_PS = sampled_logp_PS

    def __len__(self) -> int:
        return len(self.item_ids_PSK)

    @cached_property
    def num_codes_PS(self) -> Tensor:
        """Codes of each session."""
        tokens = (self._tokens(ids.flatten(0, 1)) for ids in self.item_ids_PSK.split(COUNTED_TOGETHER))
        return torch.cat([(part > Vocabulary.bos_id).sum(1).float() for part in tokens]).view(len(self), -1)

    def _tokens(self, item_ids_RK: Tensor) -> Tensor:
        """Decoder tokens of sessions, int64 [R, M]."""
        return self.model.session_tokens(item_ids_RK.long()).cpu()

    def batch(self, row_P: Tensor, mismatched: bool = False) -> dict[str, Tensor]:
        """Inputs that the model needs to score the contrasts ``row_P``, and which tokens count (``completion_mask``).

        Args:
            row_P: the contrasts.
            mismatched: score the next contrast's sessions as if they came after this contrast's history.
        """
        sessions_P = (row_P + 1) % len(self) if mismatched else row_P
        tokens_RM = self._tokens(self.item_ids_PSK[sessions_P].transpose(0, 1).flatten(0, 1))
        return {
            "input_ids": tokens_RM,
            "attention_mask": (tokens_RM != Vocabulary.pad_id).long(),
            "completion_mask": (tokens_RM > Vocabulary.bos_id).long(),
            **history_columns(self.histories.rows(row_P).to("cpu").trimmed()),
        }

    def collate(self, elements: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        """A training batch: :meth:`batch`, the logged sessions, and the constant parts of :class:`Opinions`."""
        row_P = torch.tensor([element["row"] for element in elements])
        fixed = {
            "reference_SP": self.logps.reference_PS,
            "num_codes_SP": self.num_codes_PS,
            "prob_win_SP": self.prob_win_PS,
            "mismatched_SP": self.logps.mismatched_PS,
        }
        batch = self.batch(row_P) | {"logged_ids": self._tokens(self.logged_PK[row_P])}
        if self.logps.mismatched_PS is not None:
            batch["mismatched_ids"] = self.batch(row_P, mismatched=True)["input_ids"]
        return batch | {name: value_PS[row_P].T for name, value_PS in fixed.items() if value_PS is not None}

    def opinions(self, logp_PS: Tensor) -> Opinions:
        """:class:`Opinions` of all contrasts, given a model's log-probabilities."""
        prob_win_SP = None if self.prob_win_PS is None else self.prob_win_PS.T
        return Opinions(
            logp_SP=logp_PS.T,
            reference_SP=self.logps.reference_PS.T,
            num_codes_SP=self.num_codes_PS.T,
            prob_win_SP=prob_win_SP,
        )
