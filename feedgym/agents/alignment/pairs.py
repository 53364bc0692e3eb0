"""Chooses which of a user's sampled sessions to compare: pairs, one against several, and good against bad ones.

All choices are made among the user's own sessions in the order of their scores. A session that was drawn twice counts
once. Sessions with equal scores are never compared, and users with a score of NaN are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from feedgym.data.batches import Preferences, ScoredSessions, TensorRows
from feedgym.ranges import Count, NonNegative, Ranged, check_choices

Kind = Literal["best_worst", "best_random", "any"]
Unit = Literal["score", "spread"]
Rejected = Literal["worst", "random"]

BLOCK = 2**23
"""Pairs of sessions that are processed together, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class MarginConfig(Ranged):
    """Options for the difference in score that two sessions must have to be compared."""

    margin: NonNegative = 0.0
    """Sessions whose scores differ by less are not compared; those with equal scores never are."""
    margin_unit: Unit = "score"
    """Unit of the margin: the reward's scores, or the standard deviation of the user's own scores (spread)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, margin_unit=Unit)
        if self.margin_unit != "score" and not self.margin:
            raise ValueError(
                f"margin_unit={self.margin_unit!r} has no effect on margin=0; set a margin or leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class PairingConfig(MarginConfig):
    """Options for pairing sessions."""

    kind: Kind = "best_worst"
    """The best session against the worst (best_worst); the best against a random other one (best_random); or any random
    two that differ by the margin (any)."""
    num: Count = 1
    """Most pairs per user. For best_worst, the second pair is the second best against the second worst, and so on; the
    other kinds draw that many different pairs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, kind=Kind)


@dataclass(frozen=True, kw_only=True)
class ListingConfig(MarginConfig):
    """Options for the sessions that the best one is compared with."""

    kind: Rejected = "worst"
    """The worst sessions, or random ones of the rest."""
    num: Count = 3
    """R, rejected sessions per user. A user with fewer sessions that differ from the best by the margin is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, kind=Rejected)


@dataclass(frozen=True, kw_only=True)
class GradingConfig(MarginConfig):
    """Options for grading sessions as good or bad. The margin is between the worst good one and the best bad one."""

    good: Count = 1
    """Number of best sessions per user that count as good."""
    bad: Count = 1
    """Number of worst sessions per user that count as bad. A user with too few sessions is left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice(TensorRows):
    """P choices of sessions, each from one user, the better ones first.

    Attributes:
        user_idx_P: int64 row of the user.
        session_idx_PS: int64, which of the user's sampled sessions.
    """

    user_idx_P: Tensor
    session_idx_PS: Tensor

    def __len__(self) -> int:
        return len(self.user_idx_P)

    def of(self, values_US: Tensor) -> Tensor:
        """Picks from [U, S, ...] values of all sessions those of the chosen sessions, [P, S, ...]."""
        return values_US[self.user_idx_P[:, None], self.session_idx_PS]


def chosen_pairs(
    sampled: ScoredSessions, logged_UK: Tensor, config: PairingConfig = PairingConfig(), seed: int = 0
) -> Preferences:
    """Pairs of sessions of the same user, a better and a worse one by the reward.

    The default is the best against the worst (OneRec, arXiv:2502.18965, Algorithm 2, lines 7-9).

    Args:
        sampled: S sessions per user, scored.
        logged_UK: the sessions logged for these users.
        config: which pairs.
        seed: for random choices.
    """
    choice = choose_pairs(sampled, config, torch.Generator().manual_seed(seed))
    sessions_P2K, score_P2 = choice.of(sampled.item_ids_USK), choice.of(sampled.score_US)
    return Preferences(
        user_idx_P=choice.user_idx_P,
        chosen_PK=sessions_P2K[:, 0],
        rejected_PK=sessions_P2K[:, 1],
        logged_PK=logged_UK[choice.user_idx_P],
        score_chosen_P=score_P2[:, 0],
        score_rejected_P=score_P2[:, 1],
    )


def choose_pairs(sampled: ScoredSessions, config: PairingConfig, generator: torch.Generator) -> Choice:
    """The pairs of :func:`chosen_pairs` as positions, S = 2; ordered by user.

    With one generator, the users may come in parts: the random choices are those for all users at once.
    """
    ranked = _ranked(sampled, config)
    if config.kind == "any":
        better_UN, worse_UN, valid_UN = _any_two(ranked, config.num, generator)
    elif config.kind == "best_random":
        worse_UN, valid_UN = _random_rest(ranked, config.num, generator)
        better_UN = torch.zeros_like(worse_UN)
    else:
        better_UN = torch.arange(min(config.num, ranked.score_US.shape[1])).expand(len(sampled), -1)
        worse_UN = ranked.num_U1 - 1 - better_UN
        valid_UN = ranked.differ(better_UN, worse_UN)
    user_P, nth_P = valid_UN.nonzero(as_tuple=True)
    rank_P2 = torch.stack([better_UN[user_P, nth_P], worse_UN[user_P, nth_P]], dim=1)
    return ranked.choice(user_P, rank_P2)


def choose_lists(sampled: ScoredSessions, config: ListingConfig, generator: torch.Generator) -> Choice:
    """The best session of each user, and R worse ones: S = 1 + R."""
    _check_enough(sampled, 1 + config.num)
    ranked = _ranked(sampled, config)
    if config.kind == "random":
        worse_UN, valid_UN = _random_rest(ranked, config.num, generator)
    else:
        worse_UN = ranked.num_U1 - 1 - torch.arange(config.num)
        valid_UN = ranked.differ(torch.zeros_like(worse_UN), worse_UN)
    user_P = valid_UN.all(1).nonzero()[:, 0]
    return ranked.choice(user_P, torch.nn.functional.pad(worse_UN[user_P], (1, 0)))


