"""Remembers the last visits of an environment's users, and renders them as text or as pictures.

As in Gymnasium, rendering is for people. A simulator may have a method ``interests(state)`` with its users' true
interests: two arrays [U, M] of affinities to the topics and satiation with them. They are shown and labelled as truth.
For other simulators, each topic's share of the watched time is shown, which a platform can see too.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics. ``V`` counts the visits shown here, ``T`` the topics
shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, FloatArray, IntArray
from feedgym.envs.render.view import TOPICS, TRAIL, Session, View, as_text
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import Response, UserSimulator

RENDER_MODES = ["ansi", "rgb_array"]
RENDER_FPS = 2
"""Visits per second of a video."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _RenderedStep:
    """One step of the environment for all slots; rows of slots outside the mask are meaningless."""

    mask_U: BoolArray
    state: Any
    slates_UK: IntArray
    response: Response
    reward_U: NDArray[np.floating]
    parts: dict[str, NDArray[np.floating]]
    taste_UM: FloatArray
    tired_UM: FloatArray


class Screen:
    """Remembers the last visits of an environment's slots and renders them.

    Args:
        mode: "ansi" or "rgb_array".
        simulator: the users.
        session_length: K; determines the size of all pictures.
        weights: weights of the reward's components.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, mode: str, simulator: UserSimulator, session_length: int, weights: RewardWeights) -> None:
        if mode not in RENDER_MODES:
            raise ValueError(f"render_mode={mode!r} is unknown; give one of {', '.join(RENDER_MODES)}, or None.")
        self.mode, self.simulator, self.session_length, self.weights = mode, simulator, session_length, weights
        self._steps: deque[_RenderedStep] = deque(maxlen=TRAIL)
        self._visits_U: NDArray[np.int64] = np.zeros(0, np.int64)
        self._watched_s_UM: FloatArray = np.zeros((0, 0), np.float32)

    def greet(self, mask_U: BoolArray) -> None:
        """Register new users in the slots of the mask."""
        if len(self._visits_U) != len(mask_U):
            self._visits_U = np.zeros(len(mask_U), np.int64)
            self._watched_s_UM = np.zeros((len(mask_U), self.simulator.catalog.num_topics), np.float32)
        self._visits_U[mask_U] = 0
        self._watched_s_UM[mask_U] = 0

    def record(
        self,
        mask_U: BoolArray,
        state: Any,
        slates_UK: IntArray,
        response: Response,
        parts: Mapping[str, FloatArray],
        reward_U: NDArray[np.floating],
    ) -> None:
        """Record a visit of the users in the mask.

        Args:
            mask_U: true for users who visited.
            state: all users, at the login.
            slates_UK: sessions of all slots.
            response: responses of the users in the mask.
            parts: their unweighted reward components.
            reward_U: rewards of all slots.
        """

        def spread(column: NDArray) -> NDArray:
            whole = np.zeros((len(mask_U), *column.shape[1:]), column.dtype)
            whole[mask_U] = column
            return whole

        self._visits_U[mask_U] += 1
        # Components that a task level adds to those of RewardWeights have weight 1.
        worth = {name: spread(part) * getattr(self.weights, name, 1.0) for name, part in parts.items()}
        response = Response(**{f.name: spread(getattr(response, f.name)) for f in fields(response)})
        self._watch(slates_UK, response.watch_s_UK)
        taste_UM, tired_UM = self._interests(state)
        self._steps.append(
            _RenderedStep(
                mask_U=mask_U.copy(),
                state=state,
                slates_UK=slates_UK.copy(),
                response=response,
                reward_U=reward_U.copy(),
                parts=worth,
                taste_UM=taste_UM,
                tired_UM=tired_UM,
            )
        )

    def frames(self, state: Any) -> tuple[Any, ...]:
        """A string, or a picture uint8 [H, W, 3], per slot.

        Args:
            state: the current users; None before the first reset.

        Raises:
            ResetNeeded: there are no users yet.
        """
        if state is None:
            raise ResetNeeded("The feed has no users yet; call reset() before render().")
        views = [self._view(slot, state) for slot in range(len(self._visits_U))]
        if self.mode == "ansi":
            return tuple(as_text(view) for view in views)
        from feedgym.envs.render.picture import as_picture

        return tuple(as_picture(view, self.session_length) for view in views)

    def _view(self, slot: int, state: Any) -> View:
        """The view of a slot's user."""
        visits = [step for step in self._steps if step.mask_U[slot]]
        visits = visits[max(0, len(visits) - int(self._visits_U[slot])) :] if self._visits_U[slot] else []
        last = visits[-1] if visits else None
        if last is None:
            taste_UM, tired_UM = self._interests(state)
            taste_VM, tired_VM = taste_UM[slot][None], tired_UM[slot][None]
        else:
            taste_VM, tired_VM = (
                np.stack([getattr(v, name)[slot] for v in visits]) for name in ("taste_UM", "tired_UM")
            )
        at = state if last is None else last.state
        pages = [v for v in visits if v.state.visit_U[slot] == at.visit_U[slot]]
        topic_T = np.argsort(-taste_VM.max(axis=0), kind="stable")[:TOPICS]
        return View(
            catalog=self.simulator.catalog,
            user=int(at.seed_U[slot]),
            profile=dict(zip(self.simulator.profile_names, at.profile_UF[slot].tolist(), strict=True)),
            visit=int(at.visit_U[slot]) + 1,
            page=max(1, len(pages)),
            start_s=float(at.time_s_U[slot]) + sum(float(v.response.elapsed_s_U[slot]) for v in pages[:-1]),
            session=None if last is None else _session(last, slot),
            is_truth=hasattr(self.simulator, "interests"),
            taste_M=taste_VM[-1],
            topic_T=topic_T,
            taste_VT=taste_VM[:, topic_T],
            tired_VT=tired_VM[:, topic_T],
            reward_V=np.array([v.reward_U[slot] for v in visits]),
        )

    def _watch(self, slates_UK: IntArray, watch_s_UK: FloatArray) -> None:
        """Count the seconds watched by topic; items without a topic are left out."""
        topic_UK = self.simulator.catalog.topic_I[slates_UK]
        user_UK = np.broadcast_to(np.arange(len(slates_UK))[:, None], slates_UK.shape)
        known_UK = topic_UK >= 0
        np.add.at(self._watched_s_UM, (user_UK[known_UK], topic_UK[known_UK]), watch_s_UK[known_UK])

    def _interests(self, state: Any) -> tuple[FloatArray, FloatArray]:
        """The truth if the simulator offers it, else the shares of the seconds watched so far."""
        if hasattr(self.simulator, "interests"):
            return self.simulator.interests(state)
        total_s_U1 = self._watched_s_UM.sum(axis=1, keepdims=True)
        share_UM = self._watched_s_UM / np.maximum(total_s_U1, 1e-9)
        return share_UM, np.zeros_like(share_UM)


def _session(step: _RenderedStep, slot: int) -> Session:
    answer = step.response
    return Session(
        items_K=step.slates_UK[slot],
        examined_K=answer.examined_UK[slot],
        watch_s_K=answer.watch_s_UK[slot],
        behaviours_KB=answer.behaviours_UKB[slot],
        elapsed_s=float(answer.elapsed_s_U[slot]),
        left=bool(answer.left_U[slot]),
        return_gap_s=float(answer.return_gap_s_U[slot]),
        churned=bool(answer.churned_U[slot]),
        reward=float(step.reward_U[slot]),
        parts={name: float(part[slot]) for name, part in step.parts.items() if part[slot]},
    )
