"""Common part of SASRec and HSTU: sequences with times, next-item losses, scores of all items, and a recommender.

A sequence is a start token and the user's events, right-padded, so one causal mask serves all. All its positions learn
in one pass: the position after event i predicts event i + 1. An event's own time and the time of the request that
follows it are both known (``begin_s``, ``request_s``). The time of a request is known when it is answered.

Deviations from the papers:
    - A learned start token comes first, so that users without a history can be served; it predicts the first item.
    - Sequences are T + K events long in training, so that the positions of generated items are trained too.
    - BCE ignores drawn negatives that are in the user's sequence; the original SASRec draws again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from feedgym.agents.card import WithCard
from feedgym.agents.plackett_luce import NOWHERE, PlackettLuce
from feedgym.agents.requests import existing_items, shown_mask
from feedgym.agents.saved import SizedConfig, load_saved
from feedgym.agents.sharing import part_of_mean
from feedgym.data.batches import EventBatch, Histories, SessionBatch, TensorRows
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog
from feedgym.data.sessions import LoggedHistories
from feedgym.ranges import BelowOne, Count, CountOrZero, Few, Length, Positive, Ranged, Width, check_ranges

Loss = Literal["bce", "ce", "sampled_softmax"]
Similarity = Literal["cosine", "dot"]

IGNORED = -100
"""Label of positions that learn nothing."""
ACCIDENTAL_HIT = -5e4
"""Score of a drawn negative that is the positive itself."""
SEEN_PENALTY = 1e4
"""Amount by which seen items score lower: they come last, and only if nothing else is left."""
ROWS_ALIKE = 32
"""Sequences of similar length that are encoded together, to reduce padding."""
BLOCK_CELLS = 2**24
"""Scores of users, samples and items held at a time."""


@dataclass(frozen=True, kw_only=True)
class SequenceSizes(Ranged):
    """Sizes and losses shared by next-item models."""

    d_model: Width = 50
    """D, width of the model."""
    num_layers: Few = 2
    """Blocks."""
    num_heads: Few = 1
    """H, attention heads."""
    dropout: BelowOne = 0.2
    """Dropout."""
    loss: Loss = "sampled_softmax"
    """bce, ce (over all items) or sampled_softmax."""
    num_negatives: Count = 128
    """Negatives drawn per position, uniformly over all items, for bce and sampled_softmax; the original SASRec draws
    1."""
    similarity: Similarity = "cosine"
    """Similarity of user and item vectors: cosine (both of length 1) or dot."""
    temperature: Positive = 0.05
    """Divides the similarity; the original SASRec uses 1 with dot."""
    only_positives: bool = True
    """Read only events that are items taken; otherwise all that were examined."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in {"loss": Loss, "similarity": Similarity}.items():
            if getattr(self, name) not in get_args(kinds):
                given = getattr(self, name)
                raise ValueError(f"{name}={given!r} is unknown; choose one of {', '.join(get_args(kinds))}.")


