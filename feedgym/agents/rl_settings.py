"""What can be set of the RLlib agents. No Ray here, so that ``--help`` is light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ppo", "slateq", "dqn", "sac", "bc", "marwil", "cql"]
OFFLINE = ("bc", "marwil", "cql")
"""Algorithms that learn from a log and never meet a user before they are judged."""

REPLAY = ("slateq", "dqn", "sac")
"""Algorithms that keep what they met and learn from it again and again."""

CLONES = ("bc", "marwil")
"""Those of them that imitate the log's policy, and serve by drawing as it does."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How an RLlib agent is trained. What an algorithm has no use for is left at its default."""

    algorithm: Algorithm = "ppo"
    """ppo, slateq, dqn and sac learn by serving users; bc, marwil and cql from a log alone."""
    iterations: int = 60
    """Iterations of RLlib's training loop."""
    num_envs: int = 64
    """Users served side by side."""
    steps: int = 2560
    """Requests answered an iteration, or a few more (ppo, slateq, dqn, sac), one item each for dqn; offline: updates an
    iteration."""
    batch_size: int = 512
    """Transitions in an update."""
    epochs: int = 4
    """Passes over the iteration's requests (ppo)."""
    updates: float = 0.05
    """Updates a request (slateq, dqn, sac)."""
    lr: float = 2e-3
    """Learning rate."""
    gamma: float = 0.0
    """Discount a request. 0: what a visit was worth, the return within a day included, is all that counts."""
    entropy: float = 0.003
    """Weight of the entropy (ppo)."""
    clip: float = 0.2
    """How far the probability ratio may move (ppo)."""
    epsilon: float = 0.1
    """Chance of a random item at a place in the end (slateq, dqn); it falls from 1 over the first third."""
    tau: float = 0.05
    """How far the target network moves to the learned one at an update (slateq, dqn, sac, cql)."""
    buffer: int = 100_000
    """Transitions kept for replay (slateq, dqn, sac)."""
    beta: float = 1.0
    """How much more weight good visits get (marwil); 0 would be bc."""
    alpha: float = 0.03
    """Weight of the entropy in the beginning (sac); it is learned."""
    proto_axes: int = 20
    """Principal components of the content that a proto-item has, or as many as there are (sac, cql)."""
    proto_each: bool = False
    """A proto-item for each place, instead of one whose K nearest items are served (sac, cql)."""
    proto_fresh: bool | None = None
    """Pass over items that the history shows (sac, cql): right where users tire of them, wrong where they do not. Where
    it is not said, they are passed over if histories show a tenth of the catalogue at most, so that enough is left."""
    checkpoints: int = 4
    """Times in a training at which it is kept, so that a killed run goes on from there."""

    def __post_init__(self) -> None:
        for name in ("iterations", "num_envs", "steps", "batch_size", "epochs", "checkpoints", "proto_axes"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be 1 or more.")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"train.gamma={self.gamma} is outside 0..1; give a discount.")
        if self.updates <= 0 or self.lr <= 0:
            raise ValueError(f"train.updates={self.updates} and train.lr={self.lr} must be above 0.")
