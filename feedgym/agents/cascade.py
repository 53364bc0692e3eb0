"""The cascade that end-to-end agents compete with: retrieve some items, rank them, and order a diverse few.

    retriever: scores of all I items -> the C best unseen ones       ranker: what the user would do with each of them
    value = sum over behaviours of weight * P(behaviour) + weight * minutes watched, the weights of the true reward
    re-rank, place by place: the item of greatest  value + diversity * bonus(item given those placed before)

The bonus is one of two rules over the cosines of the items' contents:
    - "mmr": minus the greatest cosine with an item placed before (Carbonell & Goldstein, SIGIR 1998);
    - "dpp": the log of the new part of the item's content, log(d^2). This is greedy MAP of a determinantal point
      process, in the incremental form of Chen, Zhang & Zhou (arXiv:1709.05135, Algorithm 1).

Sessions are sampled with the same gains, divided by a temperature. Without diversity that is Plackett-Luce over the
values. With diversity each place has its own logits, and the log-probability is still the sum of the places'
log-probabilities.

Deviations: both rules add the bonus to the value. MMR's paper weights the two by lambda and 1 - lambda, and the DPP
multiplies qualities. So ``diversity`` is in units of reward here, and 0 gives the ranker's order in both. The return to
the feed is not part of an item's value, because it responds to a whole session.

Axis letters: C candidates per user, E content width; the others are in :mod:`feedgym.data.events`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.agents.requests import existing_items, shown_mask
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.data.parquet import read_catalog, replacing, write_catalog
from feedgym.envs.truth import RewardWeights
from feedgym.plugins import BUILT_IN
from feedgym.protocols import Recommender, load
from feedgym.ranges import Count, NonNegative, Positive, Ranged

Rule = Literal["mmr", "dpp"]

BLOCK_CELLS = 2**24
"""Cells of scores, cosines and gains held at a time."""
SEEN_SCORE = -1e30
"""Score of a seen item in retrieval: it comes last, and only if nothing else is left."""
SEEN_PENALTY = 1e4
"""Amount by which a seen candidate's value is lowered."""
SMALLEST = 1e-10
"""Smallest share of an item's content that counts as new."""

CASCADE, CATALOG, RETRIEVER, RANKER = "cascade.json", "catalog.parquet", "retriever", "ranker"

SCORING = [BUILT_IN["retriever"][name] for name in ("sasrec", "hstu")]
"""Import paths of the retrievers that score all items themselves; TIGER needs its tokenizer."""
PARTS = {path.partition(":")[2]: path for path in (*SCORING, *BUILT_IN["ranker"].values())}
"""Classes that :meth:`Cascade.load` can read, by name: only feedgym's own, since a folder could name anything."""


class Retriever(Protocol):
    """Scores all items; :class:`Voted` makes a retriever of an agent that only draws sessions."""

    def scores(self, histories: EventBatch) -> Tensor:
        """Scores [U, I] on any scale, also of seen items; -inf for items that are not candidates."""
        ...


class Scorer(Protocol):
    """A ranker (:class:`feedgym.agents.ranker.Ranker`), which predicts a user's response to some items.

    ``config.tasks`` names the behaviours it predicts; ``config.watch`` is true if it predicts the watched fraction.
    """

    config: Any

    def predict(self, histories: EventBatch, item_ids_UK: Tensor, mask_UK: Tensor | None = None) -> Any:
        """Predictions ``prob_UKM``, in the order of the tasks, and ``watch_fraction_UK``."""
        ...


