"""Compares reward models: alignments whose conditions are rewards, together with measures of each reward.

    cells (rewards x seeds, each a whole alignment) -> each reward measured -> which measure predicts the aligned agent

The alignments are those of :mod:`feedgym.experiments.methods`. Cells of one seed share log, tokenizer and base, a
finished cell is a stage, and a failed cell does not stop the others. Then every reward scores the same sessions of a
seed. They are held-out logged ones, the base's draws, those of the agent aligned to the first reward, and those of a
search with the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedgym.data.batches import TensorRows
from feedgym.data.parquet import read_batch, write_batch
from feedgym.experiments.align.agents import FinishedRun, agents_of, finished_stage
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.probe import Probe
from feedgym.experiments.align.stages import PROBE
from feedgym.experiments.methods.cells import Cell, cells_of
from feedgym.experiments.methods.experiment import CELLS, finished, summarised
from feedgym.experiments.methods.experiment import plan as plan_of_cells
from feedgym.experiments.page import missing
from feedgym.experiments.progress import progress
from feedgym.experiments.report import conclude
from feedgym.experiments.rewards.measures import against_log, against_truth, served_at_random
from feedgym.experiments.rewards.predictors import predictors
from feedgym.experiments.rewards.presets import RewardsRun
from feedgym.experiments.rewards.report import terminal_table, write_report
from feedgym.experiments.run import Codec, Plan, Run, json_of, read_product
from feedgym.experiments.scoring import scores_of

__all__ = ["experiment", "plan", "terminal_table"]

MEASURES: Codec[Any] = json_of(dict[str, Any])
"""Codec of a reward's figures and reliability curves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found(TensorRows):
    """Sessions that a search with a seed's base finds for the probed users.

    Attributes:
        item_ids_USK: int64 sessions.
        truth_half_US2: float32 true values, each the mean over one half of the simulated responses.
    """

    item_ids_USK: Tensor
    truth_half_US2: Tensor


FOUND: Codec[Found] = Codec(
    lambda found, folder: write_batch(found, folder / "found.safetensors"),
    lambda folder: read_batch(Found, folder / "found.safetensors"),
)
"""Codec of found sessions."""


def plan(config: RewardsRun) -> Plan:
    """Plan a stage per cell, one per seed for the search, and one per cell for the measures of its reward.

    Raises:
        ValueError: an alignment is not possible.
    """
    plan, cells = plan_of_cells(config), cells_of(config)
    for seed in config.seeds:
        of_seed = [cell for cell in cells if cell.config.seed == seed]
        searched = plan.stage(_searched(seed), config.beams, (of_seed[0].name,))
        for cell in of_seed:
            plan.stage(_measured(cell), parents=tuple(dict.fromkeys((cell.name, of_seed[0].name, searched))))
    return plan


def experiment(config: RewardsRun, run: Run) -> dict[str, Any]:
    """Align to every reward, measure every reward, and compare them.

    Args:
        config: the comparison.
        run: the folder of the comparison.

    Returns:
        The summary, as written to ``summary.json``: that of a comparison of methods, with ``measures`` by cell,
        ``measured``, their means over the seeds by reward, and ``predictors``.
    """
    cells = cells_of(config)
    summaries, failed = finished(config, cells, run)
    there = [cell for cell in cells if cell.name in summaries]
    measures: dict[str, Any] = {}
    for seed in config.seeds:
        measures |= _measures_of([cell for cell in there if cell.config.seed == seed], seed, config, run)
    for name, told in measures.items():
        told["figures"] |= _of_towers(summaries[name])
    summary = summarised(config, there, summaries, run.folder)
    measured = {condition: _mean_over_seeds(condition, there, measures) for condition in summary["conditions"]}
    reward = {name: summary["agents"][name]["true_reward"]["mean"] for name in measured}
    summary |= {"measures": measures, "measured": measured, "predictors": predictors(measured, reward)}
    summary |= {"failed": failed, **run.facts()}
    return conclude(run, summary, {}, write_report)


def _measures_of(cells: list[Cell], seed: int, config: RewardsRun, run: Run) -> dict[str, Any]:
    """Measures of the rewards of a seed, by cell."""
    if not cells:
        return {}
    shared = _Shared(run.folder / CELLS, cells[0], run.trust)
    searched = run.stage(_searched(seed), partial(shared.searched, config.beams), FOUND).value
    found = {}
    with progress(f"Measuring the rewards of seed {seed}") as step:
        for number, cell in enumerate(cells, start=1):
            found[cell.name] = run.stage(_measured(cell), partial(shared.measured, cell, searched), MEASURES).value
            step(number, len(cells))
    return found


