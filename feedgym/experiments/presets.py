"""The registry of experiments: the presets of ``feedgym run``, ``compare`` and ``sweep``, and their kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from feedgym.experiments.align.presets import ALIGN_PRESETS, AlignConfig
from feedgym.experiments.cascade.presets import CASCADE_COMPARISONS, CascadeRun
from feedgym.experiments.cycles.presets import CYCLES_PRESETS, CyclesConfig
from feedgym.experiments.methods.presets import METHODS_COMPARISONS, AblationsRun, MethodsRun
from feedgym.experiments.ope.presets import OPE_COMPARISONS, OPEItemsRun, OPERun
from feedgym.experiments.rank.presets import RANK_CONFIGS, RANK_PRESETS
from feedgym.experiments.retrieval.presets import RETRIEVAL_CONFIGS, RETRIEVAL_PRESETS
from feedgym.experiments.rewards.presets import REWARDS_COMPARISONS, RewardsRun
from feedgym.experiments.rl.presets import RL_PRESETS, RLConfig
from feedgym.experiments.simulator.presets import LEARNED_PRESETS, LearnedRun
from feedgym.experiments.sweep.presets import SWEEPS, AlignSweep, RetrievalSweep

__all__ = ["COMPARISONS", "CONFIGS", "KINDS", "PRESETS", "SWEEPS"]

PRESETS: dict[str, Callable[[], Any]] = {
    **ALIGN_PRESETS,
    **CYCLES_PRESETS,
    **RL_PRESETS,
    **RETRIEVAL_PRESETS,
    **RANK_PRESETS,
    **LEARNED_PRESETS,
}
"""The presets of `feedgym run`."""

COMPARISONS: dict[str, Callable[[], Any]] = {
    **CASCADE_COMPARISONS,
    **METHODS_COMPARISONS,
    **REWARDS_COMPARISONS,
    **OPE_COMPARISONS,
}
"""The presets of `feedgym compare`."""

KINDS: tuple[Any, ...] = (
    *(AlignConfig, CyclesConfig, RLConfig, CascadeRun, MethodsRun, AblationsRun, RewardsRun, OPERun, OPEItemsRun),
    *(LearnedRun, AlignSweep, RetrievalSweep),
    *RETRIEVAL_CONFIGS,
    *RANK_CONFIGS,
)
CONFIGS: dict[str, Any] = {kind.__name__: kind for kind in KINDS}
"""The kinds of experiments, by the name that a run folder records."""