@dataclass(frozen=True, kw_only=True)
class CascadeConfig(Ranged):
    """Options of a cascade."""

    candidates: Count = 100
    """C, items that the retriever gives to the ranker; all if the catalogue has fewer."""
    rule: Rule = "mmr"
    """Rule for diversity: mmr (differs from the nearest item placed before) or dpp (differs from all of them
    together)."""
    diversity: NonNegative = 0.0
    """Reward for an item that is wholly unlike those before it; 0 serves in the ranker's order."""
    temperature: Positive = 0.1
    """Difference in reward that makes an item e times as likely at a place, when sessions are sampled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule={self.rule!r} is unknown; choose one of {', '.join(get_args(Rule))}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """C ranked candidates for each of U users, in the retriever's order.

    Attributes:
        item_ids_UC: int64, all different.
        mask_UC: bool, true if the retriever named the item.
        seen_UC: bool, true if the item is in the history.
        value_UC: float32, the reward that the ranker expects.
    """

    item_ids_UC: Tensor
    mask_UC: Tensor
    seen_UC: Tensor
    value_UC: Tensor


class Cascade:
    """Retriever, ranker and re-rank rule as one recommender.

    Args:
        retriever: chooses the candidates.
        ranker: values them.
        catalog: contents for diversity, durations for minutes; with dated histories, only existing items are served.
        session_length: K.
        config: candidates and rule.
        weights: weights of a candidate's value; the weight of the return is ignored.

    Raises:
        ValueError: sessions are longer than the candidates or the catalogue, or a weight needs a response that the
            ranker does not predict.
    """

    def __init__(
        self,
        retriever: Retriever,
        ranker: Scorer,
        catalog: Catalog,
        session_length: int,
        config: CascadeConfig | None = None,
        weights: RewardWeights | None = None,
    ) -> None:
        self.retriever, self.ranker, self.catalog = retriever, ranker, catalog
        self.session_length, self.config = session_length, config or CascadeConfig()
        self.weights = weights or RewardWeights()
        if not 1 <= session_length <= min(self.config.candidates, catalog.num_items):
            raise ValueError(
                f"session_length={session_length} must be in 1..{min(self.config.candidates, catalog.num_items)}, the "
                "candidates per user; ask for shorter sessions or raise candidates."
            )
        self.unit_IE = F.normalize(torch.from_numpy(catalog.content_IE).float(), dim=1)
        self.minutes_I = torch.from_numpy(catalog.duration_s_I).float() / 60
        self.weight_M = _task_weights(ranker, self.weights)

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user with their log-probabilities; seen items come last."""
        return self._sessions(histories, n, generator)

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The session with the greatest gain at each place, with its log-probability under :meth:`sample`."""
        return self._sessions(histories, 1, None)

    @torch.no_grad()
    def candidates(self, histories: EventBatch) -> Candidates:
        """The retriever's C best items for each user, unseen ones first, with the ranker's values.

        Raises:
            ValueError: the retriever names too few items for some user.
        """
        score_UI = self.retriever.scores(histories).clone()
        seen_UI = shown_mask(histories, score_UI.shape[1])
        # Seen items fill places for which no unseen item is left; -inf stays, because the retriever did not name that
        # item.
        score_UI = torch.where(seen_UI & (score_UI > -torch.inf), SEEN_SCORE, score_UI)
        exists_UI = existing_items(histories, self.catalog)
        if exists_UI is not None:
            score_UI = score_UI.masked_fill(~exists_UI.to(score_UI.device), -torch.inf)
        top = score_UI.topk(min(self.config.candidates, score_UI.shape[1]), dim=1)
        mask_UC = top.values > -torch.inf
        if len(histories) and (fewest := int(mask_UC.sum(1).min())) < self.session_length:
            raise ValueError(
                f"The retriever has {fewest} items for a user, a session {self.session_length}; let it name more, "
                "or ask for shorter sessions."
            )
        seen_UC = seen_UI.gather(1, top.indices)
        value_UC = self.values(histories, top.indices, mask_UC)
        return Candidates(item_ids_UC=top.indices, mask_UC=mask_UC, seen_UC=seen_UC, value_UC=value_UC)

    @torch.no_grad()
    def values(self, histories: EventBatch, item_ids_UC: Tensor, mask_UC: Tensor | None = None) -> Tensor:
        """Reward that the ranker expects from items, float32 [U, C]: weighted behaviours and minutes watched."""
        predicted = self.ranker.predict(histories, item_ids_UC, mask_UC)
        num_tasks = len(self.weight_M)
        value_UC = predicted.prob_UKM[..., :num_tasks].float() @ self.weight_M.to(item_ids_UC.device)
        if self.weights.watch_minutes:
            minutes_UC = predicted.watch_fraction_UK * self.minutes_I.to(item_ids_UC.device)[item_ids_UC]
            value_UC = value_UC + self.weights.watch_minutes * minutes_UC.float()
        return value_UC

    @torch.no_grad()
    def _sessions(self, histories: EventBatch, n: int, generator: torch.Generator | None) -> SessionBatch:
        width = min(self.config.candidates, self.catalog.num_items)
        # The largest arrays per user: scores of all items, or cosines among candidates and the rule's rows for each
        # sample.
        cells = max(self.catalog.num_items, width * (width + n * (self.session_length + 2)))
        size = max(1, BLOCK_CELLS // cells)
        parts = []
        for low in range(0, len(histories), size):
            block = histories.rows(slice(low, low + size))
            candidates = self.candidates(block)
            value_UC = candidates.value_UC - SEEN_PENALTY * candidates.seen_UC
            value_UC = value_UC.masked_fill(~candidates.mask_UC, -torch.inf)
            unit_UCE = self.unit_IE.to(value_UC.device)[candidates.item_ids_UC]
            place_USK, logp_US = rerank(value_UC, unit_UCE, self.session_length, self.config, n, generator)
            item_ids_USK = candidates.item_ids_UC[:, None].expand(-1, n, -1).gather(2, place_USK)
            parts.append(SessionBatch(item_ids_USK=item_ids_USK, logp_US=logp_US))
        return SessionBatch.cat(parts)

    def save(self, folder: Path | str) -> None:
        """Write the cascade and both models into a folder; each file is replaced as a whole."""
        folder = Path(folder)
        for part, model in ((RETRIEVER, self.retriever), (RANKER, self.ranker)):
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(folder / part)
        write_catalog(self.catalog, folder / CATALOG)
        manifest = {
            RETRIEVER: type(self.retriever).__name__,
            RANKER: type(self.ranker).__name__,
            "session_length": self.session_length,
            "config": asdict(self.config),
            "weights": asdict(self.weights),
        }
        with replacing(folder / CASCADE) as temporary:
            Path(temporary).write_text(json.dumps(manifest, indent=1))

    @classmethod
    def load(cls, folder: Path | str, *, retriever: Retriever | None = None, ranker: Scorer | None = None) -> Self:
        """Read a cascade from a folder.

        Args:
            folder: folder that :meth:`save` wrote.
            retriever: used instead of the saved one; needed if that is not in ``PARTS``.
            ranker: likewise.

        Raises:
            ValueError: a file is missing or damaged, or a part is of an unknown kind.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / CASCADE).read_text())
            config, weights = CascadeConfig(**manifest["config"]), RewardWeights(**manifest["weights"])
            kinds, length = {part: manifest[part] for part in (RETRIEVER, RANKER)}, int(manifest["session_length"])
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no complete cascade ({error}); save it again.") from error
        retriever = retriever or _load_part(folder / RETRIEVER, kinds[RETRIEVER])
        ranker = ranker or _load_part(folder / RANKER, kinds[RANKER])
        return cls(retriever, ranker, read_catalog(folder / CATALOG), length, config, weights)


