"""Common parts of rankers: their tasks, the loss of labelled candidates, and predictions for the items of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers.modeling_outputs import CausalLMOutput

from feedgym.agents.card import WithCard
from feedgym.agents.layers.history import newest_events
from feedgym.agents.saved import SizedConfig, load_saved
from feedgym.agents.sharing import part_of_mean
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog
from feedgym.data.ranking import RankingBatch
from feedgym.ranges import BelowOne, CountOrZero, Few, Length, Ranged, Width, check_ranges

USERS_PER_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class RankerSizes(Ranged):
    """Options that all rankers have."""

    d_model: Width = 64
    """D, width of the model."""
    num_layers: Few = 3
    """Number of layers."""
    num_heads: Few = 2
    """H, attention heads."""
    dropout: BelowOne = 0.1
    """Dropout."""


class RankerConfig(SizedConfig):
    """Configuration of a ranker in transformers' form. ``num_items`` and ``profile_sizes`` come from the data."""

    sizes = RankerSizes

    num_items: CountOrZero = 0
    """I, items of the catalogue."""
    profile_sizes: tuple[int, ...] | list[int] = ()
    """Cardinalities of the profile's fields."""
    history_length: Length = 100
    """T, how many of the newest events of a history are read."""
    tasks: tuple[str, ...] | list[str] = ("click", "long_view", "like")
    """The behaviours to predict."""
    watch: bool = True
    """Also predict the watched fraction, up to 1."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.profile_sizes, self.tasks = tuple(self.profile_sizes), tuple(self.tasks)  # JSON brings them back as lists
        super().__post_init__(**kwargs)
        check_ranges(self)
        if unknown := [name for name in self.tasks if name not in BEHAVIOUR_IDX]:
            raise ValueError(
                f"tasks name {unknown[0]!r}, which is not one of {', '.join(BEHAVIOURS)}; choose among these."
            )
        if not self.num_outputs:
            raise ValueError("tasks is empty and watch is off, so there is nothing to predict; name a behaviour.")

    @property
    def num_outputs(self) -> int:
        """M, logits per candidate: the tasks in their order, then the watched fraction."""
        return len(self.tasks) + self.watch


class RankerPrediction(NamedTuple):
    """Predicted responses of users to their candidates.

    Attributes:
        prob_UKM: float32 probabilities of the tasks.
        watch_fraction_UK: float32 in [0, 1]; None if the ranker does not predict it.
    """

    prob_UKM: Tensor
    watch_fraction_UK: Tensor | None


class Ranker(WithCard):
    """Base of rankers: a subclass turns rows of candidates into logits (:meth:`logits_NKM`).

    The logits of a candidate must not depend on other candidates of its request, nor on its own labels.
    """

    title: ClassVar[str] = "Ranker"
    """Its name for people."""
    Config: ClassVar[Any] = RankerSizes
    """The dataclass of its options."""
    config: RankerConfig
    config_class = RankerConfig
    main_input_name = "item_ids_NK"
    accepts_loss_kwargs = False

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        if config.num_items < 1:
            raise ValueError(f"num_items={config.num_items} must be 1 or more; give the size of the catalogue.")

    @classmethod
    def for_catalog(cls, sizes: Any, catalog: Catalog, **data_fields: Any) -> Self:
        """Make an untrained ranker for a catalogue, with the facts about the items that it uses.

        Args:
            sizes: its ``Config``.
            catalog: the items.
            **data_fields: facts about the data: the other fields of its ``config_class``.
        """
        config: Any = cls.config_class
        return cls(config(**vars(sizes), **data_fields))

    def logits_NKM(self, batch: RankingBatch) -> Tensor:
        """Logits [N, K, M] of each candidate's tasks, the watched fraction last."""
        raise NotImplementedError

    def headless(self) -> Self:
        """Remove the last layer of this ranker: its "logits" become vectors [N, K, D], for a model above it."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Load the model saved in ``folder``.

        Raises:
            ValueError: a file is missing or damaged.
        """
        return load_saved(cls, folder)

    # ------------------------------------------------------------ learning

    def ranking_columns(self, batch: RankingBatch) -> dict[str, Tensor]:
        """Columns of some rows for :meth:`forward`."""
        return batch.trimmed().columns()

    def forward(self, **columns: Any) -> CausalLMOutput:
        """Compute the loss of labelled candidates, and their logits [N, K, M].

        Args:
            **columns: :meth:`feedgym.data.ranking.RankingBatch.columns`.
        """
        batch = RankingBatch.of_columns(columns)
        logits_NKM = self.logits_NKM(batch)
        loss = ranking_loss(logits_NKM, self.targets_NKM(batch), batch.mask_NK)
        return CausalLMOutput(loss=loss, logits=logits_NKM)

    @torch.no_grad()
    def mean_loss(self, rows: RankingBatch) -> float:
        """The loss of rows without dropout, computed for a block of them at a time; used for validation."""
        batch = rows.to(self.device)
        return float(ranking_loss(self.scores_UKM(rows), self.targets_NKM(batch), batch.mask_NK))

    def targets_NKM(self, batch: RankingBatch) -> Tensor:
        """float32 labels [N, K, M] in [0, 1]."""
        behaviours = batch.behaviours_NKB[..., [BEHAVIOUR_IDX[name] for name in self.config.tasks]]
        if not self.config.watch:
            return behaviours
        return torch.cat([behaviours, batch.watch_fraction_NK.clamp_max(1)[..., None]], dim=-1)

    # ------------------------------------------------------------ serving

    def predict(self, histories: EventBatch, item_ids_UK: Tensor, mask_UK: Tensor | None = None) -> RankerPrediction:
        """Predict users' responses to items shown to them now.

        Args:
            histories: U users; the newest T events of each are read.
            item_ids_UK: int64 candidates of one request per user.
            mask_UK: bool, true if a candidate is real; by default all are.
        """
        rows = RankingBatch.unlabelled(histories, item_ids_UK, mask_UK)
        prob_UKM = torch.sigmoid(self.scores_UKM(rows)).to(item_ids_UK.device)
        watch_UK = prob_UKM[..., -1] if self.config.watch else None
        return RankerPrediction(prob_UKM[..., : len(self.config.tasks)], watch_UK)

    @torch.no_grad()
    def scores_UKM(self, rows: RankingBatch) -> Tensor:
        """Float32 logits [N, K, M] of whole rows, without dropout, for a block of users at a time."""
        was_training = self.training
        self.train(False)
        try:
            blocks = range(0, len(rows), USERS_PER_BLOCK)
            score_blocks = [self._scores(rows.rows(slice(n, n + USERS_PER_BLOCK)).to(self.device)) for n in blocks]
            return (
                torch.cat(score_blocks)
                if score_blocks
                else torch.zeros(*rows.item_ids_NK.shape, self.config.num_outputs)
            )
        finally:
            self.train(was_training)

    def _scores(self, rows: RankingBatch) -> Tensor:
        return self.logits_NKM(self._newest(rows)).float()

    def _newest(self, rows: RankingBatch) -> RankingBatch:
        """The rows with the newest T events of their histories."""
        past, limit = rows.histories, self.config.history_length
        newest = newest_events(past, past.mask_UT, limit) if past.item_ids_UT.shape[1] > limit else past.trimmed()
        return replace(rows, histories=newest)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingDataset(Dataset):
    """Rows of labelled candidates to learn from; elements are row numbers.

    Attributes:
        rows: N rows.
    """

    rows: RankingBatch

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise ValueError("There are no candidates to learn from; give at least one row.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, idx: int) -> int:
        return idx

    @property
    def lengths_N(self) -> Tensor:
        """Events and candidates of each row."""
        return self.rows.histories.mask_UT.sum(1) + self.rows.mask_NK.sum(1)

    def collate(self, model: Any, idx: Sequence[int]) -> dict[str, Tensor]:
        """Make the model's training batch from the rows ``idx``."""
        return model.ranking_columns(self.rows.rows(torch.as_tensor(idx)))


def ranking_loss(logits_NKM: Tensor, target_NKM: Tensor, mask_NK: Tensor) -> Tensor:
    """Binary cross-entropy in float32 or better, averaged over real candidates and tasks."""
    logits = logits_NKM[mask_NK].to(torch.promote_types(logits_NKM.dtype, torch.float32))
    return part_of_mean(F.binary_cross_entropy_with_logits(logits, target_NKM[mask_NK]), mask_NK.sum())
