"""Methods that learn from preferences, from scored sessions to a trained model. A subclass adds its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from feedgym.agents.alignment.contrasts import Contrasts, PreferenceLoss
from feedgym.agents.alignment.pairs import Choice, choose_pairs
from feedgym.agents.alignment.trainer import run_round
from feedgym.agents.pretrain import Progress
from feedgym.data.batches import EventBatch, ScoredSessions
from feedgym.protocols import GenerativeAgent


class PreferenceMethod(PreferenceLoss):
    """A method without a reference. An update returns ``pairs`` and the figures of a round (:func:`run_round`)."""

    def choose(self, sampled: ScoredSessions) -> Choice:
        """The sessions that are compared."""
        return choose_pairs(sampled, self.config.pairing, self.config.seed)

    def prob_win(self, sampled: ScoredSessions, choice: Choice) -> Tensor | None:
        """Probability that each session is preferred, [P, S], for methods that use it."""
        return None

    def update(
        self,
        model: GenerativeAgent,
        histories: EventBatch,
        sampled: ScoredSessions,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Update as in :meth:`feedgym.protocols.AlignmentMethod.update`."""
        return self._update(model, histories, sampled, logged_UK, work, progress)

    def _update(
        self,
        model: GenerativeAgent,
        histories: EventBatch,
        sampled: ScoredSessions,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None,
        reference: Any = None,
    ) -> dict[str, float]:
        choice = self.choose(sampled)
        if not len(choice):
            return {"pairs": 0}
        contrasts = Contrasts(
            model,
            histories.rows(choice.user_idx_P),
            choice.of(sampled.item_ids_USK),
            logged_UK[choice.user_idx_P],
            self.prob_win(sampled, choice),
            choice.of(sampled.logp_US),
        )
        return {"pairs": len(choice), **run_round(self, model, contrasts, work, progress, reference)}


class ReferencedMethod(PreferenceMethod):
    """A method that keeps the model near a reference: its own state when a round starts, or another model."""

    def update(
        self,
        model: GenerativeAgent,
        histories: EventBatch,
        sampled: ScoredSessions,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
        reference: Any = None,
    ) -> dict[str, float]:
        """Update as in :meth:`feedgym.protocols.AlignmentMethod.update`."""
        return self._update(model, histories, sampled, logged_UK, work, progress, reference)
