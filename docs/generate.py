"""Writes the pages that are rendered at build time: an experiment per preset, and the command line's help.

mkdocs runs it (plugin gen-files); nothing is written into the repository.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

from griffe_plain import markdown

from feedgym.experiments.launch import kind_of
from feedgym.experiments.presets import COMPARISONS, PRESETS
from feedgym.experiments.results import differences

OUTCOMES = {
    "AlignConfig": "A table of agents served to the same fresh users, the reward model's opinion beside the truth "
    "after every round, and where the gap to the oracle lies: [the alignment lab](../alignment.md).",
    "CyclesConfig": "True reward against the requests spent on real users, cycle by cycle: "
    "[deployment cycles](../cycles.md).",
    "RLConfig": "The trained agent in one table with random, popular and the oracle, or with the agents of another run "
    "(`--against RUN`): [results](../results/reinforcement_learning.md).",
    "SASRecRun": "HR, NDCG and MRR of the next item over the whole catalogue, with popularity, ItemKNN and SASRec-CE "
    "beside it: [SASRec](../models/sasrec.md).",
    "HSTURun": "HR, NDCG and MRR of the next item over the whole catalogue, with popularity, ItemKNN and SASRec-CE "
    "beside it: [HSTU](../models/hstu.md).",
    "TigerRun": "HR, NDCG and MRR of the next item over the whole catalogue, with popularity, ItemKNN and SASRec-CE "
    "beside it: [TIGER](../models/tiger.md).",
    "HSTURankRun": "AUC, GAUC and log loss per behaviour on later requests, with the items' own rates beside it: "
    "[HSTU ranking](../models/hstu_rank.md).",
    "GenRankRun": "AUC, GAUC and log loss per behaviour on later requests, with the items' own rates beside it: "
    "[GenRank](../models/genrank.md).",
    "MTGRRun": "AUC, GAUC and log loss per behaviour on later requests, with the items' own rates beside it: "
    "[MTGR](../models/mtgr.md).",
    "LearnedRun": "A folder that can be used as `--simulator`, and how well it predicts held-out users: "
    "[a simulator fitted to a log](../learned_simulator.md).",
    "CascadeRun": "One table of the cascade's steps and the end-to-end agents, with milliseconds per request: "
    "[the cascade](../models/cascade.md).",
    "MethodsRun": "Methods against each other over seeds, with Student's intervals and corrected p values: "
    "[comparing](../alignment.md#comparing).",
    "AblationsRun": "One method with one option varied at a time, over seeds: [comparing](../alignment.md#comparing).",
    "RewardsRun": "Which measure of a reward model predicts what users get from the agent aligned to it: "
    "[reward models](../rewards.md).",
    "OPERun": "Ten estimators beside the truth, and which estimates are refused: "
    "[off-policy evaluation](../off_policy.md).",
    "OPEItemsRun": "Estimates of single items from exposures with known chances: "
    "[off-policy evaluation](../off_policy.md).",
}
"""What comes out, by kind of configuration."""

GROUPS = {
    "Alignment": ("AlignConfig", "CyclesConfig"),
    "Reinforcement learning": ("RLConfig",),
    "Next items": ("SASRecRun", "HSTURun", "TigerRun"),
    "Ranking": ("HSTURankRun", "GenRankRun", "MTGRRun"),
    "Learned users": ("LearnedRun",),
    "Comparisons": ("CascadeRun", "MethodsRun", "AblationsRun", "RewardsRun", "OPERun", "OPEItemsRun"),
}
"""Kinds of configurations by the heading they stand under."""


def presets() -> dict[str, tuple[Callable[[], Any], Any]]:
    """The function and the configuration of everything that `feedgym run` and `feedgym compare` offer."""
    return {name: (make, make()) for name, make in {**PRESETS, **COMPARISONS}.items()}


def of_group(kinds: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], Any], Any]]:
    """The presets of some kinds."""
    for name, (make, config) in presets().items():
        if type(config).__name__ in kinds:
            yield name, make, config


def command_of(name: str) -> str:
    """The command of a preset."""
    return f"feedgym {'run' if name in PRESETS else 'compare'} {name}"


def experiments_nav() -> list[Any]:
    """The navigation's entries: the index, then a page per preset that is more than a smoke test."""
    nav: list[Any] = ["experiments/index.md"]
    for group, kinds in GROUPS.items():
        pages = [{name: f"experiments/{name}.md"} for name, _, _ in of_group(kinds) if not name.endswith("smoke")]
        nav.append({group: pages})
    return nav