class _Shared:
    """The parts that the cells of a seed share: log, base, and the sessions that all rewards score.

    Args:
        folder: the parent of the cells' run folders.
        first: the cell whose aligned agent draws sessions for all.
        trust: as for :func:`feedgym.experiments.align.agents.agents_of`.
    """

    def __init__(self, folder: Path, first: Cell, trust: bool) -> None:
        self.folder, self.first, self.trust = folder, first, trust
        self.read: FinishedRun | None = None

    def run_of(self, cell: Cell) -> FinishedRun:
        """The finished run of a cell."""
        named = [name for _, name in cell.config.code() if name]
        return agents_of(self.folder / cell.name, trust=self.trust, named=named)

    def pool(self) -> tuple[FinishedRun, Pool]:
        """The first cell's run and the pool of its log; both are read once."""
        if self.read is None:
            self.read = self.run_of(self.first)
            self._pool = Pool.of((self.read.log, self.read.catalog), self.read.world, self.read.config)
        return self.read, self._pool

    def probe(self, cell: Cell, of: str) -> Probe:
        """The sessions that an agent of a cell drew for the probed users."""
        return read_product(finished_stage(self.folder / cell.name, f"pool-{of}"), PROBE.load)

    def searched(self, beams: int, work: Path) -> Found:
        """Search sessions with the base, and value them by the truth."""
        run, pool = self.pool()
        users, base = run.config.probe.users, run.agents["base"]
        histories = pool.probed(users).histories
        with torch.inference_mode(), progress("Searching with the base") as step:
            items_USK = base.beams(histories.rows(slice(None)), beams).item_ids_USK.cpu()  # type: ignore[attr-defined]
            truth = run.world.probed_values(pool, users, items_USK.numpy(), run.config.probe.replicas, step)
        assert truth is not None  # a comparison has simulated users
        return Found(item_ids_USK=items_USK, truth_half_US2=torch.from_numpy(truth))

    def measured(self, cell: Cell, searched: Found, work: Path) -> dict[str, Any]:
        """Measure a reward, with figures and curves, on the log and on the sessions of a seed."""
        _, pool = self.pool()
        reward, config = self.run_of(cell).reward, cell.config
        own, first = self.probe(cell, "aligned"), self.probe(self.first, "aligned")
        sets: dict[str, Probe | Found] = {
            "base": self.probe(self.first, "base"),
            "aligned": first,
            "searched": searched,
            "own": own,
        }
        unseen = pool.unseen
        told = {"log": against_log(reward, unseen.histories, unseen.sessions, config.weights)}
        if (random_N := served_at_random(config, unseen.sessions)).any():
            drawn = unseen.rows(random_N)
            told["random"] = against_log(reward, drawn.histories, drawn.sessions, config.weights, "random")
        histories = pool.probed(config.probe.users).histories
        for name, sessions in sets.items():
            assert sessions.truth_half_US2 is not None
            score_US = scores_of(reward, histories, sessions.item_ids_USK)
            told[name] = against_truth(score_US, sessions.truth_half_US2.numpy().astype(np.float64), name)
        figures = {name: value for part in told.values() for name, value in part["figures"].items()}
        return {"figures": figures, "curves": {name: part["curve"] for name, part in told.items()}}


def _of_towers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Mean area under the ROC curve of a reward model's towers, over all items."""
    told = [value for name, value in summary["reward_model"].items() if ", " not in name and not missing(value)]
    return {"towers_auc": float(np.mean(told))} if told else {}


def _mean_over_seeds(condition: str, cells: list[Cell], measures: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a reward, as means over the seeds that have them."""
    told = [measures[cell.name]["figures"] for cell in cells if cell.condition == condition]
    names = dict.fromkeys(name for figures in told for name in figures)
    by_name = {n: [figures[n] for figures in told if not missing(figures.get(n))] for n in names}
    return {name: float(np.mean(values)) for name, values in by_name.items() if values}


def _searched(seed: int) -> str:
    return f"searched-{seed}"


def _measured(cell: Cell) -> str:
    return f"measured-{cell.name}"
