"""Every numeric option at inf, nan, -1, 0 and 1e12: refused in one line before any work, or run to its end.

Three layers, as a run takes seconds and there are thousands of options. Environment variables set how much is done:

    FEEDGYM_OPTIONS_CLI=0 FEEDGYM_OPTIONS_RUNS=0 pytest -m slow tests/robustness/test_numeric_options.py -s

tries all of them; a number tries so many, spread over all. The counts are printed. FEEDGYM_OPTIONS_PRESETS names the
presets of the runs, with commas, and FEEDGYM_OPTIONS_SAY=1 tells each run's outcome.
"""

import contextlib
import gc
import os
import shutil
import signal
import sys
import traceback
import types
import typing
from collections import Counter
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
from annotated_types import Interval

from feedgym import cli
from feedgym.experiments import launch
from feedgym.experiments.memory import check_memory
from feedgym.experiments.methods.presets import METHODS_COMPARISONS
from feedgym.experiments.presets import COMPARISONS, PRESETS
from feedgym.ranges import field_types

VALUES = ("inf", "nan", "-1", "0", "1e12")
WHOLE = "1000000000000"
"""1e12 as a whole number."""
ALL = {**PRESETS, **COMPARISONS}
SMOKE = [name for name in ALL if name.endswith("smoke")]
LIMIT_S = 60
"""A run that takes longer has not refused what it should have."""


@dataclass(frozen=True)
class Option:
    """A numeric option of a preset: its path, the class of its field, its elements' kind, how many it takes."""

    preset: str
    path: str
    kind: type
    number: type
    many: int

    @property
    def field(self) -> tuple[type, str]:
        return self.kind, self.path.rpartition(".")[2]

    def given(self, value: str) -> list[str]:
        """The words of the command line."""
        return [f"--{self.path.replace('_', '-')}", *[value] * max(self.many, 1)]

    def values(self) -> tuple[str, ...]:
        return (*VALUES, WHOLE) if self.number is int else VALUES


