"""Rows of the table of results: one figure of a finished run with its interval, command, seed and verdict, as JSON.

``feedgym results add RUN`` writes a row; ``python docs/render_results.py`` makes docs/results.md of all rows.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from feedgym.experiments.run import read_about, write_json

USUAL = "lift.true_reward"
"""The default figure of a run: the relative gain in true reward."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A figure that a run found, as a row of the table.

    Attributes:
        experiment: readable name of the experiment.
        figure: readable name of the figure.
        mean: the figure.
        low: lower end of its 95% interval; None if there is none.
        high: upper end.
        unit: "relative" for shares and lifts, else the unit or nothing.
        over: what the interval is over: users, seeds, or another word written into the row by hand.
        command: the command that makes the run again.
        seed: seed or seeds.
        revision: git revision of the code.
        verdict: conclusion from the figure, in a few words.
        page: page of the documentation with the details, below docs/.
    """

    experiment: str
    figure: str
    mean: float
    low: float | None
    high: float | None
    unit: str
    over: str
    command: str
    seed: str
    revision: str
    verdict: str
    page: str


def result_of(
    run: Path, *, verdict: str, figure: str = USUAL, says: str = "", command: str = "", page: str = ""
) -> Result:
    """Makes the row of a finished run.

    Args:
        run: its folder.
        verdict: conclusion from the figure.
        figure: path of a figure in summary.json, such as "lift.true_reward" or "agents.hstu.NDCG@10".
        says: readable name of the figure; its path if left out.
        command: command of the run; derived from its configuration if left out.
        page: page with the details.

    Raises:
        ValueError: the run is not finished, or it has no such figure.
    """
    if not (run / "summary.json").exists():
        raise ValueError(f"{run} has no summary.json; finish the run with feedgym run PRESET --resume {run}.")
    summary = json.loads((run / "summary.json").read_text())
    told = figure_at(summary, figure)
    about = read_about(run)
    seed = summary.get("seed", about["config"].get("seed", about["config"].get("seeds", "-")))
    return Result(
        experiment=str(summary.get("title", run.name)),
        figure=says or figure,
        mean=told["mean"],
        low=told.get("low"),
        high=told.get("high"),
        unit="relative" if figure.startswith("lift") else "",
        over="seeds" if "runs" in told else "users",
        command=command or command_of(_config_of(run)),
        seed=" ".join(map(str, seed)) if isinstance(seed, list) else str(seed),
        revision=str(summary.get("git_revision", about["git_revision"]))[:12],
        verdict=verdict,
        page=page,
    )


def figure_at(summary: Mapping[str, Any], figure: str) -> Mapping[str, Any]:
    """Finds a figure of a summary by its path; a row of a list is found by its ``name``.

    Raises:
        ValueError: the path leads nowhere, or to something without a mean; the message lists words that may follow.
    """
    found: Any = summary
    for word in figure.split("."):
        if isinstance(found, list):
            found = {row["name"]: row for row in found if isinstance(row, Mapping) and "name" in row}
        if not isinstance(found, Mapping) or word not in found:
            there = ", ".join(sorted(found)[:20]) if isinstance(found, Mapping) else "nothing"
            raise ValueError(f"figure={figure!r} is not in the summary: there is no {word!r}; give one of {there}.")
        found = found[word]
    if not isinstance(found, Mapping) or not isinstance(found.get("mean"), int | float):
        raise ValueError(f"figure={figure!r} is not a figure with a mean; give the path of one, such as {USUAL}.")
    return found


def _config_of(run: Path) -> Any:
    from feedgym.experiments.align.agents import read_config

    return read_config(run)


def command_of(config: Any) -> str:
    """Returns a command for a configuration: the preset that it differs least from, and the options that differ."""
    from feedgym.experiments.presets import COMPARISONS, PRESETS, SWEEPS

    choices = []
    for command, presets in (("run", PRESETS), ("compare", COMPARISONS), ("sweep", SWEEPS)):
        for name, make in presets.items():
            if type(usual := make()) is type(config):
                choices.append((options_of(usual, config), f"feedgym {command} {name}"))
    options, command = min(choices, key=lambda choice: len(choice[0]))
    return " ".join([command, *options])


def options_of(usual: Any, config: Any) -> list[str]:
    """The options, as the command line takes them, that make one configuration of another."""
    return [_as_option(name, here) for name, here, _ in differences(usual, config)]


def differences(usual: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Options by dotted name whose values differ between two configurations, with both values.

    Options of another plug-in than the usual one are compared with that plug-in's own defaults.
    """
    if is_dataclass(here) and not isinstance(here, type):
        usual = usual if type(usual) is type(here) else type(here)()
        for field in fields(here):
            inner = f"{name}.{field.name.removesuffix('_options')}".lstrip(".").replace("_", "-")
            yield from differences(getattr(usual, field.name), getattr(here, field.name), inner)
    elif here != usual:
        yield name, here, usual


def _as_option(name: str, value: Any) -> str:
    """An option as the command line takes it."""
    if isinstance(value, bool):
        head, _, last = name.rpartition(".")
        return f"--{name}" if value else f"--{head}.no-{last}" if head else f"--no-{last}"
    values = value if isinstance(value, tuple | list) else (value,)
    return " ".join([f"--{name}", *(shlex.quote(str(one)) for one in values)])


def add_result(run: Path, out: Path, name: str = "", **told: Any) -> Path:
    """Write the row of a finished run as a JSON file.

    Args:
        run: the run's folder.
        out: folder of the rows.
        name: name of the file without its suffix; the run's if left out. A row of that name is replaced.
        told: further arguments of :func:`result_of`.
    """
    path = out / f"{name or run.resolve().name}.json"
    result = result_of(run, **told)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(result))
    return path


def read_results(folder: Path) -> list[Result]:
    """All rows of a folder, by the names of their files.

    Raises:
        ValueError: a file is not a row.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        try:
            rows.append(Result(**json.loads(path.read_text())))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a row of the results ({error}); write it with feedgym results add."
            ) from error
    return rows


def results_table(rows: list[Result]) -> str:
    """A Markdown table with a row per experiment."""
    lines = ["| experiment | figure | found | command | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        what = f"[{row.experiment}]({row.page})" if row.page else row.experiment
        cells = (what, row.figure, found(row), f"`{short(row)}`", row.verdict)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def found(row: Result) -> str:
    """A figure with its interval; relative ones in percent."""
    percent = row.unit == "relative"
    scale, form, unit = (100, "+.1f", "%") if percent else (1, "#.3g", f" {row.unit}".rstrip())
    text = f"{row.mean * scale:{form}}{unit}"
    if row.low is None or row.high is None:
        return text
    form = form.lstrip("+")
    return f"{text} [{row.low * scale:{form}}, {row.high * scale:{form}}]"


def short(row: Result) -> str:
    """A command that fits a cell, with its seeds; the whole command is in the row's file."""
    words = row.command.split()
    kept = row.command if len(row.command) <= 42 else f"{' '.join(words[:3])} ..."
    return kept if "--seed" in kept or row.seed in ("", "-") else f"{kept} (seed {row.seed})"
