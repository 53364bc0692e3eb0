"""The command line: per command a dataclass, whose fields and docstrings are its --help, and a function that runs it.

Nothing heavy is imported before the command is known, so that help and errors are fast. Errors of the user (a
ValueError, an OSError) end in one line with the remedy and exit code 2; FEEDGYM_DEBUG=1 shows the traceback. After
Ctrl-C, ``--resume`` continues the run.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from dataclasses import field as dataclass_field
from itertools import groupby
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, TypeVar

import tyro
from annotated_types import Interval
from tyro.conf import Positional

from feedgym import api
from feedgym.api import new_folder, prepare_libraries, preset_of
from feedgym.experiments.tracking import TrackerName
from feedgym.ranges import Count, CountOrZero, Length, Ranged, Seed, Share, Visits

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
NO_TENSORS = (
    "A checkpoint in the run's folder holds more than tensors and was not read; make its stage again with "
    "feedgym stage NAME --run FOLDER --redo."
)
ArgumentsT = TypeVar("ArgumentsT")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``feedgym`` program."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in ("-h", "--help"):
        print(overview())
        return
    arguments, quiet, verbose = _how_loud(arguments)
    if not arguments:
        print(greeting())
        return
    name, *rest = arguments
    prepare_libraries()
    _speak(quiet, verbose)
    try:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            _command(name, rest)
        else:
            from feedgym.agents.processes import run_by_all

            run_by_all(lambda: _command(name, rest))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        raise  # not a mistake; see __main__
    except (ValueError, OSError, UnpicklingError) as error:
        if verbose or os.environ.get("FEEDGYM_DEBUG"):
            raise
        said = NO_TENSORS if isinstance(error, UnpicklingError) else " ".join(str(error).split())
        said = said.replace("_options.", ".")  # the command line's name for the options of a plug-in
        print("feedgym:", said, file=sys.stderr)
        sys.exit(MISTAKE)


def _command(name: str, arguments: Sequence[str]) -> None:
    if name not in COMMANDS:
        raise ValueError(f"There is no command {name!r}; the commands are {', '.join(COMMANDS)}.")
    COMMANDS[name](arguments)


def _how_loud(arguments: Sequence[str]) -> tuple[list[str], bool, bool]:
    """Returns the arguments without -q and -v, wherever they are, and whether each was given."""
    quiet, verbose = ({*names} & {*arguments} for names in (("-q", "--quiet"), ("-v", "--verbose")))
    return [word for word in arguments if word not in quiet | verbose], bool(quiet), bool(verbose)


def _speak(quiet: bool, verbose: bool) -> None:
    """Set how much is written to standard error; results on standard output stay the same."""
    from feedgym.experiments.progress import console

    console.quiet = quiet
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        for name in ("transformers", "datasets", "accelerate", "trl"):
            logging.getLogger(name).setLevel(logging.INFO)


def greeting() -> str:
    """Text of ``feedgym`` alone: suggestions for the next step."""
    runs = sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    last = runs[-1].parent if runs else None
    done = last is not None and (last / "summary.json").exists()
    went_on = [
        f"  {f'feedgym evaluate {last} --users 1000':<46}judge your latest run by other users",
        f"  {f'feedgym watch {last}':<46}watch its agent serve a user",
    ]
    stopped = [f"  {f'feedgym demo --resume {last}':<46}continue your latest run, which is not finished"]
    lines = [
        "feedgym: does aligning a generative recommender make users better off? Simulated users know.",
        "",
        *((went_on if done else stopped) if last else []),
        f"  {'feedgym demo':<46}the whole experiment in about 5 minutes; ends with a report",
        f"  {'feedgym run onerec-ipa-smoke':<46}the same, far too small to mean anything: does it run here?",
        f"  {'feedgym list presets':<46}all experiments; also models, methods, envs, data ...",
        f"  {'feedgym doctor':<46}this machine and its libraries",
        f"  {'feedgym --help':<46}all commands",
    ]
    return "\n".join(lines)


def overview() -> str:
    """Text of ``feedgym --help``."""
    lines = [f"  {name:<12}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: feedgym COMMAND [OPTIONS]",
            "",
            "Does aligning a generative recommender make users better off? Simulated users know.",
            "",
            *lines,
            "",
            "`feedgym COMMAND --help` explains a command. Start with `feedgym demo`.",
            "-q prints results alone, -v also libraries' messages and tracebacks; NO_COLOR=1 switches colours off.",
        ]
    )


def _parse(kind: type[ArgumentsT], command: str, arguments: Sequence[str], default: Any = None) -> ArgumentsT:
    """Parse options from a command line.

    Raises:
        ValueError: an option is unknown, missing, not a number or outside its range; one line.
    """
    defaults = {} if default is None else {"default": default}
    asked = {"prog": f"feedgym {command}", "args": arguments, "config": (tyro.conf.AvoidSubcommands,), **defaults}
    if {"-h", "--help"} & set(arguments):
        return tyro.cli(kind, **asked)
    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"  # so that tyro does not wrap its messages at the terminal's width
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, **asked)
    except SystemExit:
        raise ValueError(_line_of(said.getvalue(), f"feedgym {command}", kind.__name__)) from None
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _line_of(box: str, command: str, root: str) -> str:
    """Turns tyro's message about a mistake, several lines in a box, into one line that names the nearest options."""
    lines = [line.strip("│╭╮╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    parts = [list(part) for is_rule, part in groupby(lines[1:], lambda line: set(line) <= set("─-")) if not is_rule]
    fault, rest = " ".join(parts[0]), [line for part in parts[1:] for line in part]
    fault = fault.removeprefix(f"Error parsing {root}: ").removeprefix("Error parsing ")
    if part := re.match(r"([\w.-]+): (?=\w+(\[\d+\])*=)", fault):  # in a part: rounds: num=-1 becomes rounds.num=-1
        fault = f"{part[1].replace('-', '_')}.{fault[part.end() :]}"
    fault = re.sub(r"no type matching (.*) could be instantiated from \[(.*?)\].*", r"\2 is not a \1", fault)
    fault = re.sub(r"invalid literal for int\(\) with base 10: ('.*')", r"\1 is not a whole number", fault)
    fault = re.sub(r"could not convert string to float: ('.*')", r"\1 is not a number", fault)
    if fault.startswith("Unrecognized options") and (near := re.findall(r"^(--[\w.-]+)", "\n".join(rest), re.M)):
        fault += f"; perhaps you meant {' or '.join(dict.fromkeys(near))}"
    return fault if "=" in fault.split(" ")[0] else f"{fault.rstrip('.')}. See {command} --help."


# ---------------------------------------------------------------- demo, run, stage, evaluate


@dataclass(frozen=True, kw_only=True)
class Demo(Ranged):
    """The whole experiment on simulated users, in about 5 minutes on 2 cores.

    Pretrains OneRec on the log of 4,000 users and aligns it by iterated DPO against a reward model. Then it serves 280
    fresh users for 30 visits each. So do the agent before alignment, both agents by beam search and by the best of
    16 sessions, and three references. A report compares them.

    It is `feedgym run onerec-ipa --judge.best-of 16`; see its help for all options.
    """

    seed: Seed = 0
    """Seed of everything: catalogue, users, weights, samples."""
    run: Path | None = None
    """Folder to write everything to; a new one under runs/ if left out."""
    resume: Path | None = None
    """Continue the run in this folder from where it stopped, with its own configuration."""
    store: Path | None = None
    """Share stages with other runs in this folder: a stage is stored by its settings and reused if they are equal."""
    ray: str = "local"
    """Place to sample sessions: local (two processes), off (this one), or the address of a Ray cluster."""
    trust: bool = False
    """Import code named in the folder even if it is not feedgym's own; use it only if you trust who made it."""
    tracker: TrackerName = "wandb"
    """Additional record in the run's folder: wandb (offline unless WANDB_MODE=online), tensorboard or none."""
    dry_run: bool = False
    """Only print the stages, which of them exist, and the time and memory that the others would take."""


def demo(arguments: Sequence[str]) -> None:
    """Pretrain, align and judge OneRec on simulated users: the whole experiment in about 5 minutes on 2 cores."""
    options = _parse(Demo, "demo", arguments)
    from feedgym.experiments.align.presets import demo as preset

    config = replace(preset(), seed=options.seed) if options.resume is None else read_config(options.resume)
    if hasattr(config, "ray"):  # a resumed run may be of any kind
        config = replace(config, ray=options.ray)
    if options.resume is not None:
        config = check_code(config, options.resume, options.trust, arguments)
    folders = (options.run, options.resume)
    _experiment("demo", config, *folders, **_of_run(options))


def run(arguments: Sequence[str]) -> None:
    """The same from a preset with any option changed; --data takes a real log."""
    from feedgym.experiments.presets import PRESETS

    _from_preset("run", PRESETS, arguments)


COMPARE = """
  feedgym compare methods --run runs/methods        all alignment methods, seeds 0 1 2
  feedgym compare methods --methods dpo grpo --seeds 0 1 --set rounds.num=3 dpo.beta=0.3
  feedgym compare methods --resume runs/methods     continues a stopped run; --seeds or --methods may add some
  feedgym compare rewards --run runs/rewards        20 reward models: measured, and used for alignment
  feedgym compare ablations --method dpo --beta 0.03 0.3 --num-samples --user-share --pairing --rounds
  feedgym compare ope --against runs/demo           19 agents estimated from a log before serving, and the truth
  feedgym compare ope-items --data FOLDER           the same for single items, by KuaiRand's random exposures

Methods and ablations are whole alignments: on 2 cores about 2 minutes per method (or value) and seed at the laptop's
sizes, and 1 minute per seed for its log, base and reward model, which are made once. Each has a run folder under
cells/ with its own report; two run at a time (--workers). A failed one is listed in the table with its reason."""
"""Text of ``feedgym compare`` below its presets."""


def compare(arguments: Sequence[str]) -> None:
    """Compare agents or methods in one table: feedgym compare cascade, methods, ablations or ope."""
    from feedgym.experiments.presets import COMPARISONS

    _from_preset("compare", COMPARISONS, arguments, COMPARE)


SWEEP = """
  feedgym sweep onerec-ipa --space "method.beta=loguniform(0.05,1)" "rounds.num=choice(2,4,6)" --run runs/sweep
  feedgym sweep onerec-ipa --space "method=choice(dpo,ipa,simpo)" --seeds 0 1 --set log.users=1000
  feedgym sweep sasrec --space "fit.lr=loguniform(1e-4,1e-2)" "model.dropout=uniform(0,0.5)" --num-samples 32
  feedgym sweep onerec-ipa --resume runs/sweep      continues a stopped sweep

A space has the words of Ray Tune. ASHA stops weak trials after a round. The result is a table of the trials, and the
command that runs the best of them and judges it by users whom no trial has seen."""
"""Text of ``feedgym sweep`` below its presets."""


def sweep(arguments: Sequence[str]) -> None:
    """Search an experiment's options with Ray Tune, by users who are held out: feedgym sweep PRESET --space ..."""
    from feedgym.experiments.presets import SWEEPS

    _from_preset("sweep", SWEEPS, arguments, SWEEP)


def _from_preset(
    command: str, presets: Mapping[str, Callable[[], Any]], arguments: Sequence[str], teaches: str = ""
) -> None:
    """Run a preset with the options of the command line."""
    if not arguments or arguments[0].startswith("-"):
        print(f"usage: feedgym {command} PRESET [OPTIONS]\n")
        print(f"Presets (`feedgym {command} PRESET --help` lists every option):\n")
        for name, preset in presets.items():
            print(f"  {name:<20}{(getattr(preset, 'func', preset).__doc__ or '').splitlines()[0]}")
        print(teaches, end="\n" if teaches else "")
        return
    name, *rest = arguments
    config = preset_of(name, presets)
    options = _parse_run(f"{command} {name}", rest, config)
    if options.resume is not None:
        begun = read_config(options.resume)
        if type(begun) is not type(config):
            raise ValueError(f"{options.resume} is a run of another kind than {name}; resume it with its own preset.")
        options = _parse_run(f"{command} {name}", rest, check_code(begun, options.resume, options.trust, arguments))
    config = type(config)(**{field.name: getattr(options, field.name) for field in fields(config)})
    if options.resume is not None:
        check_code(config, options.resume, options.trust, arguments)
    folders = (options.run, options.resume)
    title = f"sweep-{name}" if command == "sweep" else name
    _experiment(title, config, *folders, command=f"{command} {name}", **_of_run(options))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Folders of an experiment."""

    run: Path | None = None
    """Folder to write everything to; a new one under runs/ if left out."""
    resume: Path | None = None
    """Continue the run in this folder from where it stopped. Options change its configuration, and stages that depend
    on them are done again: --rounds.num 8 adds rounds to a finished run."""
    store: Path | None = None
    """Share stages with other runs in this folder. A stage is stored by the settings that decide it, and reused if
    another run has made it. Runs that differ only in --method share everything before it. A resumed run knows its
    store; give it if it was moved."""
    trust: bool = False
    """Import code named in folders even if it is not feedgym's own, such as the simulator of a resumed run. Use it only
    if you trust who made them. Code named on this command line does not need it."""
    tracker: TrackerName = "wandb"
    """Additional record in the run's folder: wandb (offline unless WANDB_MODE=online), tensorboard or none."""
    dry_run: bool = False
    """Only print the stages, which of them exist, and the time and memory that the others would take."""


def _parse_run(command: str, arguments: Sequence[str], config: Any) -> Any:
    """Parse the options of an experiment; those of its plug-ins are the fields of the chosen plug-in's ``Config``.

    So --model NAME decides which --model.* exist.
    """
    from feedgym.plugins import completed

    plugins = getattr(config, "PLUGINS", ())
    chosen = {
        kind: name for kind in plugins if (name := _value_of(kind, arguments)) not in (None, getattr(config, kind))
    }
    config = completed(replace(config, **chosen, **{f"{kind}_options": None for kind in chosen}))
    parts = []
    for kind in plugins:
        options = getattr(config, f"{kind}_options")
        shown: Any = tyro.conf.Suppress if options is None else tyro.conf.arg(name=kind)
        parts.append((f"{kind}_options", Annotated[type(options), shown], dataclass_field(default=options)))
    made: Any = make_dataclass("RunArguments", parts, bases=(RunOptions, type(config)), frozen=True, kw_only=True)
    made.__doc__ = type(config).__doc__
    return _parse(made, command, arguments, made(**vars(config)))


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The last value that a command line gives to an option."""
    value = None
    for at, word in enumerate(arguments):
        name, gives, rest = word.partition("=")
        if name == f"--{option}":
            value = rest if gives else next(iter(arguments[at + 1 :]), None)
    return value


@dataclass(frozen=True, kw_only=True)
class StageArguments(Ranged):
    """Run an experiment up to one stage: log, tokenizer, base, reward, reward-check, sampled-0, aligned-1, ..., judged.

    Existing stages are kept.
    """

    name: Positional[str]
    """The stage."""
    run: Path
    """The run's folder; a new run is started from the preset."""
    preset: str = "onerec-ipa"
    """Preset of a new run."""
    seed: Seed = 0
    """Seed of a new run; a comparison of several seeds has its own."""
    redo: bool = False
    """Do the stage again even if its product exists. A product in a store (--store) is made again only if it is
    damaged, because other runs use it."""
    store: Path | None = None
    """Folder in which a new run shares its stages with other runs."""
    trust: bool = False
    """Import code named in the folder even if it is not feedgym's own; use it only if you trust who made it."""


def stage(arguments: Sequence[str]) -> None:
    """Run an experiment up to one stage, or do that stage again."""
    options = _parse(StageArguments, "stage", arguments)
    from feedgym.experiments.presets import COMPARISONS, PRESETS
    from feedgym.experiments.run import StageReached

    presets = {**PRESETS, **COMPARISONS}
    begun = (options.run / "config.json").exists()
    config = read_config(options.run) if begun else _of_seed(preset_of(options.preset, presets), options.seed)
    if begun:
        config = check_code(config, options.run, options.trust, arguments)
    folders = (None, options.run) if begun else (options.run, None)
    redo = options.name if options.redo else None
    with contextlib.suppress(StageReached):
        asked: dict[str, Any] = {"stop_after": options.name, "redo": redo}
        _experiment("stage", config, *folders, **asked, trust=options.trust, store=options.store)


def _of_seed(config: Any, seed: int) -> Any:
    """A configuration with another seed; a comparison of several seeds stays unchanged."""
    return replace(config, seed=seed) if hasattr(config, "seed") else config


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(Ranged):
    """Judge a finished run's agents again, by other users or for longer; rewrites its summary and report."""

    run: Positional[Path]
    """The run's folder."""
    users: Count | None = None
    """Number of fresh users."""
    visits: Visits | None = None
    """Visits per user."""
    seed: Seed | None = None
    """Seed of the users; another seed gives another population."""
    beams: CountOrZero | None = None
    """Width of the agents' beam search in the second judgement; 0 skips it."""
    trust: bool = False
    """Import code named in the folder even if it is not feedgym's own; use it only if you trust who made it."""


def evaluate(arguments: Sequence[str]) -> None:
    """Judge a finished run's agents again, by other users or for longer."""
    options = _parse(EvaluateArguments, "evaluate", arguments)
    api.check_finished(options.run)
    config = check_code(read_config(options.run), options.run, options.trust, arguments)
    changes = {name: getattr(options, name) for name in ("users", "visits", "seed", "beams")}
    _experiment("evaluate", api.judged_by_others(config, **changes), None, options.run, trust=options.trust)


def read_config(folder: Path) -> Any:
    """Read a run's configuration (:func:`feedgym.experiments.align.agents.read_config`, imported on demand)."""
    from feedgym.experiments.align.agents import read_config

    return read_config(folder)


def check_code(config: Any, folder: Path, trust: bool, arguments: Sequence[str]) -> Any:
    """A run's configuration with the options of its plug-ins.

    Raises:
        ValueError: it names code that is neither feedgym's, nor trusted, nor in the arguments.
    """
    from feedgym.trust import trusted

    words = {part for text in arguments for part in (text, text.partition("=")[2])}
    named = {word for word in words if Path(word) != folder}
    return trusted(config, folder / "config.json", trust=trust, named=named)


def _of_run(options: RunOptions | Demo) -> dict[str, Any]:
    """Returns the options of an experiment besides its configuration and folders."""
    told = {"dry_run": options.dry_run, "trust": options.trust}
    return told | {"store": options.store, "tracker": options.tracker}


def _experiment(
    title: str, config: Any, folder: Path | None, resume: Path | None, *, command: str = "demo", dry_run: bool = False,
    **run_options: Any,
) -> None:  # fmt: skip
    """Run an experiment in a new folder, or resume one, and print its table; or say what it would do.

    Args:
        title: begins the name of a new folder.
        config: the whole experiment.
        folder: of a new run.
        resume: folder of a run to continue.
        command: the command that continues it.
        dry_run: only say what it would do.
        run_options: further arguments of :class:`feedgym.experiments.run.Run`.
    """
    if resume is not None and folder not in (None, resume):
        raise ValueError("Give either --run for a new run or --resume for an old one, not both.")
    folder = resume or folder or new_folder(title)
    if dry_run:
        from feedgym.commands.dry_run import dry_run as told

        _print(*told(config, folder, run_options.get("store")))
        return
    from feedgym.experiments.launch import kind_of, launch
    from feedgym.experiments.report import agents_table

    try:
        summary = launch(config, folder, resume=resume is not None, **run_options)
    except KeyboardInterrupt:
        print(f"Stopped. To continue: feedgym {command} --resume {folder}", file=sys.stderr)
        raise
    table = getattr(kind_of(config), "terminal_table", agents_table)(summary)
    lines = ["", f"Report: {folder / 'report.html'}", f"Figures: {folder / 'summary.json'}"]
    best = summary.get("best") or {}
    _print(table, [*lines, *(["Judge the best:", f"  {best['command']}"] if "command" in best else [])])
    if failed := summary.get("failed"):
        print(f"feedgym: {len(failed)} cells failed; to try them again: {summary['resume']}", file=sys.stderr)
        sys.exit(FAILED)


def _print(table: Any, lines: Sequence[str] = ()) -> None:
    """A table and lines on standard output; where that is no terminal, as wide as the table asks for."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    if not console.is_terminal:
        wide = console.options.update(width=100_000)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    sys.stderr.flush()
    console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    sys.stdout.flush()


# ---------------------------------------------------------------- data


def data(arguments: Sequence[str]) -> None:
    """Look at a data set before anything is trained on it: feedgym data inspect PATH."""
    usage = (
        "usage: feedgym data inspect PATH [OPTIONS]\n\n"
        "inspect  Counts, density, lengths, behaviours, times, ties, repeats, popularity and texts of a data set;\n"
        "         --out writes its log as events.parquet and catalog.parquet. More by `feedgym data inspect --help`."
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return
    if arguments[0] != "inspect":
        raise ValueError(f"feedgym data has no {arguments[0]!r}; write feedgym data inspect PATH.")
    from feedgym.data.sources import ReadOptions

    @dataclass(frozen=True, kw_only=True)
    class InspectArguments(ReadOptions):
        """Read a data set as an experiment would, report how, and describe its content.

        PATH is a folder or a zip with the files of KuaiRand, KuaiRec, MIND, MovieLens, Amazon's reviews, RecBole,
        LC-Rec, MiniOneRec or lists of items. It may also be a folder with feedgym's events.parquet and catalog.parquet,
        or a table (CSV, JSON lines, parquet) with one row per event.

        Look for too few events per user (targets have no history) and ties of users' last events (chance decides a
        leave-one-out target). Other warnings are repeats (leaving out seen items hides them), popularity (does a
        popular list win?), behaviours that never happen, and items without text.
        """

        path: Positional[Path]
        """The data."""
        columns: tuple[str, ...] = ()
        """For a table: NAME=COLUMN pairs, e.g. user_id=uid timestamp=ts watch_s=played:ms; like=- reads no likes."""
        items: Path | None = None
        """For a table or lists of items: a parquet/CSV file of item features, keyed by the same item id."""
        out: Path | None = None
        """Folder to write events.parquet and catalog.parquet to, for --data."""
        json: bool = False
        """Print the figures as JSON instead of a table."""

    options = _parse(InspectArguments, "data inspect", arguments[1:])
    _inspect(options, ReadOptions(**{field.name: getattr(options, field.name) for field in fields(ReadOptions)}))


def _inspect(options: Any, how: Any) -> None:
    import json

    from feedgym.data.inspect import inspect_log, inspection_table
    from feedgym.data.parquet import write_catalog, write_log
    from feedgym.data.readers import column_pair, find_data

    source = find_data(options.path, dict(column_pair(text) for text in options.columns), options.items)
    log, catalog = source.read(how)
    report = inspect_log(log, catalog)
    if options.out is not None:
        write_catalog(catalog, options.out / "catalog.parquet")
        write_log(log, options.out / "events.parquet")
    if options.json:
        source_facts = {"source": source.name, "files": [str(file) for file in source.files]}
        source_facts |= {"rules": source.says, "warnings": source.warns}
        print(json.dumps(source_facts | report, indent=1))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(inspection_table(report, f"{options.path}: {source.name}"))
    for line in (f"Read from: {', '.join(file.name for file in source.files)}", *source.says):
        console.print(line, markup=False)
    for line in source.warns:
        console.print(line, markup=False, style="bold yellow")
    if options.out is not None:
        console.print(
            f"Written to {options.out / 'events.parquet'} and {options.out / 'catalog.parquet'}", markup=False
        )


# ---------------------------------------------------------------- watch


@dataclass(frozen=True, kw_only=True)
class WatchArguments(Ranged):
    """Watch an agent serve users, visit by visit, with their responses and true interests.

    AGENT chooses the sessions: random, popular, oracle (which sees the users' true state), or the folder of a finished
    run. It may also be the import path of your own Recommender. That may be a class or a function with any of the
    parameters catalog, num_items, session_length and log.

    The same seed gives the same user with the same random numbers, so that agents can be compared by eye:

        feedgym watch runs/one --seed 3
        feedgym watch runs/one --seed 3 --agent base
        feedgym watch my_lab.agents:Mine --simulator my_lab.users:Teen --frames pictures
    """

    who: Annotated[Positional[str], tyro.conf.arg(metavar="AGENT")]
    """The agent that chooses the sessions."""
    agent: str | None = None
    """For a run: aligned (the default), base, random, popular or oracle, with the run's own users."""
    env: str | None = None
    """Gymnasium id of the feed, for agents without a run; feedgym/ShortVideo-v1 if left out."""
    simulator: str | None = None
    """Import path of a user simulator instead."""
    session_length: Length | None = None
    """K, items in a session; the agent's or the feed's own if left out."""
    seed: Seed = 0
    """Seed of the first user; after this user has left or the episode has ended, the next one comes."""
    visits: Visits = 8
    """Visits to watch; pages or requests if these are the environment's steps."""
    delay: Annotated[float, Interval(ge=0, le=3600)] | None = None
    """Seconds between two visits; 1.5 in a terminal and 0 elsewhere if left out."""
    png: Path | None = None
    """Write a picture of the last visit to this PNG file."""
    frames: Path | None = None
    """Write a picture of every visit to this new folder."""
    trust: bool = False
    """Import code named in a run's or a learned simulator's folder even if it is not feedgym's own. Use it only if you
    trust who made it."""


def watch(arguments: Sequence[str]) -> None:
    """Watch an agent serve users, visit by visit, in the terminal and as pictures."""
    options = _parse(WatchArguments, "watch", arguments)
    from feedgym.experiments.watch import show_of, watch

    show = show_of(
        options.who,
        which=options.agent,
        env=options.env,
        simulator=options.simulator,
        session_length=options.session_length,
        visits=options.visits,
        trust=options.trust,
    )
    watch(show, seed=options.seed, visits=options.visits, delay_s=options.delay, png=options.png, frames=options.frames)


# ---------------------------------------------------------------- simulate, check


@dataclass(frozen=True, kw_only=True)
class SimulateArguments(Ranged):
    """Let simulated users visit under the production system; write their log as events.parquet and catalog.parquet.

    `feedgym run onerec-ipa --data OUT` uses the folder like a real log.

    More than 4,096 users are written in parts while they are simulated: a folder `events` instead of `events.parquet`,
    which may be larger than memory.

    `--random-share 1 --popularity-share 0` makes it a randomised experiment: every visit is served at random.
    """

    out: Path
    """Folder to write to."""
    simulator: str = "short_video"
    """The users: short_video, short_video_calibrated, one of RecSim's, an import path, or a learned one's folder."""
    trust: bool = False
    """Import the ranker named in a learned simulator's folder even if it is not feedgym's own; use it only if you trust
    who made it."""
    users: Count = 1000
    """Number of users."""
    visits: Visits = 14
    """Visits per user, unless they churn earlier."""
    session_length: Length = 10
    """K, items in a session."""
    popularity_share: Share = 0.1
    """Share of the visits served only by popularity."""
    random_share: Share = 0.1
    """Share of the visits served at random; the production system serves the rest."""
    seed: Seed = 0
    """Seed of the users, their random numbers and those of the system."""


def simulate(arguments: Sequence[str]) -> None:
    """Write the event log of simulated users."""
    options = _parse(SimulateArguments, "simulate", arguments)
    from feedgym.data.events import BEHAVIOURS
    from feedgym.data.parts import FOLDER, ONE_FILE, PART_USERS

    given: dict[str, Any] = {
        "num_users": options.users,
        "visits": options.visits,
        "session_length": options.session_length,
        "popularity_share": options.popularity_share,
        "random_share": options.random_share,
        "seed": options.seed,
        "out": options.out,
        "trust": options.trust,
    }
    in_parts = options.users > PART_USERS
    if in_parts:
        counts = api.simulate_parts(options.simulator, **given)
    else:
        counts = api.counts_of(api.simulate(options.simulator, **given)[0])
    shares = counts["behaviours"] / max(1, counts["seen"])
    rates = ", ".join(f"{name} {share:.2%}" for name, share in zip(BEHAVIOURS, shares, strict=True))
    print(f"{options.users:,} users, {counts['visits']:,} visits, {counts['seen']:,} items seen: {rates}")
    print(f"Written to {options.out / (FOLDER if in_parts else ONE_FILE)} and {options.out / 'catalog.parquet'}")


@dataclass(frozen=True, kw_only=True)
class RealismArguments(Ranged):
    """Compare two logs: popularity, sessions, watching, behaviours, returns, topics, positions, users.

    A and B are each a log, a run's folder, for its log, or a user simulator, whose log is collected. A log is anything
    that `feedgym data inspect` reads, or events.parquet next to its catalog.parquet. A simulator is an import path or
    the folder of a learned one.

        feedgym realism short_video kuairand-pure --out realism
    """

    a: Positional[str]
    """The first log; its halves give the noise of the distances."""
    b: Positional[str]
    """The second log."""
    out: Path | None = None
    """Folder for realism.html, realism.json and one picture per plot."""
    users: Count = 2000
    """Number of users of a simulator."""
    visits: Visits = 14
    """Visits per user of a simulator."""
    session_length: Length = 10
    """K, items in a session of a simulator."""
    seed: Seed = 0
    """Seed of a simulator's log and of the halves."""
    trust: bool = False
    """Import the ranker named in a learned simulator's folder even if it is not feedgym's own; use it only if you trust
    who made it."""


def realism(arguments: Sequence[str]) -> None:
    """Compare two logs: how far is a simulator's from a real one?"""
    options = _parse(RealismArguments, "realism", arguments)
    from rich.console import Console

    from feedgym.experiments.limits import check_simulated
    from feedgym.experiments.simulator.realism import read_side, realism, table_of, write_realism

    check_simulated(users=options.users, visits=options.visits, session_length=options.session_length)
    sizes = {name: getattr(options, name) for name in ("users", "visits", "session_length", "seed", "trust")}
    a, b = read_side(options.a, **sizes), read_side(options.b, **sizes)
    comparison = realism((options.a, options.b), a, b, seed=options.seed)
    Console(highlight=False).print(table_of(comparison))
    if options.out is not None:
        print(f"Written to {write_realism(comparison, options.out)}")


@dataclass(frozen=True, kw_only=True)
class CheckArguments:
    """Test that a plug-in keeps the rules of its protocol, or a registered environment those of Gymnasium.

    A plug-in is a user simulator, an item tokenizer, a generative model, a session reward, an alignment method or a
    recommender. The kind is detected from its methods.
    """

    path: Positional[str | None] = None
    """Import path of a class, a function that makes one, or an object (my_lab.users:Teen). Or a name, as in --model
    onerec. Or an environment's id (feedgym/ShortVideo-v1, or my_lab:my_lab/Teen-v0 if a module registers it)."""
    all: bool = False
    """Check all plug-ins and ids of feedgym."""
    trust: bool = False
    """Import the ranker named in a learned simulator's folder even if it is not feedgym's own; use it only if you trust
    who made it."""


def check(arguments: Sequence[str]) -> None:
    """Test that your plug-in keeps the rules of its protocol."""
    options = _parse(CheckArguments, "check", arguments)
    if (options.path is None) != options.all:
        raise ValueError("Give the import path or the id of what to check, e.g. my_lab.users:Teen, or --all.")
    from feedgym.experiments.conformance import check_path, everything

    paths = everything() if options.path is None else [options.path]
    for number, path in enumerate(paths, start=1):
        print(f"[{number}/{len(paths)}] {path}: ", end="", flush=True)
        begin = time.perf_counter()
        try:
            protocol = check_path(path, trust=options.trust)
        except ValueError:
            print()
            raise
        print(f"{protocol}, all promises kept ({time.perf_counter() - begin:.1f} s)")


# ---------------------------------------------------------------- list, doctor, completion


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """List everything of a kind, with a line on each."""

    kind: Positional[str]
    """presets, comparisons, envs, simulators, models, tokenizers, rewards, methods, stops or data."""


def list_(arguments: Sequence[str]) -> None:
    """List presets, environments, models, methods, data formats and other parts, with a line on each."""
    options = _parse(ListArguments, "list", arguments or ["--help"])
    from rich.table import Table

    from feedgym.commands.listing import rows_of

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows_of(options.kind):
        table.add_row(*row)
    _print(table)


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Print versions, cores, memory, GPUs, Ray and Weights & Biases, for a bug report. It starts nothing."""

    json: bool = False
    """Print JSON."""


def doctor(arguments: Sequence[str]) -> None:
    """Print what belongs in a bug report: versions, cores, memory, GPUs, Ray, W&B."""
    options = _parse(DoctorArguments, "doctor", arguments)
    from feedgym.commands.doctor import findings

    found = findings()
    if options.json:
        import json

        print(json.dumps(found, indent=1))
        return
    for topic, facts in found.items():
        print(topic)
        for name, fact in facts.items():
            print(f"  {name:<16}{fact}")


@dataclass(frozen=True, kw_only=True)
class CompletionArguments:
    """Print a script that completes commands, presets and options: feedgym completion bash >> ~/.bashrc."""

    shell: Positional[str]
    """bash or zsh."""


def completion(arguments: Sequence[str]) -> None:
    """Print a script that completes commands, presets and options in bash or zsh."""
    options = _parse(CompletionArguments, "completion", arguments or ["--help"])
    from feedgym.commands.completion import script
    from feedgym.data.sources import ReadOptions

    taken: dict[str, Any] = {
        "demo": Demo, "run": RunOptions, "compare": RunOptions, "sweep": RunOptions, "stage": StageArguments,
        "evaluate": EvaluateArguments,
        "watch": WatchArguments, "data": ReadOptions, "simulate": SimulateArguments, "realism": RealismArguments,
        "check": CheckArguments, "report": ReportArguments, "results": ResultsArguments, "doctor": DoctorArguments,
    }  # fmt: skip
    print(script(options.shell, COMMANDS, taken), end="")


# ---------------------------------------------------------------- results


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Write a finished run's report.html again, or a page with several runs side by side.

    The page shows what differs in the configurations, all figures with their intervals, and the curves of all runs:

        feedgym report runs/one runs/two --out both.html

    Reports are made of summary.json alone, so nothing is trained or judged.
    """

    runs: Positional[tuple[Path, ...]]
    """Folders of the runs."""
    out: Path | None = None
    """File for several runs; report-side-by-side.html in the current folder if left out."""


def report(arguments: Sequence[str]) -> None:
    """Write a run's report again, or put several runs side by side on one page."""
    options = _parse(ReportArguments, "report", arguments)
    if not options.runs:
        raise ValueError("Name the folder of a finished run, or several: feedgym report RUN [RUN ...].")
    from feedgym.commands.report import reported

    print(f"Report: {reported(options.runs, options.out)}")


@dataclass(frozen=True, kw_only=True)
class ResultsArguments:
    """Write one figure of a finished run, with its interval, command, seed and verdict, as a row of the results.

        feedgym results add runs/one --verdict "alignment helps" --page results/alignment.md

    A row of the same name is replaced. `python docs/render_results.py` makes the page of all rows.
    """

    run: Positional[Path]
    """The run's folder."""
    verdict: str
    """Conclusion from the figure, in a few words."""
    figure: str = "lift.true_reward"
    """Path of the figure in summary.json, e.g. agents.hstu.NDCG@10."""
    says: str = ""
    """Readable name of the figure; its path if left out."""
    command: str = ""
    """Command of the run; derived from its configuration if left out."""
    page: str = ""
    """Page of the documentation with the details, e.g. results/alignment.md."""
    name: str = ""
    """Name of the row's file; the run's if left out."""
    out: Path = Path("docs/results")
    """Folder of the rows."""


def results(arguments: Sequence[str]) -> None:
    """Keep a finished run's figure for the table of results: feedgym results add RUN."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: feedgym results add RUN --verdict TEXT [OPTIONS]\n\nMore by `feedgym results add --help`.")
        return
    if arguments[0] != "add":
        raise ValueError(f"feedgym results has no {arguments[0]!r}; write feedgym results add RUN --verdict TEXT.")
    options = _parse(ResultsArguments, "results add", arguments[1:])
    from feedgym.experiments.results import add_result

    written = add_result(
        options.run, verdict=options.verdict, figure=options.figure, says=options.says, command=options.command,
        page=options.page, name=options.name, out=options.out,
    )  # fmt: skip
    print(f"Written to {written}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__.rstrip("_"): command
    for command in (
        *(demo, run, compare, sweep, stage, evaluate, watch, data, simulate, realism, check),
        *(report, results, list_, doctor, completion),
    )
}


if __name__ == "__main__":
    main()
