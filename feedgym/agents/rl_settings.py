"""Options of the RLlib agents. Ray is not imported here, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from feedgym.ranges import Count, Few, LearningRate, NonNegative, Passes, Positive, Ranged, Share, SomeShare, Steps

Algorithm = Literal["ppo", "slateq", "dqn", "sac", "bc", "marwil", "cql"]
OFFLINE = ("bc", "marwil", "cql")
"""Algorithms that learn from a log and meet no users before they are judged."""

REPLAY = ("slateq", "dqn", "sac")
"""Algorithms that store transitions and learn from them repeatedly."""

CLONES = ("bc", "marwil")
"""Offline algorithms that imitate the log's policy, and serve by drawing as it does."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Ranged):
    """Options for training an RLlib agent. Options that an algorithm does not use keep their defaults."""

    algorithm: Algorithm = "ppo"
    """ppo, slateq, dqn and sac learn by serving users; bc, marwil and cql only from a log."""
    iterations: Passes = 60
    """Iterations of RLlib's training loop."""
    num_envs: Count = 64
    """Users served in parallel."""
    steps: Steps = 2560
    """Requests per iteration, approximately (ppo, slateq, dqn, sac; for dqn one item each); offline: updates per
    iteration."""
    batch_size: Count = 512
    """Transitions per update."""
    epochs: Passes = 4
    """Passes over an iteration's requests (ppo)."""
    updates: Annotated[float, Interval(gt=0, le=1000)] = 0.05
    """Updates per request (slateq, dqn, sac)."""
    lr: LearningRate = 2e-3
    """Learning rate."""
    gamma: Share = 0.0
    """Discount per request. At 0 only the reward of the visit counts, including the return within a day."""
    entropy: NonNegative = 0.003
    """Weight of the entropy (ppo)."""
    clip: Positive = 0.2
    """Largest change of the probability ratio (ppo)."""
    epsilon: Share = 0.1
    """Final chance of a random item at a place (slateq, dqn); it falls from 1 over the first third."""
    tau: SomeShare = 0.05
    """Share by which the target network moves to the learned one per update (slateq, dqn, sac, cql)."""
    buffer: Count = 100_000
    """Transitions kept for replay (slateq, dqn, sac)."""
    beta: NonNegative = 1.0
    """Strength of the extra weight for good visits (marwil); 0 would be bc."""
    alpha: Positive = 0.03
    """Initial weight of the entropy (sac), which is learned."""
    proto_axes: Few = 20
    """Principal components of the content in a proto-item, or as many as exist (sac, cql)."""
    proto_each: bool = False
    """Use one proto-item per place, instead of a single one whose K nearest items are served (sac, cql)."""
    proto_fresh: bool | None = None
    """Skip items in the history (sac, cql): right if users tire of them, wrong if they do not. If left out, they are
    skipped if histories hold at most a tenth of the catalogue, so that enough items are left."""
    checkpoints: Count = 4
    """Number of checkpoints in a training, from which a killed run resumes."""