class SequenceConfig(SizedConfig):
    """Configuration of a next-item model for transformers. ``num_items`` comes from the catalogue."""

    sizes = SequenceSizes

    history_length: Length = 200
    """T, how many of the newest events of a history are read."""
    session_length: Length = 10
    """K, the most items of a session."""
    num_items: CountOrZero = 0
    """I, items of the catalogue."""
    positives: tuple[str, ...] | list[str] = BEHAVIOURS[:-1]
    """An event with any of these behaviours is an item taken; only these are predicted."""
    initializer_range: Positive = 0.02
    """Standard deviation of item embeddings."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.positives = tuple(self.positives)  # JSON turns them into lists
        super().__post_init__(**kwargs)
        check_ranges(self)

    @property
    def num_positions(self) -> int:
        """Positions of the longest sequence: the start, T events and K generated ones."""
        return 1 + self.history_length + self.session_length


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences(TensorRows):
    """U sequences of Z = 1 + T positions: the start, then events, oldest first; right-padded.

    Attributes:
        item_ids_UZ: int64; I at the start, 0 where padded.
        behaviours_UZB: float32.
        watch_fraction_UZ: float32.
        begin_s_UZ: float64 time of the event, seconds; the zero is arbitrary for each user.
        request_s_UZ: float64 time of the next event or of the request, seconds.
        mask_UZ: bool.
        next_UZ: int64 the next item, ``IGNORED`` where it is not predicted.
        profile_UF: int64.
    """

    item_ids_UZ: Tensor
    behaviours_UZB: Tensor
    watch_fraction_UZ: Tensor
    begin_s_UZ: Tensor
    request_s_UZ: Tensor
    mask_UZ: Tensor
    next_UZ: Tensor
    profile_UF: Tensor

    def __len__(self) -> int:
        return len(self.item_ids_UZ)

    @property
    def length_U(self) -> Tensor:
        """Real positions."""
        return self.mask_UZ.sum(1)

    @classmethod
    def of(cls, histories: EventBatch, config: SequenceConfig, limit: int) -> Self:
        """The sequences of histories, each with its ``limit`` newest events."""
        positive_UT = histories.behaviours_UTB[..., [BEHAVIOUR_IDX[name] for name in config.positives]].bool().any(-1)
        kept_UT = histories.mask_UT & (positive_UT | (not config.only_positives))
        # The newest events that count; a stable sort of "dropped" moves them to the front in their order.
        kept_UT &= kept_UT.sum(1, keepdim=True) - kept_UT.cumsum(1) < limit
        order_UT = (~kept_UT).int().argsort(dim=1, stable=True)[:, :limit]
        mask_UT = kept_UT.gather(1, order_UT)
        gap_s_UT = histories.gap_s_UT.masked_fill(~histories.mask_UT, 0).double()
        # A history has gaps to the next event, and from the last one to the request. Their running sum is the time of
        # each event, with the first one at 0, also if events in between were dropped.
        now_s_U1 = gap_s_UT.sum(1, keepdim=True)
        begin_s_UT = torch.where(mask_UT, (gap_s_UT.cumsum(1) - gap_s_UT).gather(1, order_UT), now_s_U1)
        begin_s_UZ = torch.cat([begin_s_UT[:, :1], begin_s_UT], dim=1)

        def sorted_(column: Tensor) -> Tensor:
            moved = column.gather(1, order_UT).masked_fill(~mask_UT, 0)
            return F.pad(moved, (1, 0))

        items_UZ = sorted_(histories.item_ids_UT)
        target_UT = items_UZ[:, 1:].masked_fill(~(mask_UT & positive_UT.gather(1, order_UT)), IGNORED)
        items_UZ[:, 0] = config.num_items
        behaviours = [sorted_(column) for column in histories.behaviours_UTB.unbind(2)]
        return cls(
            item_ids_UZ=items_UZ,
            behaviours_UZB=torch.stack(behaviours, dim=2),
            watch_fraction_UZ=sorted_(histories.watch_fraction_UT),
            begin_s_UZ=begin_s_UZ,
            request_s_UZ=torch.cat([begin_s_UZ[:, 1:], now_s_U1], dim=1),
            mask_UZ=F.pad(mask_UT, (1, 0), value=True),
            next_UZ=F.pad(target_UT, (0, 1), value=IGNORED),
            profile_UF=histories.profile_UF,
        )

    def trimmed(self) -> Self:
        """Drops the positions that are padding in every row."""
        longest = int(self.length_U.max())
        columns = {f.name: getattr(self, f.name) for f in fields(self) if "Z" in f.name.rsplit("_", 1)[-1]}
        return replace(self, **{name: column[:, :longest] for name, column in columns.items()})

    def positions(self, idx_UQ: Tensor) -> Sequences:
        """The same users with the positions at ``idx_UQ``."""
        idx_UQB = idx_UQ[..., None].expand(-1, -1, self.behaviours_UZB.shape[2])
        columns = {
            f.name: getattr(self, f.name).gather(1, idx_UQ)
            for f in fields(self)
            if f.name not in ("behaviours_UZB", "profile_UF")
        }
        return replace(self, behaviours_UZB=self.behaviours_UZB.gather(1, idx_UQB), **columns)


class SequenceModel(WithCard):
    """Base of next-item models: a subclass turns sequences into vectors (:meth:`encode`)."""

    config: SequenceConfig
    config_class = SequenceConfig
    main_input_name = "item_ids_UZ"
    accepts_loss_kwargs = False

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        if config.num_items < 1:
            raise ValueError(f"num_items={config.num_items} must be 1 or more; give the size of the catalogue.")
        self.items = nn.Embedding(config.num_items + 1, config.d_model)
        """Embeddings of the items, and of the start in the last row."""

    def encode(self, sequences: Sequences) -> Tensor:
        """Vectors [U, Z, D] that predict the item after each position."""
        raise NotImplementedError

    @classmethod
    def for_log(cls, sizes: Any, *, profile_sizes: tuple[int, ...], has_time: bool, **data_fields: Any) -> Self:
        """Make an untrained model that fits a log.

        Args:
            sizes: its ``Config``.
            profile_sizes: cardinalities of the profile's fields, for models that read profiles.
            has_time: true if the log has real times, for models that read them.
            **data_fields: ``num_items``, ``positives``, ``history_length`` and ``session_length``.
        """
        config: Any = cls.config_class
        return cls(config(**vars(sizes), **data_fields))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Load the model saved in ``folder``.

        Raises:
            ValueError: a file is missing or damaged.
        """
        return load_saved(cls, folder)

    # ------------------------------------------------------------ scores

    def vectors(self, x: Tensor) -> Tensor:
        """Vectors for the dot product: unit vectors for cosine (eps 1e-6), else the vectors themselves."""
        return F.normalize(x, dim=-1, eps=1e-6) if self.config.similarity == "cosine" else x

    def item_logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., I] of all items after positions with vectors [..., D]."""
        return (self._queries(hidden) @ self.item_vectors(slice(self.config.num_items)).T).float()

    def item_vectors(self, item_ids: Tensor | slice) -> Tensor:
        """Vectors [..., D] of items, whose products with those of positions are logits."""
        return self.vectors(self.items.weight[item_ids])

    def _queries(self, hidden: Tensor) -> Tensor:
        """Vectors [..., D] whose products with item vectors are logits; dividing the logits would cost far more."""
        return self.vectors(hidden) / self.config.temperature

    @torch.no_grad()
    def scores(self, histories: EventBatch) -> Tensor:
        """Logits [U, I] of the next item, also for seen items; float32 on the histories' device.

        Args:
            histories: U users; the newest T events of each are read.
        """
        was_training = self.training
        self.train(False)
        # Users of similar length are encoded together, because padding costs as much as events; then order is restored.
        order_U = histories.mask_UT.sum(1).argsort(stable=True)
        try:
            logit_blocks = [self._scores(histories.rows(user_B).trimmed()) for user_B in order_U.split(ROWS_ALIKE)]
            return torch.cat(logit_blocks).to(histories.item_ids_UT.device)[order_U.argsort()]
        finally:
            self.train(was_training)

    def _scores(self, histories: EventBatch) -> Tensor:
        sequences = Sequences.of(histories.to(self.device), self.config, self.config.history_length)
        hidden_UZD = self.encode(sequences)
        return self.item_logits(hidden_UZD[torch.arange(len(sequences)), sequences.length_U - 1])

    # ------------------------------------------------------------ learning

    def sequence_batch(self, histories: EventBatch) -> dict[str, Tensor]:
        """Inputs of :meth:`forward` to learn whole sequences; the longest have T + K events."""
        limit = self.config.history_length + self.config.session_length
        return vars(Sequences.of(histories.trimmed(), self.config, limit)).copy()

    def forward(self, **sequences: Any) -> CausalLMOutput:
        """The mean loss of all positions with a next item.

        Args:
            **sequences: the columns of :class:`Sequences`.
        """
        batch = Sequences(**sequences)
        order_U = batch.length_U.argsort(stable=True)
        hidden = [self._foretelling(batch.rows(user_B).trimmed()) for user_B in order_U.split(ROWS_ALIKE)]
        loss = self.next_item_loss(torch.cat(hidden), batch.rows(order_U))
        return CausalLMOutput(loss=part_of_mean(loss, (batch.next_UZ >= 0).sum()))

    def _foretelling(self, sequences: Sequences) -> Tensor:
        """Vectors [N, D] of the positions with a next item."""
        at_N = (sequences.next_UZ >= 0).flatten().nonzero()[:, 0]
        return self.encode(sequences).flatten(0, 1).index_select(0, at_N)  # its gradient is faster than that of a mask

    def next_item_loss(self, hidden_ND: Tensor, sequences: Sequences) -> Tensor:
        """The configured loss, averaged over positions; negatives come from torch's own generator.

        Args:
            hidden_ND: vectors of the N positions with a next item, users in order.
            sequences: the sequences of these users.
        """
        at_UZ = sequences.next_UZ >= 0
        target_N = sequences.next_UZ[at_UZ]
        if self.config.loss == "ce":
            return F.cross_entropy(self.item_logits(hidden_ND), target_N)
        logits_NS, negative_NS = self._with_negatives(hidden_ND, target_N)
        if self.config.loss == "bce":
            return bce(logits_NS, self._taken(sequences, at_UZ, negative_NS))
        return sampled_softmax(logits_NS, negative_NS == target_N[:, None])

    def _with_negatives(self, hidden_ND: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, 1 + S] of each position's next item and drawn negatives, and the negatives [N, S]."""
        shape = (len(target_N), self.config.num_negatives)
        negative_NS = torch.randint(self.config.num_items, shape, device=target_N.device)
        return self._some_logits(hidden_ND, torch.cat([target_N[:, None], negative_NS], dim=1)), negative_NS

    def _some_logits(self, hidden_ND: Tensor, item_ids_NS: Tensor) -> Tensor:
        """Float32 logits [N, S] of S items per position."""
        num_items = self.config.num_items
        if num_items <= item_ids_NS.shape[1]:  # a matrix [N, I] has no more cells
            return self.item_logits(hidden_ND).gather(1, item_ids_NS)
        items_XD = self.items.weight[:num_items]
        if item_ids_NS.numel() < num_items:  # then a third of the items or more are not asked for
            item_id_X, item_ids_NS = item_ids_NS.unique(return_inverse=True)
            items_XD = F.embedding(item_id_X, items_XD)
        return ChosenProducts.apply(self._queries(hidden_ND).float(), self.vectors(items_XD).float(), item_ids_NS)

    def _taken(self, sequences: Sequences, at_UZ: Tensor, negative_NS: Tensor) -> Tensor:
        """True where the user's sequence holds the negative, bool [N, S]."""
        held_UZ = sequences.item_ids_UZ.masked_fill(~sequences.mask_UZ, self.config.num_items).sort(dim=1).values
        held_NZ = held_UZ[at_UZ.nonzero()[:, 0]]
        place_NS = torch.searchsorted(held_NZ, negative_NS).clamp_max(held_NZ.shape[1] - 1)
        return held_NZ.gather(1, place_NS) == negative_NS

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Truncated normal embeddings; Xavier's uniform matrices without bias (Meta's code for SASRec and HSTU)."""
        if isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)


class ChosenProducts(torch.autograd.Function):
    """Products [N, S] of N vectors with S of I item vectors each, without a copy of any item vector.

    Gathering S vectors per position, or taking all products and gathering from those, would be limited by memory.
    """

    @staticmethod
    def forward(ctx: Any, query_ND: Tensor, items_ID: Tensor, item_ids_NS: Tensor) -> Tensor:
        """The products."""
        ctx.save_for_backward(query_ND, items_ID, item_ids_NS)
        num_rows, num_chosen = item_ids_NS.shape
        begin_N1 = torch.arange(0, num_rows * num_chosen + 1, num_chosen, device=item_ids_NS.device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            zeros = query_ND.new_zeros(item_ids_NS.numel())
            chosen_NI = torch.sparse_csr_tensor(
                begin_N1, item_ids_NS.flatten(), zeros, (num_rows, len(items_ID)), check_invariants=False
            )
        return torch.sparse.sampled_addmm(chosen_NI, query_ND, items_ID.T).values().view(num_rows, num_chosen)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        """Gradients of both kinds of vectors: weighted sums of the other kind."""
        query_ND, items_ID, item_ids_NS = ctx.saved_tensors
        # Every gradient is a weighted sum of vectors of the other kind, and an embedding bag sums them without a copy.
        # A position's cells are already adjacent; an item's become so by sorting.
        query_grad_ND = F.embedding_bag(item_ids_NS, items_ID, per_sample_weights=grads[0], mode="sum")
        item_C = item_ids_NS.flatten()
        order_C = item_C.int().argsort(stable=True)  # cells by item; sorting int64 would take three times as long
        count_I = item_C.bincount(minlength=len(items_ID))
        items_grad_ID = F.embedding_bag(
            order_C // item_ids_NS.shape[1],
            query_ND,
            count_I.cumsum(0) - count_I,
            per_sample_weights=grads[0].flatten()[order_C],
            mode="sum",
        )
        return query_grad_ND, items_grad_ID, None


def bce(logits_NS: Tensor, ignored_NS: Tensor) -> Tensor:
    """-log σ(positive) - mean over negatives of log(1 - σ(negative)), averaged over positions (SASRec, eq. 7).

    Args:
        logits_NS: [N, 1 + S], the positive first.
        ignored_NS: bool [N, S], negatives that do not count.
    """
    counts_NS = (~ignored_NS).float()
    negative_N = (F.softplus(logits_NS[:, 1:]) * counts_NS).sum(1) / counts_NS.sum(1).clamp_min(1)
    return (F.softplus(-logits_NS[:, 0]) + negative_N).mean()


def sampled_softmax(logits_NS: Tensor, hit_NS: Tensor) -> Tensor:
    """Cross-entropy of the positive among itself and its negatives, averaged over positions.

    Args:
        logits_NS: [N, 1 + S], the positive first.
        hit_NS: bool [N, S], negatives that are the positive.
    """
    logits_NS = torch.cat([logits_NS[:, :1], logits_NS[:, 1:].masked_fill(hit_NS, ACCIDENTAL_HIT)], dim=1)
    return -logits_NS.log_softmax(1)[:, 0].mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceDataset(Dataset):
    """Whole histories as training data, one user per row; elements are row numbers.

    Attributes:
        histories: N users.
    """

    histories: Histories | LoggedHistories

    def __post_init__(self) -> None:
        if len(self.histories) == 0:
            raise ValueError("There is no history to train on; give at least one.")

    def __len__(self) -> int:
        return len(self.histories)

    def __getitem__(self, idx: int) -> int:
        return idx

    @property
    def lengths_N(self) -> Tensor:
        """Events of each history."""
        return self.histories.lengths_N

    def collate(self, model: Any, idx: Sequence[int]) -> dict[str, Tensor]:
        """The model's training batch of the users ``idx``."""
        return model.sequence_batch(self.histories.rows(torch.as_tensor(idx)))