def index_page() -> str:
    """A table per group of presets."""
    parts = ["# Experiments\n", "A preset is a whole configuration by name; `feedgym run NAME --help` lists every "]
    parts.append("option of one. Presets that end in `smoke` take seconds, and their figures mean nothing.\n")
    for group, kinds in GROUPS.items():
        parts.append(f"\n## {group}\n\n| command | what it does |\n|---|---|\n")
        for name, make, _ in of_group(kinds):
            target = command_of(name)
            shown = f"`{target}`" if name.endswith("smoke") else f"[`{target}`]({name}.md)"
            parts.append(f"| {shown} | {summary_of(make)} |\n")
    return "".join(parts)


def summary_of(make: Callable[[], Any]) -> str:
    """The first line of a preset's docstring."""
    return (inspect.getdoc(make) or "").partition("\n")[0]


def experiment_page(name: str, make: Callable[[], Any], config: Any) -> str:
    """What a preset does, how long it takes, what comes out, its stages and its options that are not the defaults."""
    smoke = smoke_of(type(config))
    commands = f"```\n{command_of(name)}\n{command_of(name)} --help\n```"
    lines = [f"# {name}", markdown(inspect.getdoc(make) or ""), commands]
    lines += ["## What comes out", OUTCOMES[type(config).__name__]]
    lines += ["Everything lies in one run folder: `summary.json`, `report.html`, `metrics.jsonl` and the stages."]
    stages = dict.fromkeys(re.sub(r"-\d+", "-N", stage) for stage in kind_of(config).plan(config))
    lines += ["## Stages", f"Finished stages are reused when a run is resumed: {', '.join(f'`{s}`' for s in stages)}."]
    if smoke:
        lines += [f"To see every stage once, in seconds: `{command_of(smoke)}`."]
    if changed := list(differences(type(config)(), config)):
        lines += ["## Options that differ from the defaults", "| option | here | default |\n|---|---|---|\n"]
        lines[-1] += "\n".join(f"| `--{option}` | {shown(here)} | {shown(usual)} |" for option, here, usual in changed)
    return "\n\n".join(lines) + "\n"


def smoke_of(kind: type) -> str | None:
    """The smallest preset of a kind."""
    return next((n for n, (_, config) in presets().items() if n.endswith("smoke") and type(config) is kind), None)


def shown(value: Any) -> str:
    """A value of an option in a table."""
    if is_dataclass(value):
        value = type(value).__name__
    text = str(value)
    return f"`{text if len(text) < 60 else text[:57] + '...'}`"


def help_of(arguments: list[str]) -> str:
    """What the command line prints for ``--help``."""
    from feedgym.cli import main

    os.environ |= {"COLUMNS": "88", "NO_COLOR": "1"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).rstrip()


def cli_page() -> str:
    """The help of every command."""
    from feedgym.cli import COMMANDS

    parts = [
        "# Command line\n\nAs `feedgym` itself prints it. `feedgym run PRESET --help` lists the options of a preset; "
    ]
    parts.append("those of the demo are at the end of this page.\n")
    pages = {"feedgym": []} | {f"feedgym {name}": [name] for name in COMMANDS}
    pages |= {"feedgym data inspect": ["data", "inspect"], "feedgym results add": ["results", "add"]}
    pages |= {"feedgym run onerec-ipa": ["run", "onerec-ipa"]}
    for title, arguments in pages.items():
        parts.append(f"\n## {title}\n\n```text\n{help_of(arguments)}\n```\n")
    return "".join(parts)


def main() -> None:
    """Write all pages."""
    import mkdocs_gen_files

    pages = {"experiments/index.md": index_page(), "reference/cli.md": cli_page()}
    for name, (make, config) in presets().items():
        if not name.endswith("smoke"):
            pages[f"experiments/{name}.md"] = experiment_page(name, make, config)
    for path, text in pages.items():
        with mkdocs_gen_files.open(path, "w") as file:
            file.write(text)


if __name__ == "<run_path>":  # by mkdocs-gen-files, and not by an import
    main()
