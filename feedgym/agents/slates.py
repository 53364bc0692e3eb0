"""Networks that choose slates, for reinforcement learning; no RLlib in them, so that a trained agent needs none.

All read the history through :class:`HistoryEncoder` and score items through :class:`ItemScores`: a query vector against
item vectors, which are linear in what the catalogue tells, plus a bias an item. Beside this deep part stands a wide one
(Cheng et al., arXiv:1606.07792), linear in the items' features: a weight for each value of each profile field, and
what the history holds of the feature (:class:`Wide`). Where the answers are mostly noise, a deep part alone learns the
noise before it has found out which profile field speaks of which items. They are general: any catalogue, any lengths,
any profile.

=====================  ==============================================  ==============================================
network                trained by                                      chooses
=====================  ==============================================  ==============================================
:class:`SlatePolicy`   PPO, BC, MARWIL                                 Plackett-Luce over one score an item
:class:`SlateQ`        Q-learning of decomposed slates                 the K items of greatest choice times value
:class:`ItemQ`         DQN on one item a step                          place by place the item of greatest value
:class:`ProtoPolicy`   SAC, CQL                                        the items nearest to points of content space
=====================  ==============================================  ==============================================

Deviations of :class:`SlateQ` from Ie et al. (arXiv:1905.12767): several items of a session may be consumed here, so the
choice model is fitted to the share of each item among those clicked, and the decomposed value is regressed on the
value of the whole slate, because the reward of the single item is not observed. Values are relative to that of
choosing nothing, which is not 0 in a feed that rewards the return; the top-K rule (their eq. 21) uses the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from feedgym.agents.layers.history import LOG_SECONDS_SCALE, ages_s
from feedgym.agents.plackett_luce import NOWHERE, PlackettLuce
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, FloatArray
from feedgym.envs.features import item_points, nearest_items

PER_EVENT = ("history_items", "history_watch_fraction", "history_gap_s", "history_mask")
NUM_BEHAVIOURS = len(BEHAVIOURS)
MAX_TOPICS = 128
"""Topic tags become one-hot features of the items up to so many."""


@dataclass(frozen=True, kw_only=True)
class SlateNetConfig:
    """Size of the networks."""

    width: int = 32
    """Width of item and query vectors."""
    heads: int = 4
    """Weighted means of the history that are taken."""
    hidden: int = 64
    """Width of the layers between."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateWorld:
    """What the networks are built for.

    Attributes:
        features_IF: float32, what is known of the items, each column of mean 0 and deviation 1 or a flag.
        points_IE: float32, where the items lie for :class:`ProtoPolicy`.
        profile_sizes: cardinalities of the profile fields.
        session_length: K.
        history_length: T.
    """

    features_IF: FloatArray
    points_IE: FloatArray
    profile_sizes: tuple[int, ...]
    session_length: int
    history_length: int

    @classmethod
    def of(
        cls, catalog: Catalog, profile_sizes: tuple[int, ...], session_length: int, history_length: int, axes: int = 20
    ) -> SlateWorld:
        """The world of a catalogue; points have ``axes`` principal components, or as many as there are."""
        if session_length > catalog.num_items:
            raise ValueError(
                f"Sessions of {session_length} different items need more than the catalogue's {catalog.num_items}; "
                "lower session_length."
            )
        return cls(
            features_IF=item_features(catalog),
            points_IE=item_points(catalog, proto_axes(catalog, axes)).astype(np.float32),
            profile_sizes=tuple(int(size) for size in profile_sizes),
            session_length=session_length,
            history_length=history_length,
        )

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.features_IF)


def proto_axes(catalog: Catalog, most: int) -> int:
    """Principal components of the content that points have, at most so many.

    Those along which nothing varies are none: scaled up, their rounding errors would tell items apart.
    """
    content_IE = catalog.content_IE - catalog.content_IE.mean(axis=0, dtype=np.float64)
    return max(1, min(most, int(np.linalg.matrix_rank(content_IE))))


def item_features(catalog: Catalog) -> FloatArray:
    """Content, log duration and, where topics are few, the topic tag of every item: float32 [I, F]."""
    numbers = np.column_stack([catalog.content_IE, np.log(catalog.duration_s_I)])
    spread_F = numbers.std(axis=0)
    numbers = (numbers - numbers.mean(axis=0)) / np.where(spread_F > 1e-6, spread_F, 1)
    if 1 < catalog.num_topics <= MAX_TOPICS:
        flags = catalog.topic_I[:, None] == np.arange(catalog.num_topics)
        numbers = np.column_stack([numbers, flags])
    return numbers.astype(np.float32)


