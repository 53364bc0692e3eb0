"""Checks that a session reward keeps the rules that the alignment relies on; messages say what to change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from feedgym.agents.check import scribbled
from feedgym.data.batches import EventBatch, SessionBatch, TensorRows
from feedgym.protocols import SessionReward

RTOL = 1e-3
"""Scores may differ by this share of their size between batches: matrix products round differently by shape."""


def check_reward(reward: SessionReward, histories: EventBatch, sessions: SessionBatch) -> None:
    """Score some sessions in several ways that must agree.

    Args:
        reward: the reward.
        histories: U >= 2 users, T >= 2 events.
        sessions: S >= 2 sessions of K >= 2 items for each of them.

    Raises:
        ValueError: it breaks a rule; the message names the rule and what to change.
    """
    name = type(reward).__name__
    num_users, num_samples, length = sessions.item_ids_USK.shape
    assert min(num_users, num_samples, length, histories.item_ids_UT.shape[1]) >= 2 and num_users == len(histories)
    _require(callable(reward), f"{name} cannot be called; give it __call__(histories, sessions) -> scores [U, S].")
    histories = replace(histories, mask_UT=_with_padding(histories.mask_UT))
    sessions = _anonymous(sessions.item_ids_USK)
    kept = _copy(histories), _copy(sessions)
    score_US = _score(reward, name, histories, sessions)
    _require(
        _equal(histories, kept[0]) and _equal(sessions, kept[1]),
        f"{name} changed the histories or sessions it was given; work on copies.",
    )

    def same(other_US: Tensor, rule: str) -> None:
        scale = max(1.0, float(score_US.abs().max()))
        gap = float((other_US - score_US).abs().max())
        _require(gap <= RTOL * scale, f"{name} {rule} (scores moved by {gap:.3g}).")

    again_US = _score(reward, name, histories, sessions)
    _require(
        torch.equal(again_US, score_US),
        f"{name} scored the same sessions differently a second time; switch dropout off with eval() and draw no random "
        "numbers.",
    )
    alone = [_score(reward, name, histories.rows([u]), sessions.rows([u])) for u in range(num_users)]
    same(torch.cat(alone), "scored users differently alone and in a batch; let no user's score depend on the others")
    order = torch.arange(num_users).flip(0)
    same(
        _score(reward, name, histories.rows(order), sessions.rows(order))[order],
        "did not permute its scores with the users; row u of the scores belongs to row u of the histories",
    )
    ids_USK = sessions.item_ids_USK
    single = [_score(reward, name, histories, _anonymous(ids_USK[:, [s]])) for s in range(num_samples)]
    same(
        torch.cat(single, dim=1),
        "scored sessions differently alone and together with a user's others; normalise nothing over the samples",
    )
    same(
        _score(reward, name, scribbled(histories), sessions),
        "read padded events; use only the events where mask_UT is true",
    )
    same(
        _score(reward, name, histories.events(slice(-1)), sessions),
        "depends on how far the histories are padded; use only the events where mask_UT is true",
    )
    _check_session_padding(reward, name, histories, ids_USK)


def _check_session_padding(reward: SessionReward, name: str, histories: EventBatch, ids_USK: Tensor) -> None:
    """Check that a short session gets the same score whether it ends or is padded by -1."""
    shorter = _score(reward, name, histories, _anonymous(ids_USK[..., :-1]))
    padded_USK = ids_USK.clone()
    padded_USK[..., -1] = -1
    gap = float((_score(reward, name, histories, _anonymous(padded_USK)) - shorter).abs().max())
    _require(
        gap <= RTOL * max(1.0, float(shorter.abs().max())),
        f"{name} scored a short session and the same one padded by -1 differently (by {gap:.3g}); -1 is not an item.",
    )


def _score(reward: SessionReward, name: str, histories: EventBatch, sessions: SessionBatch) -> Tensor:
    """Compute scores, and check their type, shape and values."""
    scores: Any = reward(histories, sessions)
    shape = tuple(sessions.item_ids_USK.shape[:2])
    _require(
        isinstance(scores, Tensor) and scores.dtype == torch.float32,
        f"{name} gave {getattr(scores, 'dtype', type(scores).__name__)}; return a float32 tensor.",
    )
    _require(
        tuple(scores.shape) == shape,
        f"{name} gave scores of shape {tuple(scores.shape)} for {shape[0]} users with {shape[1]} sessions each; return "
        "[U, S].",
    )
    _require(
        bool(scores.isfinite().all()),
        f"{name} gave {int((~scores.isfinite()).sum())} NaN or infinite scores; look at masks that leave nothing, "
        "and do not use log-probabilities: policies without them have NaN.",
    )
    _require(not scores.requires_grad, f"{name} gave scores with a gradient; compute them under torch.no_grad().")
    return scores


def _anonymous(item_ids_USK: Tensor) -> SessionBatch:
    """Make sessions of a policy without log-probabilities."""
    return SessionBatch.of_items(item_ids_USK)


def _with_padding(mask_UT: Tensor) -> Tensor:
    """Mask the last column, and all events of the first user, who is new."""
    mask_UT = mask_UT.clone()
    mask_UT[:, -1] = False
    mask_UT[0] = False
    return mask_UT


def _copy(batch: TensorRows) -> dict[str, Tensor]:
    return {name: column.clone() for name, column in vars(batch).items() if column is not None}


def _equal(batch: TensorRows, kept: dict[str, Tensor]) -> bool:
    return all(torch.equal(getattr(batch, name).nan_to_num(), column.nan_to_num()) for name, column in kept.items())


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
