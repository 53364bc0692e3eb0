"""What can be set of the RLlib agents. No Ray here, so that ``--help`` is light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from feedgym.ranges import Count, Few, LearningRate, NonNegative, Passes, Positive, Ranged, Share, SomeShare, Steps

Algorithm = Literal["ppo", "slateq", "dqn", "sac", "bc", "marwil", "cql"]
OFFLINE = ("bc", "marwil", "cql")
"""Algorithms that learn from a log and never meet a user before they are judged."""

REPLAY = ("slateq", "dqn", "sac")
"""Algorithms that keep what they met and learn from it again and again."""

CLONES = ("bc", "marwil")
"""Those of them that imitate the log's policy, and serve by drawing as it does."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Ranged):
    """How an RLlib agent is trained. What an algorithm has no use for is left at its default."""

    algorithm: Algorithm = "ppo"
    """ppo, slateq, dqn and sac learn by serving users; bc, marwil and cql from a log alone."""
    iterations: Passes = 60
    """Iterations of RLlib's training loop."""
    num_envs: Count = 64
    """Users served side by side."""
    steps: Steps = 2560
    """Requests answered an iteration, or a few more (ppo, slateq, dqn, sac), one item each for dqn; offline: updates an
    iteration."""
    batch_size: Count = 512
    """Transitions in an update."""
    epochs: Passes = 4
    """Passes over the iteration's requests (ppo)."""
    updates: Annotated[float, Interval(gt=0, le=1000)] = 0.05
    """Updates a request (slateq, dqn, sac)."""
    lr: LearningRate = 2e-3
    """Learning rate."""
    gamma: Share = 0.0
    """Discount a request. 0: what a visit was worth, the return within a day included, is all that counts."""
    entropy: NonNegative = 0.003
    """Weight of the entropy (ppo)."""
    clip: Positive = 0.2
    """How far the probability ratio may move (ppo)."""
    epsilon: Share = 0.1
    """Chance of a random item at a place in the end (slateq, dqn); it falls from 1 over the first third."""
    tau: SomeShare = 0.05
    """How far the target network moves to the learned one at an update (slateq, dqn, sac, cql)."""
    buffer: Count = 100_000
    """Transitions kept for replay (slateq, dqn, sac)."""
    beta: NonNegative = 1.0
    """How much more weight good visits get (marwil); 0 would be bc."""
    alpha: Positive = 0.03
    """Weight of the entropy in the beginning (sac); it is learned."""
    proto_axes: Few = 20
    """Principal components of the content that a proto-item has, or as many as there are (sac, cql)."""
    proto_each: bool = False
    """A proto-item for each place, instead of one whose K nearest items are served (sac, cql)."""
    proto_fresh: bool | None = None
    """Pass over items that the history shows (sac, cql): right where users tire of them, wrong where they do not. Where
    it is not said, they are passed over if histories show a tenth of the catalogue at most, so that enough is left."""
    checkpoints: Count = 4
    """Times in a training at which it is kept, so that a killed run goes on from there."""