def choose_grades(sampled: ScoredSessions, config: GradingConfig) -> Choice:
    """The best and the worst sessions of each user: S = good + bad."""
    _check_enough(sampled, config.good + config.bad)
    ranked = _ranked(sampled, config)
    good_UN = torch.arange(config.good).expand(len(sampled), -1)
    bad_UN = ranked.num_U1 - config.bad + torch.arange(config.bad)
    user_P = ranked.differ(good_UN[:, -1:], bad_UN[:, :1])[:, 0].nonzero()[:, 0]
    return ranked.choice(user_P, torch.cat([good_UN, bad_UN], dim=1)[user_P])


def prob_of_winning(sampled: ScoredSessions, choice: Choice, unit: Unit) -> Tensor:
    """Probability [P, S] that a chosen session is preferred to one of the user's S sessions, including itself.

    P(y) = mean over y' of sigmoid(r_y - r_y'), a Bradley-Terry model of the scores. They are in their own unit, or
    divided by their standard deviation over the user's sessions.
    """
    others_PS = sampled.score_US[choice.user_idx_P]
    if unit == "spread":
        others_PS = others_PS / others_PS.std(1, keepdim=True)
    own_PS = others_PS.gather(1, choice.session_idx_PS)
    return (own_PS[:, :, None] - others_PS[:, None]).sigmoid().mean(2)


class _Ranked(NamedTuple):
    """The users' sessions from the best to the worst, followed by those that do not count."""

    order_US: Tensor
    score_US: Tensor
    num_U1: Tensor
    """Number of sessions that count."""
    margin_U1: Tensor

    def differ(self, better_UN: Tensor, worse_UN: Tensor) -> Tensor:
        """True where sessions of such ranks may be compared; ranks below 0 are none."""
        score_UN, below_UN = (self.score_US.gather(1, rank.clamp_min(0)) for rank in (better_UN, worse_UN))
        gap_UN, counts_UN = score_UN - below_UN, (worse_UN >= 0) & (worse_UN < self.num_U1)
        return counts_UN & (better_UN < worse_UN) & (gap_UN > 0) & (gap_UN >= self.margin_U1)

    def choice(self, user_P: Tensor, rank_PS: Tensor) -> Choice:
        return Choice(user_idx_P=user_P, session_idx_PS=self.order_US[user_P].gather(1, rank_PS))


def _ranked(sampled: ScoredSessions, config: MarginConfig) -> _Ranked:
    score_US = sampled.score_US
    counts_US = _first_of_each(sampled.item_ids_USK) & score_US.isfinite().all(1, keepdim=True)
    ordered_US, order_US = score_US.masked_fill(~counts_US, -torch.inf).sort(dim=1, descending=True, stable=True)
    unit_U1 = score_US.std(1, keepdim=True) if config.margin_unit == "spread" else torch.ones_like(score_US[:, :1])
    return _Ranked(order_US, ordered_US, counts_US.sum(1, keepdim=True), config.margin * unit_U1)


def _first_of_each(item_ids_USK: Tensor) -> Tensor:
    """True for the first of a user's sessions that has these items in this order, [U, S]."""
    num_users, num_sessions, _ = item_ids_USK.shape
    user_US1 = torch.arange(num_users)[:, None, None].expand(-1, num_sessions, 1)
    rows = torch.cat([user_US1, item_ids_USK.cpu()], dim=2).flatten(0, 1)
    which_N = torch.unique(rows, dim=0, return_inverse=True)[1]
    first = torch.full((int(which_N.max()) + 1,), len(which_N)).scatter_reduce_(
        0, which_N, torch.arange(len(which_N)), "amin"
    )
    return (first[which_N] == torch.arange(len(which_N))).view(num_users, num_sessions)


def _random_rest(ranked: _Ranked, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ranks [U, N] of different random sessions that differ from the best, and whether there are enough."""
    num_users, num_sessions = ranked.score_US.shape
    key_US = torch.rand(num_users, num_sessions, generator=generator)
    rank_US = torch.arange(num_sessions).expand(num_users, -1)
    eligible_US = ranked.differ(torch.zeros_like(rank_US), rank_US)
    key_UN, worse_UN = key_US.masked_fill(~eligible_US, -1.0).topk(min(num, num_sessions), dim=1)
    return worse_UN, key_UN >= 0


def _any_two(ranked: _Ranked, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks [U, N] of the better and the worse session of different random pairs, and whether there are enough.

    A user has S * (S - 1) / 2 pairs, so users are processed in blocks.
    """
    num_sessions = ranked.score_US.shape[1]
    better_N, worse_N = torch.triu_indices(num_sessions, num_sessions, offset=1)
    found = []
    for users in torch.arange(len(ranked.num_U1)).split(max(1, BLOCK // max(1, len(better_N)))):
        block = _Ranked(*(column[users] for column in ranked))
        shape = (len(users), len(better_N))
        eligible_UN = block.differ(better_N.expand(shape), worse_N.expand(shape))
        key_UN = torch.rand(shape, generator=generator).masked_fill_(~eligible_UN, -1.0)
        key_UN, which_UN = key_UN.topk(min(num, len(better_N)), dim=1)
        found.append((better_N[which_UN], worse_N[which_UN], key_UN >= 0))
    better_UN, worse_UN, valid_UN = (torch.cat(parts) for parts in zip(*found, strict=True))
    return better_UN, worse_UN, valid_UN


def _check_enough(sampled: ScoredSessions, wanted: int) -> None:
    if sampled.score_US.shape[1] < wanted:
        raise ValueError(
            f"{sampled.score_US.shape[1]} sessions were drawn per user but {wanted} are needed; draw more "
            "(--rounds.num-samples) or compare fewer."
        )
