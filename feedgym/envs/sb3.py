"""A natively vectorised feed for Stable-Baselines3, which is installed separately: ``pip install stable-baselines3``.

Single environments do not need it. Thousands of users in one process do, because Stable-Baselines3's own DummyVecEnv
steps its environments one after another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv

Indices = None | int | Iterable[int]


class SB3VecEnv(VecEnv):
    """A vector environment for Stable-Baselines3.

    At an episode's end, infos hold the entries that its learners need: ``terminal_observation``,
    ``TimeLimit.truncated`` and ``episode``. As written by its ``Monitor``, ``episode`` has the return ``r``, the length
    ``l`` in steps and the seconds ``t`` since the environment was made. So no ``VecMonitor`` is needed. ``last_info``
    holds the platform's measurements, batched as in Gymnasium.

    Args:
        env: a feed, in this package's vector wrappers or not, whose autoreset mode is ``SAME_STEP``.

    Raises:
        ValueError: the autoreset mode is not ``SAME_STEP``.
    """

    def __init__(self, env: VectorEnv) -> None:
        if env.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode {env.metadata['autoreset_mode'].value} is not Stable-Baselines3's; make the "
                "environment with autoreset_mode='SameStep'."
            )
        self.env = env
        self.last_info: dict[str, Any] = {}
        self._actions: Any = None
        self._return_U, self._length_U = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
        self._start_s = time.time()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Start new users in all slots: those of the seeds given by ``seed()``, if any."""
        observation, _ = self.env.reset(seed=self._seeds)  # type: ignore[arg-type]
        self._reset_seeds()
        self._reset_options()
        self._return_U[:], self._length_U[:] = 0, 0
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all slots."""
        observation, reward_U, terminated_U, truncated_U, self.last_info = self.env.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over_U = terminated_U | truncated_U
        self._return_U += reward_U
        self._length_U += 1
        for slot in np.flatnonzero(over_U):
            infos[slot]["terminal_observation"] = self.last_info["final_obs"][slot]
            infos[slot]["TimeLimit.truncated"] = bool(truncated_U[slot] and not terminated_U[slot])
            infos[slot]["episode"] = {
                "r": round(float(self._return_U[slot]), 6),
                "l": int(self._length_U[slot]),
                "t": round(time.time() - self._start_s, 6),
            }
        self._return_U[over_U], self._length_U[over_U] = 0, 0
        return observation, reward_U.astype(np.float32), over_U, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> list[Any]:
        """The slots' pictures, if the environment was made with ``render_mode="rgb_array"``."""
        return list(self.env.render() or ())

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the outermost environment that has it, the same for all slots."""
        return [getattr(self._owner(attr_name), attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute where it is found; it applies to all slots, whatever the indices."""
        setattr(self._owner(attr_name), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method for all slots at once, such as ``action_masks``; return its result slot by slot."""
        answer = getattr(self._owner(method_name), method_name)(*method_args, **method_kwargs)
        return [answer[slot] for slot in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Indices = None) -> list[bool]:
        """True if a wrapper of the class is present."""
        is_wrapped = any(isinstance(env, wrapper_class) for env in self._chain())
        return [is_wrapped] * len(list(self._get_indices(indices)))

    def _chain(self) -> Iterable[Any]:
        """The environment and the ones it wraps, outermost first."""
        env: Any = self.env
        while env is not None:
            yield env
            env = getattr(env, "env", None)

    def _owner(self, name: str) -> Any:
        for env in self._chain():
            if hasattr(env, name):
                return env
        raise AttributeError(f"{self.env} has no attribute {name!r}.")
