"""The comparison of reward models as a function that returns a whole configuration, to be changed field by field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from feedgym.experiments.methods.presets import CellsRun, check_list
from feedgym.experiments.options import pairs_of
from feedgym.plugins import BUILT_IN
from feedgym.ranges import Count

PLAIN = "plain"
"""The preset's own reward model, with which the others are compared."""
FIVE = {"reward_model.members": 5, "reward_model.resample": False}
"""An ensemble whose members learn from all users; with few data, resamples cost more than they teach."""
RESAMPLED = {"reward_model.members": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "narrow": {"reward_model.width": 16},
    "wide": {"reward_model.width": 128},
    "half_of_log": {"reward_share": 0.5},
    "tenth_of_log": {"reward_share": 0.1},
    "ensemble": FIVE,
    "cautious": {**FIVE, "reward": "cautious"},
    "very_cautious": {**FIVE, "reward": "cautious", "reward.deviations": 3.0},
    "worst_case": {**FIVE, "reward": "worst_case"},
    "resampled": RESAMPLED,
    "resampled_cautious": {**RESAMPLED, "reward": "cautious"},
    "averaged": {**RESAMPLED, "reward_model.shared_start": 0.5},
    "ips": {"reward_model.max_weight": 10.0},
    "doubly_robust": {"reward_model.max_weight": 10.0, "reward_model.imputed": 1},
    "genrank": {"reward_model.backbone": "genrank"},
    "hstu-rank": {"reward_model.backbone": "hstu-rank"},
    "mtgr": {"reward_model.backbone": "mtgr"},
    "p_score": {"reward_model.p_score": True},
    "clicks": {"reward": "clicks"},
    "diverse": {"reward": "diverse"},
}
"""Changes of the alignment for each reward model, by dotted name."""


@dataclass(frozen=True, kw_only=True)
class RewardsRun(CellsRun):
    """Compares reward models: measured offline, and by the true reward of the agent aligned to each.

    Log, tokenizer and base are made once per seed, and an ensemble once for all variants made from it. At the laptop's
    sizes each reward model takes about 3 minutes per seed. A comparison that was stopped continues with --resume
    FOLDER; --rewards or --seeds may add some.
    """

    called: ClassVar[str] = "rewards"
    said: ClassVar[str] = "Reward models"

    rewards: tuple[str, ...] = field(default_factory=lambda: tuple(VARIANTS))
    """Reward models: names of variants, of built-in rewards, or your own, as my_lab.reward:Mine. Variants are sizes
    (narrow, wide), shares (half_of_log, tenth_of_log), ensembles (ensemble, cautious, very_cautious, worst_case,
    resampled, averaged), weights (ips, doubly_robust), backbones (genrank, hstu-rank, mtgr), p_score, and others."""
    method: str = "ipa"
    """The alignment method, by name or by the import path of your own."""
    beams: Count = 32
    """Sessions per user to search with the base: far from the logged ones, and scored by all rewards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list(self, "rewards")
        known = {**VARIANTS, **BUILT_IN["reward"]}
        for name in self.rewards:
            if name not in known and ":" not in name:
                raise ValueError(f"rewards has {name!r}, which is unknown; give {', '.join(known)}, or an import path.")
        if "reward" in pairs_of(self.options, "set"):
            raise ValueError("set has reward, which this comparison decides itself, by --rewards; drop it.")

    def conditions(self) -> dict[str, dict[str, Any]]:
        """A condition per reward model."""
        return {name: {"method": self.method, **VARIANTS.get(name, {"reward": name})} for name in self.rewards}

    def methods_named(self) -> Sequence[str]:
        """The method in use."""
        return [self.method]

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        return [*(("reward", name) for name in self.rewards if name not in VARIANTS), *super().code()]


def rewards() -> RewardsRun:
    """Reward models of many kinds, measured and used for alignment, over seeds: one table, one report."""
    return RewardsRun()


def rewards_smoke() -> RewardsRun:
    """Three reward models and two seeds in seconds; its figures mean nothing."""
    some = (PLAIN, "narrow", "clicks")
    return RewardsRun(preset="onerec-ipa-smoke", rewards=some, seeds=(0, 1), beams=4)


REWARDS_COMPARISONS: dict[str, Callable[[], RewardsRun]] = {"rewards": rewards, "rewards-smoke": rewards_smoke}
"""The comparisons of reward models in `feedgym compare`."""