class ScoreRecommender:
    """A next-item model as a recommender: sessions are drawn from its logits item by item without replacement.

    The model runs once per session (Plackett-Luce), so items do not depend on those before them in the session.

    Args:
        model: gives ``scores``.
        session_length: K; the model's own if left out.
        catalog: with dated histories, serve only items that exist by the catalogue's times.
    """

    def __init__(
        self, model: SequenceModel, session_length: int | None = None, *, catalog: Catalog | None = None
    ) -> None:
        self.model, self.session_length = model, session_length or model.config.session_length
        self.catalog = catalog
        if self.session_length > model.config.num_items:
            raise ValueError(
                f"session_length={self.session_length} exceeds the {model.config.num_items} items, but a session "
                "holds no item twice; ask for shorter sessions."
            )

    def scores(self, histories: EventBatch) -> Tensor:
        """Logits [U, I], also for seen items."""
        return self.model.scores(histories)

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user with their log-probabilities; seen items come last."""
        return self._sessions(histories, n, lambda choice: choice.sample(n, generator))

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The K best unseen items, which is the likeliest session, with its log-probability."""
        return self._sessions(histories, 1, lambda choice: choice.mode()[:, None])

    def _sessions(self, histories: EventBatch, n: int, choose: Any) -> SessionBatch:
        size = max(1, BLOCK_CELLS // (n * self.model.config.num_items))
        parts = []
        for low in range(0, len(histories), size):
            block = histories.rows(slice(low, low + size))
            score_UI = without_seen(self.scores(block), block)
            exists_UI = existing_items(block, self.catalog, self.session_length)
            if exists_UI is not None:
                score_UI = score_UI.masked_fill(~exists_UI.to(score_UI.device), NOWHERE)
            # Drawn once per user, but valued once per sample: PlackettLuce's log_prob needs one row of logits per
            # session.
            choice = PlackettLuce(score_UI, self.session_length)
            items_USK = choose(choice)
            many = PlackettLuce(choice.logits_UI.repeat_interleave(n, dim=0), self.session_length)
            logp_US = many.log_prob(items_USK.flatten(0, 1)).view(-1, n).clamp_max(0)
            parts.append(SessionBatch(item_ids_USK=items_USK, logp_US=logp_US))
        return SessionBatch.cat(parts)


def without_seen(score_UI: Tensor, histories: EventBatch) -> Tensor:
    """Scores with items in the history far below all others."""
    return score_UI - SEEN_PENALTY * shown_mask(histories, score_UI.shape[1])