# ---------------------------------------------------------------- observations


def flat_observation(observation: Mapping[str, NDArray]) -> FloatArray:
    """Observations of U users as one vector each, float32 [U, 11 T + F + 1]; ids below 2^24 keep their value.

    The K places of a session under construction (:class:`feedgym.envs.wrappers.ItemByItem`) are at the end.
    """
    columns = [observation[name] for name in PER_EVENT]
    columns += [observation["history_behaviours"].reshape(len(columns[0]), -1), observation["profile"]]
    columns.append(np.reshape(observation["time_of_day"], (len(columns[0]), 1)))
    columns += [observation["slate"]] if "slate" in observation else []
    return np.concatenate(columns, axis=1).astype(np.float32)


def read_histories(observation: Tensor | Mapping[str, Tensor], history_length: int) -> EventBatch:
    """Batched observations, as the environment gives them or flat, as histories."""
    if isinstance(observation, Tensor):
        observation = _unflat(observation, history_length)
    return EventBatch(
        item_ids_UT=observation["history_items"].long(),
        behaviours_UTB=observation["history_behaviours"].float(),
        watch_fraction_UT=observation["history_watch_fraction"].float(),
        gap_s_UT=observation["history_gap_s"].float(),
        mask_UT=observation["history_mask"] > 0.5,
        profile_UF=observation["profile"].long(),
        time_of_day_U=observation["time_of_day"].float().reshape(len(observation["profile"])),
    )


def _unflat(flat_UX: Tensor, length: int) -> dict[str, Tensor]:
    per_event = (len(PER_EVENT) + NUM_BEHAVIOURS) * length
    sizes = [length] * len(PER_EVENT) + [NUM_BEHAVIOURS * length, flat_UX.shape[1] - per_event - 1, 1]
    names = (*PER_EVENT, "history_behaviours", "profile", "time_of_day")
    parts = dict(zip(names, flat_UX.split(sizes, dim=1), strict=True))
    parts["history_behaviours"] = parts["history_behaviours"].reshape(len(flat_UX), length, NUM_BEHAVIOURS)
    return parts


# ---------------------------------------------------------------- parts