class Voted:
    """A recommender's sampled sessions as a retriever: an item's score is the log of the number of sessions with it.

    Agents with a method ``drawn`` (:class:`feedgym.agents.generation.GenerativeRecommender`) draw with random numbers
    keyed by the request. From others, the protocol's ``sample`` draws under a fixed seed. Then a user's candidates
    depend on the user's row in the batch, as the agent's samples do.

    Args:
        agent: the recommender; its sessions must be at least as long as those of the cascade.
        num_items: I.
        num_samples: sessions per user.
        seed: for agents without ``drawn``.
    """

    def __init__(self, agent: Recommender, num_items: int, num_samples: int = 32, seed: int = 0) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be 1 or more; raise it.")
        self.agent, self.num_items, self.num_samples, self.seed = agent, num_items, num_samples, seed

    def scores(self, histories: EventBatch) -> Tensor:
        """Logs of the votes [U, I]; -inf for items in no session."""
        items_UN = self._drawn(histories).item_ids_USK.flatten(1)
        votes_UI = torch.zeros(len(items_UN), self.num_items, device=items_UN.device)
        return votes_UI.scatter_add_(1, items_UN, torch.ones_like(items_UN, dtype=votes_UI.dtype)).log()

    def _drawn(self, histories: EventBatch) -> SessionBatch:
        if hasattr(self.agent, "drawn"):
            return self.agent.drawn(histories, self.num_samples)
        generator = torch.Generator(histories.item_ids_UT.device).manual_seed(self.seed)
        return self.agent.sample(histories, self.num_samples, generator)


# ---------------------------------------------------------------- the re-rank rule