def options_of(preset: str, config: Any, prefix: str = ""):
    """All numeric options of a configuration, those of its parts included."""
    types_of = field_types(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from options_of(preset, value, f"{prefix}{field.name}.")
        elif numbers := list(numbers_of(types_of[field.name])):
            many = 0 if not in_tuple(types_of[field.name]) else max(1, count_of(value))
            yield Option(preset, prefix + field.name, type(config), numbers[0], many)


def count_of(value: Any) -> int:
    return sum(map(count_of, value)) if isinstance(value, tuple) else 0 if value is None else 1


def in_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple or any(typing.get_origin(part) is tuple for part in typing.get_args(hint))


def numbers_of(hint: Any):
    """int or float for each number with a range in a type."""
    if typing.get_origin(hint) is typing.Annotated:
        if any(isinstance(mark, Interval) for mark in hint.__metadata__):
            yield hint.__origin__
    elif typing.get_origin(hint) in (tuple, list, typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from numbers_of(part)


def shaped(value: Any, default: Any) -> Any:
    """The number in as many tuples as the default has."""
    return tuple(shaped(value, part) for part in default) if isinstance(default, tuple) else value


def changed(config: Any, path: str, value: Any, many: int) -> Any:
    name, _, rest = path.partition(".")
    part = getattr(config, name)
    if rest:
        return replace(config, **{name: changed(part, rest, value, many)})
    return replace(config, **{name: (value,) if many and not part else shaped(value, part)})


def spread(cases: list, variable: str, default: int) -> list:
    """So many of the cases as the environment says, spread over all; 0 is all."""
    count = int(os.environ.get(variable, default)) or len(cases)
    return cases[:: max(1, len(cases) // count)]


def distinct(names: typing.Iterable[str]) -> list[Option]:
    """Options of these presets, one for each field of each class."""
    found: dict[Any, Option] = {}
    for name in names:
        for option in options_of(name, ALL[name]()):
            found.setdefault(option.field, option)
    return list(found.values())


def one_line(text: str, option: Option) -> bool:
    """Whether a refusal is one line that names the option, or its part where the whole part has no use."""
    return len(text.splitlines()) == 1 and any(
        name in text.replace("-", "_") for name in option.path.split(".") if name != "model"
    )


@pytest.mark.parametrize("name", ["onerec-ipa-smoke", *(pytest.param(n, marks=pytest.mark.slow) for n in ALL
                                                        if n != "onerec-ipa-smoke")])  # fmt: skip
def test_configurations_refuse_or_take_each_value(name):
    config, wrong, count = ALL[name](), [], Counter()
    for option in options_of(name, config):
        for text in option.values():
            if option.number is int and text in ("inf", "nan", "1e12"):
                continue  # no whole numbers, for the command line to refuse
            try:
                check_memory(changed(config, option.path, option.number(text), option.many))
                count["taken"] += 1
                if text in ("inf", "nan", "1e12", WHOLE):
                    wrong.append(f"{option.path}={text} was taken")
            except ValueError as error:
                count["refused"] += 1
                if not one_line(str(error), option):
                    wrong.append(f"{option.path}={text}: {error}")
            except Exception as error:
                wrong.append(f"{option.path}={text}: {error!r}")
    print(name, dict(count))
    assert not wrong and count["refused"] > count["taken"]
    assert count["taken"] or name in METHODS_COMPARISONS  # whose own numbers are of one side alone


class Taken(BaseException):
    """The check let the options pass."""


class TooLong(BaseException):
    """The time is over."""


@contextlib.contextmanager
def limit(seconds: int):
    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(arguments: list[str], capsys: Any, seconds: int) -> tuple[str, str]:
    """What becomes of a command: refused, taken, run, slow or a traceback; and its last words."""
    try:
        with limit(seconds):
            cli.main(arguments)
        how = "run"
    except Taken:
        how = "taken"
    except TooLong:
        how = "slow"
    except SystemExit as stop:
        how = "refused" if stop.code == cli.MISTAKE else f"exit {stop.code}"
    except BaseException:
        capsys.readouterr()
        return "traceback", traceback.format_exc()[-1500:]
    return how, capsys.readouterr().err.strip()


def stop_after_the_check(config: Any) -> None:
    raise Taken


def command_of(name: str) -> str:
    return "compare" if name in COMPARISONS else "run"


@pytest.mark.slow
def test_the_command_line_refuses_or_takes_each_value(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "kind_of", stop_after_the_check)
    monkeypatch.chdir(tmp_path)
    cheap_first = ["mtgr-smoke", "rllib-smoke", "learned-simulator-smoke", "cascade-smoke"]
    options = distinct([*cheap_first, *SMOKE, *ALL])
    cases = [(option, value) for option in options for value in option.values()]
    count, wrong = Counter(), []
    gc.disable()  # so that earlier parses are not searched repeatedly
    for option, value in spread(cases, "FEEDGYM_OPTIONS_CLI", 60):
        run = ["--run", str(tmp_path / "run")]
        how, said = outcome([command_of(option.preset), option.preset, *option.given(value), *run], capsys, 30)
        count[how] += 1
        if how != "taken" and not (how == "refused" and one_line(said, option)):
            wrong.append(f"{option.preset} {option.given(value)}: {how} {said}")
        if how == "taken" and value not in ("0", "-1"):
            wrong.append(f"{option.preset} {option.given(value)}: taken")
        if any(tmp_path.iterdir()):
            wrong.append(f"{option.preset} {option.given(value)} left {list(tmp_path.iterdir())}")
    gc.enable()
    with capsys.disabled():
        print(f"\ncommand line: {dict(count)} of {len(cases)}")
    assert not wrong, "\n".join(wrong)


COMMANDS = {
    "simulate": (["simulate", "--out", "out"], ("users", "visits", "session-length", "seed"),
                 ("popularity-share", "random-share")),
    "realism": (["realism", "feedgym.envs.short_video:ShortVideo", "feedgym.envs.short_video:ShortVideo"],
                ("users", "visits", "session-length", "seed"), ()),
    "watch": (["watch", "random"], ("session-length", "seed", "visits"), ("delay",)),
    "demo": (["demo", "--ray", "off"], ("seed",), ()),
    "stage": (["stage", "log", "--run", "out", "--preset", "onerec-ipa-smoke"], ("seed",), ()),
    "evaluate": (["evaluate", "nowhere"], ("users", "visits", "seed", "beams"), ()),
    "data inspect": (["data", "inspect", "nowhere"], ("seed", "core"), ("users", "utc-offset")),
    "check": (["check"], (), ()),
}  # fmt: skip
"""The other commands with their numeric options, whole and fractional; `check` has none."""


def test_other_commands_have_no_more_numeric_options():
    kinds = {"simulate": cli.SimulateArguments, "realism": cli.RealismArguments, "watch": cli.WatchArguments,
             "demo": cli.Demo, "stage": cli.StageArguments, "evaluate": cli.EvaluateArguments,
             "check": cli.CheckArguments}  # fmt: skip
    for name, kind in kinds.items():
        numeric = {field.replace("_", "-") for field, hint in field_types(kind).items() if list(numbers_of(hint))}
        assert numeric == {*COMMANDS[name][1], *COMMANDS[name][2]}, name


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "check"])
def test_other_commands_refuse_or_take_each_value(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, whole, fractions = COMMANDS[command]
    missing = command in ("evaluate", "data inspect")  # their folder is missing, which is told after the options
    small = {"simulate": ("users", "visits"), "realism": ("users", "visits"), "watch": ("visits",)}.get(command, ())
    count, wrong = Counter(), []
    if command == "demo":
        monkeypatch.setattr(launch, "kind_of", stop_after_the_check)
    for name in (*whole, *fractions):
        others = [word for other in small if other != name for word in (f"--{other}", "3")]
        for value in (*VALUES, WHOLE) if name in whole else VALUES:
            how, said = outcome([*words, *others, f"--{name}", value], capsys, LIMIT_S)
            count[how] += 1
            named = name in said or name.replace("-", "_") in said
            if how == "refused" and (len(said.splitlines()) != 1 or not (named or missing)):
                wrong.append(f"{name} {value}: {said}")
            if how not in ("refused", "taken", "run"):
                wrong.append(f"{name} {value}: {how} {said}")
            if how == "refused" and any(tmp_path.iterdir()):
                wrong.append(f"{name} {value} left something")
            for path in tmp_path.iterdir():
                shutil.rmtree(path)
    with capsys.disabled():
        print(f"\n{command}: {dict(count)}")
    assert not wrong, "\n".join(wrong)


BASES = ("mtgr-smoke", "genrank-smoke", "sasrec-smoke", "hstu-smoke", "tiger-smoke", "learned-simulator-smoke",
         "onerec-ipa-smoke", "tiger-ipa-smoke", "hstu-ipa-smoke", "cascade-smoke")  # fmt: skip
"""Presets whose finished runs are gone on with under another value; those that need Ray or a run of another kind are
left to their own tests."""


ALONE = ("rounds",)
"""Options whose 0 leaves out what others of their group would change."""


def tiny(config: Any) -> list[str]:
    """Words that make a preset's run smaller still."""
    if hasattr(config, "rounds"):
        words = (
            "--rounds.num 1 --pretrain.steps 2 --log.users 40 --judge.users 8 --judge.beams 2 --rounds.num-samples 4"
        )
        return words.split()
    return []


def groups_of(cases: list[tuple[Option, str]], size: int) -> list[list[tuple[Option, str]]]:
    """Cases of one preset and value that are tried in one run, neighbours in different ones."""
    groups, kinds = [], {}
    for option, value in cases:
        if option.field[1] in ALONE:
            groups.append([(option, value)])
        else:
            kinds.setdefault((option.preset, value), []).append((option, value))
    for alike in kinds.values():
        count = -(-len(alike) // size)
        groups += [alike[first::count] for first in range(count)]
    return groups


@pytest.mark.slow
def test_what_is_taken_runs_to_its_end(tmp_path, monkeypatch, capsys):
    def no_plots(summary: Any, folder: Any) -> None:
        (folder / "report.html").write_text("")

    monkeypatch.setattr("feedgym.experiments.report.write_report", no_plots)  # plots take longest
    taken: dict[Any, tuple[Option, str]] = {}
    for name in os.environ.get("FEEDGYM_OPTIONS_PRESETS", ",".join(BASES)).split(","):
        for option in options_of(name, ALL[name]()):
            for value in option.values():
                with contextlib.suppress(ValueError):
                    check_memory(changed(ALL[name](), option.path, option.number(value), option.many))
                    taken.setdefault((option.field, value), (option, value))
    count, wrong = Counter(), []

    def go_on(group: list[tuple[Option, str]]) -> tuple[str, str]:
        """The preset's finished run, gone on with under these values."""
        preset = group[0][0].preset
        base, run = tmp_path / preset, tmp_path / "run"
        off = ["--ray", "off"] if hasattr(ALL[preset](), "ray") else []
        if not base.exists():
            made = [command_of(preset), preset, *off, *tiny(ALL[preset]()), "--run", str(base)]
            how, said = outcome(made, capsys, 10 * LIMIT_S)
            assert how == "run", said
        shutil.copytree(base, run)
        given = [word for option, value in group for word in option.given(value)]
        how, said = outcome([command_of(preset), preset, *off, *given, "--resume", str(run)], capsys, LIMIT_S)
        shutil.rmtree(run)
        if os.environ.get("FEEDGYM_OPTIONS_SAY"):
            print(how, preset, *given, "|", "" if how == "run" else said, file=sys.__stderr__, flush=True)
        return how, said

    groups = groups_of(list(taken.values()), int(os.environ.get("FEEDGYM_OPTIONS_TOGETHER", 12)))
    for group in spread(groups, "FEEDGYM_OPTIONS_RUNS", 6):
        how, said = go_on(group)
        if how == "run":
            count["run"] += len(group)
            continue
        for case in group:  # whose fault was it?
            how, said = go_on([case]) if len(group) > 1 else (how, said)
            late = how == "refused" and said.splitlines()[-1].startswith("feedgym: ")
            count["refused later" if late else how] += 1
            if how != "run" and not late:
                wrong.append(f"{case[0].preset} {case[0].given(case[1])}: {how} {said}")
    with capsys.disabled():
        print(f"\nruns: {dict(count)} of {len(taken)} values that the check takes")
    assert not wrong, "\n".join(wrong)