class Wide(nn.Module):
    """What speaks for each feature of items: the profile, and the features of what the user met lately; 0 at first.

    A sum over the profile fields of a vector a value, and over the events of their items' features, each times a number
    that tells what the user did with it and when.

    Args:
        values_IX: what the items have of each feature.
        profile_sizes: cardinalities of the F fields.
        hidden: width of the layer between an event and its number.
    """

    values_IX: Tensor
    first_F: Tensor

    def __init__(self, values_IX: Tensor, profile_sizes: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        first_F = torch.tensor([0, *profile_sizes], dtype=torch.int64).cumsum(0)[:-1]
        self.register_buffer("values_IX", values_IX, persistent=False)
        self.register_buffer("first_F", first_F, persistent=False)
        self.profile = nn.Embedding(sum(profile_sizes), values_IX.shape[1])
        self.event = nn.Sequential(nn.Linear(EVENT_NUMBERS, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        for parameter in (self.profile.weight, *self.event[2].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, histories: EventBatch) -> Tensor:
        """Weights of the features [U, X]."""
        mask_UT = histories.mask_UT.float()
        weight_UT = self.event(event_numbers(histories))[..., 0] * mask_UT
        weight_UT = weight_UT / (1 + mask_UT.sum(1, keepdim=True)).sqrt()
        met_UTX = self.values_IX[histories.item_ids_UT.masked_fill(~histories.mask_UT, 0)]
        met_UX = (weight_UT[:, None] @ met_UTX)[:, 0]
        return self.profile(histories.profile_UF + self.first_F).sum(dim=1) + met_UX


EVENT_NUMBERS = NUM_BEHAVIOURS + 4


def event_numbers(histories: EventBatch) -> Tensor:
    """What users did with the items they met, and when, [U, T, X]; 0 where padded."""
    mask_UT = histories.mask_UT.float()
    rank_UT = mask_UT.flip(1).cumsum(1).flip(1) - 1  # 0 is the newest event
    times_UT2 = torch.stack([histories.gap_s_UT.clamp_min(0), ages_s(histories)], dim=-1).log1p()
    columns = [histories.behaviours_UTB, histories.watch_fraction_UT[..., None], times_UT2 * LOG_SECONDS_SCALE]
    columns.append(rank_UT.clamp_min(0).log1p()[..., None])
    return torch.cat(columns, dim=-1) * mask_UT[..., None]


class HistoryEncoder(nn.Module):
    """Histories as state vectors: means of the items' vectors, weighted by what the user did with them and when.

    The weights may be negative, for what the user disliked or had enough of. Padding changes nothing.

    Args:
        world: items and lengths.
        config: sizes.

    Attributes:
        width: S, of the state.
    """

    features_IF: Tensor

    def __init__(self, world: SlateWorld, config: SlateNetConfig) -> None:
        super().__init__()
        self.register_buffer("features_IF", torch.from_numpy(world.features_IF), persistent=False)
        self.heads = config.heads
        self.weights = nn.Sequential(
            nn.Linear(EVENT_NUMBERS, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.heads)
        )
        self.item = nn.Linear(world.features_IF.shape[1], config.width)
        self.profile = nn.ModuleList(nn.Embedding(size, 8) for size in world.profile_sizes)
        known = config.heads * config.width + EVENT_NUMBERS + 8 * len(world.profile_sizes) + 2
        self.mix = nn.Sequential(nn.Linear(known, config.hidden), nn.SiLU(), nn.LayerNorm(config.hidden))
        self.width = config.hidden + config.heads * config.width

    def forward(self, histories: EventBatch) -> Tensor:
        """States [U, S]."""
        mask_UT = histories.mask_UT.float()
        event_UTX = event_numbers(histories)
        weight_UTH = self.weights(event_UTX) * mask_UT[..., None]
        ids_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, 0)
        item_UTD = F.embedding(ids_UT, self.item(self.features_IF))  # its gradient is far cheaper than indexing's
        pooled_UHD = weight_UTH.transpose(1, 2) @ item_UTD / (1 + weight_UTH.abs().sum(1)[..., None])
        pooled_UX = pooled_UHD.flatten(1)
        mean_UX = event_UTX.sum(1) / (1 + mask_UT.sum(1, keepdim=True))
        angle_U = histories.time_of_day_U * (2 * math.pi / 24)
        profile = [field(histories.profile_UF[:, f]) for f, field in enumerate(self.profile)]
        known = [pooled_UX, mean_UX, *profile, angle_U.sin()[:, None], angle_U.cos()[:, None]]
        return torch.cat([self.mix(torch.cat(known, dim=1)), pooled_UX], dim=1)


class ItemScores(nn.Module):
    """Scores of all items from a state, in two steps, so that what RLlib stores a step is small.

    First come a query, the weights of the items' features, and the ids of the history. From them the scores:
    the query against item vectors, the weights against the features, an item's bias, and a penalty for repetition.

    Args:
        world: items and lengths.
        config: sizes.
        state_width: S.
    """

    features_IF: Tensor
    unit_IF: Tensor

    def __init__(self, world: SlateWorld, config: SlateNetConfig, state_width: int) -> None:
        super().__init__()
        self.register_buffer("features_IF", torch.from_numpy(world.features_IF), persistent=False)
        self.register_buffer("unit_IF", F.normalize(self.features_IF, dim=1), persistent=False)
        self.wide = Wide(self.unit_IF, world.profile_sizes, config.hidden)
        self.query = nn.Linear(state_width, config.width)
        self.item = nn.Linear(world.features_IF.shape[1], config.width)
        self.bias_I = nn.Parameter(torch.zeros(world.num_items))
        self.repeat = nn.Parameter(torch.zeros(()))
        self.scale = config.width**-0.5
        nn.init.normal_(self.query.weight, std=0.1 * state_width**-0.5)
        nn.init.zeros_(self.query.bias)

    def inputs(self, state_US: Tensor, histories: EventBatch) -> Tensor:
        """The query, the features' weights, and the history's ids, -1 where padded: float [U, D + F + T]."""
        ids_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, -1)
        return torch.cat([self.query(state_US), self.wide(histories), ids_UT.to(state_US.dtype)], dim=1)

    def forward(self, inputs_UX: Tensor) -> Tensor:
        """Scores [U, I] of what :meth:`inputs` gave."""
        deep, wide = self.query.out_features, self.unit_IF.shape[1]
        query_UD, wide_UF, ids_UT = inputs_UX.split([deep, wide, inputs_UX.shape[1] - deep - wide], dim=1)
        score_UI = query_UD @ self.item(self.features_IF).T * self.scale + wide_UF @ self.unit_IF.T + self.bias_I
        real_UT = (ids_UT >= 0).to(score_UI.dtype)
        return score_UI.scatter_add(1, ids_UT.clamp_min(0).long(), self.repeat * real_UT)


# ---------------------------------------------------------------- agents


class SlateNetwork(nn.Module):
    """What the networks share: choosing sessions for histories.

    Args:
        world: items and lengths.
        config: sizes.
        **more: what else a kind of network is told.
    """

    def __init__(self, world: SlateWorld, config: SlateNetConfig = SlateNetConfig(), **more: Any) -> None:
        super().__init__()
        self.world, self.sizes, self.more = world, config, more
        self.length, self.history_length, self.num_items = world.session_length, world.history_length, world.num_items
        self.encoder = HistoryEncoder(world, config)

    def read(self, observation: Any) -> EventBatch:
        """The histories in an environment's batched observation, flat or not."""
        return read_histories(observation, self.history_length)

    def choose(self, histories: EventBatch, length: int, n: int, generator: torch.Generator | None):
        """Sessions int64 [U, n, length] and their log-probabilities [U, n].

        Args:
            histories: of U users.
            length: items a session.
            n: sessions a user.
            generator: what they are drawn with; None for the one session that the agent would serve.
        """
        distribution = PlackettLuce(self.logits(histories), length)
        items_USK = distribution.mode()[:, None] if generator is None else distribution.sample(n, generator)
        logp_SU = [distribution.log_prob(items_UK) for items_UK in items_USK.unbind(1)]
        return items_USK, torch.stack(logp_SU, dim=1)

    def logits(self, histories: EventBatch) -> Tensor:
        """One score an item, [U, I]; those of greatest score are served."""
        raise NotImplementedError


class SlatePolicy(SlateNetwork):
    """A Plackett-Luce policy with a value head."""

    def __init__(self, world: SlateWorld, config: SlateNetConfig = SlateNetConfig()) -> None:
        super().__init__(world, config)
        self.scores = ItemScores(world, config, self.encoder.width)
        self.value = nn.Sequential(nn.Linear(self.encoder.width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 1))

    def forward(self, histories: EventBatch) -> tuple[Tensor, Tensor]:
        """What :class:`ItemScores` makes scores of, [U, D + F + T], and the states [U, S] for :attr:`value`."""
        state_US = self.encoder(histories)
        return self.scores.inputs(state_US, histories), state_US

    def logits(self, histories: EventBatch) -> Tensor:
        """The policy's logits [U, I]."""
        return self.scores(self(histories)[0])


class SlateQ(SlateNetwork):
    """Item-wise values, a choice model, and the value of slates from both; see the module's docstring."""

    def __init__(self, world: SlateWorld, config: SlateNetConfig = SlateNetConfig()) -> None:
        super().__init__(world, config)
        self.advantage = ItemScores(world, config, self.encoder.width)
        self.choice = ItemScores(world, config, self.encoder.width)
        self.nothing = nn.Linear(self.encoder.width, 1)

    def forward(self, histories: EventBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Value of each item chosen, relative to nothing chosen [U, I]; its choice logit [U, I]; nothing's value [U].

        Choosing nothing has the choice logit 0.
        """
        state_US = self.encoder(histories)
        advantage_UI = self.advantage(self.advantage.inputs(state_US, histories))
        choice_UI = self.choice(self.choice.inputs(state_US, histories))
        return advantage_UI, choice_UI, self.nothing(state_US)[:, 0]

    def logits(self, histories: EventBatch) -> Tensor:
        """v(s, i) * (Q(s, i) - Q(s, nothing)), [U, I]."""
        advantage_UI, choice_UI, _ = self(histories)
        return choice_UI.clamp_max(20.0).exp() * advantage_UI


def slate_value(advantage_UK: Tensor, choice_UK: Tensor, nothing_U: Tensor) -> Tensor:
    """Q(s, A) = sum_i P(i | s, A) Q(s, i), choosing nothing included (Ie et al., eq. 13), [U]."""
    prob_UK = _with_nothing(choice_UK).softmax(dim=1)[:, :-1]
    return nothing_U + (prob_UK * advantage_UK).sum(dim=1)


def choice_loss(choice_UK: Tensor, clicked_UK: Tensor, examined_UK: Tensor) -> Tensor:
    """Cross-entropy [U] between the choice model over the items seen and the share of each among those clicked."""
    none_U1 = (clicked_UK.sum(1, keepdim=True) == 0).to(clicked_UK.dtype)
    target = torch.cat([clicked_UK, none_U1], dim=1)
    target = target / target.sum(dim=1, keepdim=True)
    logits = _with_nothing(choice_UK.masked_fill(~examined_UK, NOWHERE))
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def _with_nothing(choice_UK: Tensor) -> Tensor:
    return torch.cat([choice_UK, torch.zeros_like(choice_UK[:, :1])], dim=1)


def outcomes(slates_UK: Tensor, after: EventBatch) -> tuple[Tensor, Tensor]:
    """Which items of a session were seen, bool [U, K], and which clicked, float [U, K], read off the next history.

    The items seen are a prefix of the session and the newest events of the next request's history.
    """
    length_U, slots = after.mask_UT.sum(1), slates_UK.shape[1]
    num_seen_U = torch.zeros_like(length_U)
    place_K = torch.arange(slots, device=slates_UK.device)
    for seen in range(1, min(slots, after.mask_UT.shape[1]) + 1):
        at_UK = (length_U[:, None] - seen + place_K[:seen]).clamp_min(0)
        same_U = (after.item_ids_UT.gather(1, at_UK) == slates_UK[:, :seen]).all(1) & (length_U >= seen)
        num_seen_U = torch.where(same_U, seen, num_seen_U)
    examined_UK = place_K < num_seen_U[:, None]
    at_UK = (length_U[:, None] - num_seen_U[:, None] + place_K).clamp(0, after.mask_UT.shape[1] - 1)
    click_UT = after.behaviours_UTB[..., BEHAVIOUR_IDX["click"]]
    return examined_UK, click_UT.gather(1, at_UK) * examined_UK


class ItemQ(SlateNetwork):
    """Values of the next item of a session under construction; it knows the items placed so far."""

    def __init__(self, world: SlateWorld, config: SlateNetConfig = SlateNetConfig()) -> None:
        super().__init__(world, config)
        self.placed = nn.Linear(world.features_IF.shape[1] + 1, config.hidden)
        self.join = nn.Sequential(nn.Linear(self.encoder.width + config.hidden, config.hidden), nn.SiLU())
        self.scores = ItemScores(world, config, self.encoder.width + config.hidden)
        self.state_value = nn.Linear(config.hidden, 1)

    def read(self, observation: Any) -> EventBatch:
        """The histories in an environment's batched observation."""
        return super().read(observation[:, : -self.length] if isinstance(observation, Tensor) else observation)

    def read_slate(self, observation: Any) -> Tensor:
        """The items placed so far in it, int64 [U, K], -1 for empty places."""
        slate_UK = observation[:, -self.length :] if isinstance(observation, Tensor) else observation["slate"]
        return slate_UK.long()

    def forward(self, state_US: Tensor, histories: EventBatch, slate_UK: Tensor) -> Tensor:
        """Inputs [U, 1 + K + D + F + T] of :meth:`values`.

        Args:
            state_US: of the encoder.
            histories: those it read.
            slate_UK: item ids placed so far, -1 for empty places.
        """
        real_UK1 = (slate_UK >= 0).to(state_US.dtype)[..., None]
        features_UKF = self.encoder.features_IF[slate_UK.clamp_min(0)]
        placed_UX = torch.cat([features_UKF, torch.ones_like(real_UK1)], dim=-1).mul(real_UK1).mean(1)
        joined = torch.cat([state_US, self.placed(placed_UX)], dim=1)
        value_U1 = self.state_value(self.join(joined))
        return torch.cat([value_U1, slate_UK.to(joined.dtype), self.scores.inputs(joined, histories)], dim=1)

    def values(self, inputs_UX: Tensor) -> Tensor:
        """Q [U, I], minus infinity for items placed already."""
        slots = self.length
        value_U1, slate_UK, rest = inputs_UX[:, :1], inputs_UX[:, 1 : 1 + slots], inputs_UX[:, 1 + slots :]
        q_UI = value_U1 + self.scores(rest)
        taken_UI = torch.zeros_like(q_UI).scatter_add(1, slate_UK.clamp_min(0).long(), (slate_UK >= 0).to(q_UI.dtype))
        return q_UI.masked_fill(taken_UI > 0, -torch.inf)

    def choose(self, histories: EventBatch, length: int, n: int, generator: torch.Generator | None):
        """See :meth:`SlateNetwork.choose`; drawn by the softmax of the values, place by place."""
        rows = histories.rows(torch.arange(len(histories)).repeat_interleave(n))
        state_XS = self.encoder(rows)
        slate_XK = torch.full((len(rows), max(length, self.length)), -1)
        logp_X = torch.zeros(len(rows))
        for k in range(length):
            visible = slate_XK[:, : self.length]
            q_XI = self.values(self(state_XS, rows, visible)).scatter(1, slate_XK[:, :k], -torch.inf)
            logp_XI = q_XI.log_softmax(dim=1)
            item_X = (
                logp_XI.argmax(1)
                if generator is None
                else torch.multinomial(logp_XI.exp(), 1, generator=generator)[:, 0]
            )
            logp_X = logp_X + logp_XI.gather(1, item_X[:, None])[:, 0]
            slate_XK[:, k] = item_X
        return slate_XK[:, :length].reshape(len(histories), n, length), logp_X.reshape(len(histories), n)


class ProtoPolicy(SlateNetwork):
    """A squashed Gaussian over points of content space; the items nearest to them are served.

    Args:
        world: items and lengths.
        config: sizes.
        points: 1, where the K items nearest to one point are served, or K, the nearest of each.
        fresh: pass over items that the history shows.
    """

    points_IE: Tensor

    def __init__(
        self,
        world: SlateWorld,
        config: SlateNetConfig = SlateNetConfig(),
        points: int = 1,
        fresh: bool = True,
    ) -> None:
        super().__init__(world, config, points=points, fresh=fresh)
        assert points in (1, world.session_length)
        self.register_buffer("points_IE", torch.from_numpy(world.points_IE), persistent=False)
        self.points, self.fresh = points, fresh
        self.head = ProtoHead(self.encoder.width, self.action_width)
        self.wide = Wide(self.points_IE, world.profile_sizes, config.hidden)

    @property
    def action_width(self) -> int:
        """Numbers in an action."""
        return self.points * int(self.points_IE.shape[1])

    def state(self, histories: EventBatch) -> Tensor:
        """What :attr:`head` makes a Gaussian of, [U, S + A]."""
        return torch.cat([self.encoder(histories), self.wide(histories).repeat(1, self.points)], dim=1)

    def proto(self, slates_NK: NDArray[np.integer]) -> FloatArray:
        """Actions [N, A] which stand for given sessions: their items' points, or the one in the middle of them."""
        points_NKE = self.points_IE.numpy()[slates_NK]
        return points_NKE.reshape(len(slates_NK), -1) if self.points > 1 else points_NKE.mean(axis=1)

    def items(self, action_UA: Tensor, length: int, histories: EventBatch) -> Tensor:
        """Sessions [U, length] of actions within [-1, 1].

        Of the history only the newest events count where the catalogue is small: half of what a session leaves of it.
        """
        proto_UPE = action_UA.reshape(len(action_UA), self.points, -1).detach().numpy()
        proto_UKE = proto_UPE[:, np.minimum(np.arange(length), self.points - 1)]
        taken_UI = self._taken(histories, length).numpy()
        allowed = (lambda users: ~taken_UI[users]) if self.fresh else None
        return torch.from_numpy(nearest_items(self.points_IE.numpy(), proto_UKE, allowed))

    def served(self, action_UA: Tensor, histories: EventBatch) -> Tensor:
        """The actions that stand for what is served, :meth:`proto` of :meth:`items`, [U, A].

        Between two items nothing changes that a user could answer to, so critics look at these. A step function has no
        gradient; its place takes that of the items' points weighted by the softmax of their nearness, straight through
        (Jang et al., arXiv:1611.01144, section 2.2).
        """
        slates_UK = self.items(action_UA, self.length, histories)
        hard_UA = torch.from_numpy(self.proto(slates_UK.numpy())).to(action_UA.dtype)
        if not (torch.is_grad_enabled() and action_UA.requires_grad):
            return hard_UA
        proto_UPE = action_UA.reshape(len(action_UA), self.points, -1)
        near_UPI = 2 * proto_UPE @ self.points_IE.T - (self.points_IE**2).sum(dim=1)
        if self.fresh:
            near_UPI = near_UPI.masked_fill(self._taken(histories, self.length)[:, None], NOWHERE)
        soft_UA = (near_UPI.softmax(dim=-1) @ self.points_IE).flatten(1)
        return hard_UA + soft_UA - soft_UA.detach()

    def _taken(self, histories: EventBatch, length: int) -> Tensor:
        rank_UT = histories.mask_UT.long().flip(1).cumsum(1).flip(1) - 1
        row, place = torch.nonzero(histories.mask_UT & (rank_UT < (self.num_items - length) // 2), as_tuple=True)
        taken_UI = torch.zeros((len(histories), self.num_items), dtype=torch.bool)
        taken_UI[row, histories.item_ids_UT[row, place]] = True
        return taken_UI

    def choose(self, histories: EventBatch, length: int, n: int, generator: torch.Generator | None):
        """See :meth:`SlateNetwork.choose`; sessions of points have no log-probability, NaN."""
        mean_UA, log_std_UA = self.head(self.state(histories)).chunk(2, dim=1)
        mean_USA = mean_UA[:, None].expand(-1, n, -1)
        if generator is not None:
            noise = torch.randn(mean_USA.shape, generator=generator)
            mean_USA = mean_USA + noise * log_std_UA[:, None].clamp(-20, 2).exp()
        rows = histories.rows(torch.arange(len(histories)).repeat_interleave(n))
        items_USK = self.items(mean_USA.flatten(0, 1).tanh(), length, rows).reshape(*mean_USA.shape[:2], length)
        return items_USK, torch.full(items_USK.shape[:2], torch.nan)


class ProtoHead(nn.Module):
    """Mean and log deviation [U, 2 A] of what :meth:`ProtoPolicy.state` gave: linear, and the wide part on top."""

    def __init__(self, state_width: int, action_width: int) -> None:
        super().__init__()
        self.deep, self.action_width = nn.Linear(state_width, 2 * action_width), action_width
        nn.init.normal_(self.deep.weight, std=0.1 * state_width**-0.5)
        nn.init.zeros_(self.deep.bias)

    def forward(self, state_UX: Tensor) -> Tensor:
        """The Gaussians before they are squashed."""
        state_US, wide_UA = state_UX[:, : -self.action_width], state_UX[:, -self.action_width :]
        return self.deep(state_US) + F.pad(wide_UA, (0, self.action_width))


class ProtoCritic(nn.Module):
    """What Q(s, a) of points is made of: the state, read by an encoder of its own, the action, and the wide part.

    Args:
        world: items and lengths.
        config: sizes.
        action_width: numbers in an action.
    """

    def __init__(self, world: SlateWorld, config: SlateNetConfig, action_width: int) -> None:
        super().__init__()
        self.encoder = HistoryEncoder(world, config)
        self.wide = Wide(torch.from_numpy(world.points_IE), world.profile_sizes, config.hidden)
        self.width = self.encoder.width + action_width

    def forward(self, histories: EventBatch, action_UA: Tensor) -> Tensor:
        """What :class:`CriticHead` makes a value of: state, action, and the wide part's weights times the action."""
        weight_UE = self.wide(histories)
        points = action_UA.shape[1] // weight_UE.shape[1]
        wide_U1 = (weight_UE.repeat(1, points) * action_UA).sum(dim=1, keepdim=True)
        return torch.cat([self.encoder(histories), action_UA, wide_U1], dim=1)


class CriticHead(nn.Module):
    """Values [U, 1] of what :class:`ProtoCritic` gave."""

    def __init__(self, joined_width: int, hidden: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            nn.Linear(joined_width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )

    def forward(self, joined_UX: Tensor) -> Tensor:
        """The deep part's value, and the last column, which is the wide part's."""
        return self.deep(joined_UX[:, :-1]) + joined_UX[:, -1:]


NETWORKS: dict[str, type[SlateNetwork]] = {kind.__name__: kind for kind in (SlatePolicy, SlateQ, ItemQ, ProtoPolicy)}
"""By name, for files."""