def rerank(
    value_UC: Tensor,
    unit_UCE: Tensor,
    length: int,
    config: CascadeConfig,
    n: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Order a few of the candidates, place by place.

    Args:
        value_UC: float32, -inf for items that must not be served; at least ``length`` others per user.
        unit_UCE: contents, of length 1.
        length: K.
        config: rule, its weight and the temperature.
        n: S, sessions per user.
        generator: draws the sessions; if None, each place takes the item with the greatest gain.

    Returns:
        The places' candidates, int64 [U, S, K] in 0..C-1, and the log-probabilities, float32 [U, S].
    """
    gain_USC = value_UC[:, None].repeat(1, n, 1)
    bonus = (_MMRBonus(unit_UCE) if config.rule == "mmr" else _DPPBonus(unit_UCE, n)) if config.diversity else None
    logp_US = gain_USC.new_zeros(gain_USC.shape[:2])
    places: list[Tensor] = []
    taken_USC = torch.zeros_like(gain_USC, dtype=torch.bool)
    for place in range(length):
        if bonus is not None and place:  # before the first place there is nothing to differ from
            gain_USC = value_UC[:, None] + config.diversity * bonus.after(places[-1])
        logit_USC = (gain_USC / config.temperature).masked_fill(taken_USC, -torch.inf)
        noisy_USC = logit_USC if generator is None else logit_USC + _gumbel_like(logit_USC, generator)
        chosen_US1 = noisy_USC.argmax(2, keepdim=True)
        # Log-probabilities under the softmax, also when the greatest gain is taken: what sample() would return for it.
        logp_US = logp_US + logit_USC.log_softmax(2).gather(2, chosen_US1).squeeze(2)
        taken_USC = taken_USC.scatter(2, chosen_US1, True)
        places.append(chosen_US1)
    return torch.cat(places, dim=2), logp_US


class _MMRBonus:
    """MMR's bonus: minus the greatest cosine with an item placed before."""

    def __init__(self, unit_UCE: Tensor) -> None:
        self.unit_UCE = unit_UCE
        self.nearest_USC: Tensor | None = None

    def after(self, chosen_US1: Tensor) -> Tensor:
        """The bonus [U, S, C] once another candidate is placed."""
        cosine_USC = _cosines(self.unit_UCE, chosen_US1)
        self.nearest_USC = cosine_USC if self.nearest_USC is None else torch.maximum(self.nearest_USC, cosine_USC)
        return -self.nearest_USC


class _DPPBonus:
    """The DPP's bonus: log of the squared distance d^2 of a candidate's content from the span of those placed before.

    ``basis_USCK`` holds the rows of the Cholesky factor, which grow place by place (arXiv:1709.05135, eq. 8 to 10).
    """

    def __init__(self, unit_UCE: Tensor, n: int) -> None:
        self.unit_UCE = unit_UCE
        num_users, num_candidates, _ = unit_UCE.shape
        self.new_USC = unit_UCE.new_ones(num_users, n, num_candidates)
        self.basis_USCK = unit_UCE.new_zeros(num_users, n, num_candidates, 0)

    def after(self, chosen_US1: Tensor) -> Tensor:
        """The bonus [U, S, C] once another candidate is placed."""
        width = self.basis_USCK.shape[3]
        # The new part of the chosen candidate gives the next basis vector. ``step`` is each candidate's length along it
        # (eq. 8), whose square is no longer new for that candidate (eq. 9 and 10).
        own_US1K = self.basis_USCK.gather(2, chosen_US1[..., None].expand(-1, -1, -1, width))
        known_USC = (self.basis_USCK * own_US1K).sum(3)
        scale_US1 = self.new_USC.gather(2, chosen_US1).clamp_min(SMALLEST).sqrt()
        step_USC = (_cosines(self.unit_UCE, chosen_US1) - known_USC) / scale_US1
        self.basis_USCK = torch.cat([self.basis_USCK, step_USC[..., None]], dim=3)
        self.new_USC = self.new_USC - step_USC.square()
        return self.new_USC.clamp_min(SMALLEST).log()


def _cosines(unit_UCE: Tensor, chosen_US1: Tensor) -> Tensor:
    """Cosines [U, S, C] of all candidates with a chosen one."""
    chosen_USE = unit_UCE.gather(1, chosen_US1.expand(-1, -1, unit_UCE.shape[2]))
    return chosen_USE @ unit_UCE.transpose(1, 2)


def _gumbel_like(logit_USC: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise of the same shape; the greatest sum is a draw from the softmax."""
    return -torch.empty_like(logit_USC).exponential_(generator=generator).clamp_min(1e-20).log()


# ---------------------------------------------------------------- parts


def _task_weights(ranker: Scorer, weights: RewardWeights) -> Tensor:
    """The weight of each of the ranker's tasks, float32 [M]."""
    tasks = tuple(ranker.config.tasks)
    missing = [name for name in BEHAVIOURS if getattr(weights, name) and name not in tasks]
    if weights.watch_minutes and not ranker.config.watch:
        missing.append("watch_minutes")
    if missing:
        raise ValueError(
            f"The ranker predicts {', '.join(tasks)} but not {missing[0]}, whose weight is "
            f"{getattr(weights, missing[0]):g}; train it on that too, or set the weight to 0."
        )
    return torch.tensor([getattr(weights, name) for name in tasks], dtype=torch.float32)


def _load_part(folder: Path, kind: str) -> Any:
    if kind not in PARTS:
        raise ValueError(f"{folder} was a {kind}, which cannot be read back by name; give it as {folder.name}=.")
    return load(PARTS[kind]).load(folder)
