"""Checks that a recommender keeps the rules that rollouts, judges and alignment rely on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from feedgym.data.batches import EventBatch, SessionBatch, TensorRows
from feedgym.protocols import Recommender

NUM_SAMPLES = 7
NEAR_TIE = 1e-3
"""Served sessions may differ between batches if their log-probabilities are this close: products round by shape."""


def check_recommender(agent: Recommender, histories: EventBatch, num_items: int) -> None:
    """Ask an agent for sessions in several ways that must agree; error messages say what to change.

    Args:
        agent: the agent.
        histories: U >= 3 users, T >= 2 events.
        num_items: I, items of the catalogue the agent serves from.

    Raises:
        ValueError: it breaks a rule; the message names the rule and what to change.
    """
    name = type(agent).__name__
    num_users = len(histories)
    assert num_users >= 3 and histories.mask_UT.shape[1] >= 2
    length = getattr(agent, "session_length", None)
    _require(
        isinstance(length, int) and 1 <= length <= num_items,
        f"{name}.session_length is {length!r}; set it to the number of items a session has, 1..{num_items}.",
    )
    for method in ("sample", "recommend"):
        _require(callable(getattr(agent, method, None)), f"{name} has no {method}(); see feedgym.protocols.")
    histories = padded(histories)
    _check_samples(agent, name, histories, num_items)
    _check_served(agent, name, histories, num_items)


def _check_samples(agent: Recommender, name: str, histories: EventBatch, num_items: int) -> None:
    kept = _copy(histories)
    sessions = _sampled(agent, histories)
    _check_shape(agent, f"{name}.sample()", sessions, len(histories), NUM_SAMPLES, num_items)
    _require(_same(kept, histories), f"{name}.sample() changed the histories it was given; work on copies.")
    _check_logp(name, sessions)
    again = _sampled(agent, histories)
    _require(
        torch.equal(again.item_ids_USK, sessions.item_ids_USK),
        f"{name}.sample() gave other sessions under the same generator; draw every random number from it.",
    )
    columns = {name: column for name, column in _copy(histories).items() if name != "mask_UT"}
    others = replace(histories, **{name: torch.cat([c[:1], c[1:].flip(0)]) for name, c in columns.items()})
    moved = _sampled(agent, others)
    _require(
        torch.equal(moved.item_ids_USK[0], sessions.item_ids_USK[0]),
        f"{name}.sample() gave the first user other sessions when the other users changed; let no user depend on "
        "the others.",
    )
    single = agent.sample(histories, 1, torch.Generator().manual_seed(0))
    _check_shape(agent, f"{name}.sample(n=1)", single, len(histories), 1, num_items)


def _check_served(agent: Recommender, name: str, histories: EventBatch, num_items: int) -> None:
    kept = _copy(histories)
    served = agent.recommend(histories)
    _check_shape(agent, f"{name}.recommend()", served, len(histories), 1, num_items)
    _require(_same(kept, histories), f"{name}.recommend() changed the histories it was given; work on copies.")

    def agree(other: SessionBatch, rule: str) -> None:
        differs_U = (other.item_ids_USK != served.item_ids_USK).any(-1).any(-1)
        tie_U = ((other.logp_US - served.logp_US).abs() < NEAR_TIE).squeeze(1)
        tie_U &= served.logp_US.squeeze(1) < NEAR_TIE - math.log(2)  # two sessions cannot both be likelier than a half
        _require(not (differs_U & ~tie_U).any(), f"{name}.recommend() {rule}.")

    again = agent.recommend(histories)
    _require(
        torch.equal(again.item_ids_USK, served.item_ids_USK),
        f"{name}.recommend() gave other sessions for the same request; it takes no generator, so it must be "
        "deterministic (switch dropout off).",
    )
    order = torch.arange(len(histories)).flip(0)
    agree(agent.recommend(histories.rows(order)).rows(order), "did not permute its answers with the users")
    alone = SessionBatch.cat([agent.recommend(histories.rows([u])) for u in range(len(histories))])
    agree(alone, "served users differently alone and in a batch; let no user's answer depend on the others")
    agree(agent.recommend(scribbled(histories)), "read events where mask_UT is false; use only those where it is true")
    agree(
        agent.recommend(histories.events(slice(-1))),
        "depends on how far the histories are padded; use only the events where mask_UT is true",
    )


def _sampled(agent: Recommender, histories: EventBatch) -> SessionBatch:
    return agent.sample(histories, NUM_SAMPLES, torch.Generator().manual_seed(0))


def _check_shape(agent: Recommender, call: str, sessions: Any, users: int, samples: int, num_items: int) -> None:
    _require(isinstance(sessions, SessionBatch), f"{call} returned {type(sessions).__name__}; return a SessionBatch.")
    ids_USK, shape = sessions.item_ids_USK, (users, samples, agent.session_length)
    _require(
        _kind(ids_USK) == (torch.int64, shape),
        "{} gave {} items of shape {}; give int64 [U, S, K] = {}.".format(call, *_kind(ids_USK), shape),
    )
    _require(
        bool(((ids_USK >= 0) & (ids_USK < num_items)).all()),
        f"{call} gave item {int(ids_USK.min())}..{int(ids_USK.max())}; the catalogue has 0..{num_items - 1}.",
    )
    sorted_USK = ids_USK.sort(-1).values
    _require(
        bool((sorted_USK[..., 1:] != sorted_USK[..., :-1]).all()),
        f"{call} gave a session with an item twice; mask the items already in the session.",
    )
    logp_US = sessions.logp_US
    _require(
        _kind(logp_US) == (torch.float32, shape[:2]),
        "{} gave {} log-probabilities of shape {}; give float32 [U, S] = {}, NaN where the agent has none.".format(
            call, *_kind(logp_US), shape[:2]
        ),
    )


def _check_logp(name: str, sessions: SessionBatch) -> None:
    """Check that log-probabilities, if there are any, are those of a distribution over sessions."""
    logp_US = sessions.logp_US
    if logp_US.isnan().all():
        return
    _require(
        bool((logp_US <= 1e-4).all()),
        f"{name}.sample() gave log-probabilities up to {float(logp_US.max()):.3g} or NaN among numbers; they are "
        "logs of probabilities, 0 at most.",
    )
    same_USS = (sessions.item_ids_USK[:, :, None] == sessions.item_ids_USK[:, None]).all(-1)
    gap_USS = (logp_US[:, :, None] - logp_US[:, None]).abs()
    _require(
        bool((gap_USS[same_USS] < 1e-2).all()),
        f"{name}.sample() gave a user's same session two log-probabilities; return that of the session itself.",
    )
    first_US = ~(same_USS & torch.ones(NUM_SAMPLES, NUM_SAMPLES, dtype=torch.bool).tril(-1)).any(2)
    total_U = (logp_US.exp() * first_US).sum(1)
    _require(
        bool((total_U <= 1 + 1e-3).all()),
        f"{name}.sample() gave a user's different sessions probabilities that add up to {float(total_U.max()):.3g}; "
        "accumulate the log-softmax of every choice, before any mask.",
    )


def padded(histories: EventBatch) -> EventBatch:
    """Histories with padding to test; the first user is new."""
    mask_UT = histories.mask_UT.clone()
    mask_UT[:, -1] = False
    mask_UT[0] = False
    return replace(histories, mask_UT=mask_UT)


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    """True if two models have the same parameters and buffers."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key].cpu(), theirs[key].cpu()) for key in ours)


def scribbled(histories: EventBatch) -> EventBatch:
    """Histories with nonsense in their padding."""
    pad_UT = ~histories.mask_UT
    return replace(
        histories,
        item_ids_UT=histories.item_ids_UT.masked_fill(pad_UT, 1),
        behaviours_UTB=histories.behaviours_UTB.masked_fill(pad_UT[..., None], 1.0),
        watch_fraction_UT=histories.watch_fraction_UT.masked_fill(pad_UT, 5.0),
        gap_s_UT=histories.gap_s_UT.masked_fill(pad_UT, 1e6),
    )


def _kind(column: Any) -> tuple[Any, tuple[int, ...]]:
    """Type and shape of what should be a tensor."""
    return (column.dtype, tuple(column.shape)) if isinstance(column, Tensor) else (type(column).__name__, ())


def _copy(batch: TensorRows) -> dict[str, Tensor]:
    return {name: column.clone() for name, column in vars(batch).items() if column is not None}


def _same(kept: dict[str, Tensor], batch: TensorRows) -> bool:
    return all(torch.equal(getattr(batch, name), column) for name, column in kept.items())


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
