"""Methods that learn from preferences, from scored sessions to a trained model. A subclass adds its loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedgym.agents.alignment.contrasts import Contrasts, PreferenceLoss
from feedgym.agents.alignment.groups import kept_of
from feedgym.agents.alignment.pairs import Choice, choose_pairs
from feedgym.agents.alignment.trainer import run_round
from feedgym.agents.pretrain import Progress
from feedgym.data.batches import Histories, ScoredParts, ScoredSessions, TensorRows
from feedgym.protocols import GenerativeAgent


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared(TensorRows):
    """The sessions of P contrasts: all that a method keeps of a round.

    Attributes:
        user_idx_P: int64 row of the user.
        item_ids_PSK: int32 sessions, the better ones first.
        logp_PS: float32 log-probabilities under the model that drew them.
        prob_win_PS: see :meth:`PreferenceMethod.prob_win`.
    """

    user_idx_P: Tensor
    item_ids_PSK: Tensor
    logp_PS: Tensor
    prob_win_PS: Tensor | None = None

    def __len__(self) -> int:
        return len(self.user_idx_P)


class PreferenceMethod(PreferenceLoss):
    """A method without a reference. An update returns ``pairs`` and the figures of a round (:func:`run_round`).

    It reads the sampled sessions part by part and keeps only those it compares, some hundred bytes a contrast.
    """

    def choose(self, sampled: ScoredSessions, generator: torch.Generator) -> Choice:
        """The sessions that are compared; the users may come in parts."""
        return choose_pairs(sampled, self.config.pairing, generator)

    def prob_win(self, sampled: ScoredSessions, choice: Choice) -> Tensor | None:
        """Probability that each session is preferred, [P, S], for methods that use it."""
        return None

    def update(
        self,
        model: GenerativeAgent,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Update as in :meth:`feedgym.protocols.AlignmentMethod.update`."""
        return self._update(model, histories, sampled, logged_UK, work, progress)

    def _update(
        self,
        model: GenerativeAgent,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None,
        reference: Any = None,
    ) -> dict[str, float]:
        kept = self.compared(sampled)
        if not len(kept):
            return {"pairs": 0}
        contrasts = Contrasts(
            model,
            histories.at(kept.user_idx_P),
            kept.item_ids_PSK,
            logged_UK[kept.user_idx_P],
            kept.prob_win_PS,
            kept.logp_PS,
        )
        return {"pairs": len(kept), **run_round(self, model, contrasts, work, progress, reference)}

    def compared(self, sampled: ScoredSessions | ScoredParts) -> Compared:
        """The sessions that are compared, with their users' rows among all."""
        generator = torch.Generator().manual_seed(self.config.seed)

        def chosen(part: ScoredSessions, first: int) -> Compared:
            choice = self.choose(part, generator)
            return Compared(
                user_idx_P=first + choice.user_idx_P,
                item_ids_PSK=choice.of(part.item_ids_USK).int(),
                logp_PS=choice.of(part.logp_US),
                prob_win_PS=self.prob_win(part, choice),
            )

        return kept_of(sampled, chosen)


class ReferencedMethod(PreferenceMethod):
    """A method that keeps the model near a reference: its own state when a round starts, or another model."""

    def update(
        self,
        model: GenerativeAgent,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
        reference: Any = None,
    ) -> dict[str, float]:
        """Update as in :meth:`feedgym.protocols.AlignmentMethod.update`."""
        return self._update(model, histories, sampled, logged_UK, work, progress, reference)
