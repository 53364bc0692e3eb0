"""Sweeps: spaces, what trials are judged by, the choice among planted trials, and whole ones by the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from feedgym.cli import MISTAKE, _parse_run, main
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.launch import launch
from feedgym.experiments.place import Place
from feedgym.experiments.run import StageReached
from feedgym.experiments.sweep.experiment import command_for, draws_of, plan
from feedgym.experiments.sweep.presets import AlignSweep, RetrievalSweep
from feedgym.experiments.sweep.report import terminal_table
from feedgym.experiments.sweep.space import KINDS, Domain, spaces_of
from feedgym.experiments.sweep.trials import run_trial
from feedgym.plugins import completed
from feedgym.trust import trusted

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = (
    *("log.users=60", "log.visits=3", "pretrain.steps=3", "pretrain.checkpoint_steps=3", "probe.watchers=1"),
    *("rounds.num=2", "rounds.num_samples=6", "rounds.truth_replicas=2"),
    *("judge.users=8", "judge.visits=2", "judge.beams=0", "judge.cost.requests=4", "judge.cost.repeats=1"),
)


def align_sweep(*space, **options):
    varied = {text.partition("=")[0] for text in space}
    tiny = tuple(text for text in TINY if text.partition("=")[0] not in varied)
    return AlignSweep(preset="onerec-ipa-smoke", space=space, options=tiny, **options)


# ---------------------------------------------------------------- spaces


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("rounds.num=choice(2,4,6)", Domain("choice", (2, 4, 6))),
        ("rounds.num=tune.choice([2, 4])", Domain("choice", (2, 4))),  # as one has it in a program
        ("method=choice(dpo, ipa, 'my_lab.own:Method')", Domain("choice", ("dpo", "ipa", "my_lab.own:Method"))),
        ("sampling.top_p=choice(None, 0.9)", Domain("choice", (None, 0.9))),
        ("judge.best_of=choice((2,4), (8,))", Domain("choice", ((2, 4), (8,)))),
        ("method.beta=loguniform(0.05, 1)", Domain("loguniform", (0.05, 1))),
        ("weights.like=uniform(-1, 1)", Domain("uniform", (-1, 1))),
        ("fit.lr=qloguniform(1e-4, 1e-2, 5e-5)", Domain("qloguniform", (1e-4, 1e-2, 5e-5))),
        ("rounds.num-samples=qrandint(8, 64, 8)", Domain("qrandint", (8, 64, 8))),
    ],
)
def test_a_space_has_the_words_of_ray_tune(text, domain):
    name = text.partition("=")[0].replace("-", "_")
    assert spaces_of([text]) == {name: domain}


def test_the_options_of_a_plug_in_have_the_command_lines_name_or_that_of_the_configuration():
    (name,) = spaces_of(["method-options.beta=uniform(0,1)"])
    assert name == "method.beta"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rounds.num", "is not a NAME=SPEC pair"),
        ("rounds.num=3", "none of choice"),
        ("rounds.num=between(2,3)", "none of choice"),
        ("x=__import__('os').system('touch hacked')", "none of choice"),
        ("x=choice(__import__('os'))", "no literal"),
        ("x=uniform(0, __import__('os').getpid())", "no literal"),
        ("x=uniform(low=0, high=1)", "without names"),
        ("x=uniform(0)", r"give numbers as uniform\(LOW, HIGH\)"),
        ("x=uniform(1, 1)", "must be below"),
        ("x=uniform(0, 1e999)", "give numbers"),
        ("x=uniform(True, 2)", "give numbers"),
        ("x=loguniform(0, 1)", "above 0 for a logarithm"),
        ("x=randint(1, 2.5)", "give whole numbers"),
        ("x=quniform(0, 1, 0)", "step 0 must be above 0"),
        ("x=choice()", "needs values"),
    ],
)
def test_other_texts_are_refused_and_nothing_is_evaluated(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        spaces_of([text])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "choice"])
def test_examples_lie_within_what_ray_tune_draws(kind):
    step = (3,) if kind.startswith("q") else ()
    domain = Domain(kind, (3, 12, *step))
    examples = domain.examples()
    assert examples[0] < examples[-1] and min(examples) >= 3 and max(examples) <= 12
    if kind in ("randint", "lograndint"):
        assert examples == (3, 11)


# ---------------------------------------------------------------- judges of trials


def test_probed_users_of_a_recorded_log_are_not_judging_users():
    config = AlignSweep(preset="onerec-ipa-smoke", options=("data=nowhere.csv",)).base()
    assert config.probe.apart and config.probe.watchers == 2
    assert not align_sweep().base().probe.apart  # simulated judges are in no log
    with pytest.raises(ValueError, match="a recorded log does not hold the truth"):
        AlignSweep(preset="onerec-ipa-smoke", options=("data=nowhere.csv",), objective="truth").base()
    with pytest.raises(ValueError, match=r"probe.apart does nothing without --data"):
        AlignConfig(probe=config.probe)


@pytest.mark.parametrize(
    ("space", "options", "says"),
    [
        ((), {}, "nothing varies"),
        (("session_length=choice(3,4)",), {}, "changes what trials are judged by"),
        (("weights.like=uniform(0,1)",), {}, "changes what trials are judged by"),
        (("reward_model.width=choice(16,32)",), {}, "changes what trials are judged by"),
        (("reward=choice(reward_model,diverse)",), {"objective": "proxy"}, "changes what trials are judged by"),
        (("rounds.serve=choice(5,6)",), {"objective": "proxy"}, "every trial fits its own"),
        (("rounds.num=choice(0,1)",), {}, "rounds.num=0 aligns nothing"),
        (("method.betaa=uniform(0,1)",), {}, "no option 'betaa'"),
        (("method.beta=uniform(-1,1)",), {}, "beta=-0.998 must be above 0"),
        (("rounds.num=uniform(1,3)",), {}, "valid integer"),
    ],
)
def test_spaces_that_make_no_trials_or_none_that_can_be_compared_are_refused(space, options, says):
    with pytest.raises(ValueError, match=says):
        plan(align_sweep(*space, **options))


def test_what_decides_only_the_agent_may_vary():
    assert list(plan(align_sweep("method=choice(dpo,ipa)", "method.beta=uniform(0.1,1)", "pretrain.lr=choice(1e-3)")))
    assert list(plan(align_sweep("reward=choice(reward_model,diverse)")))  # the held-out models stay the same
    assert list(plan(RetrievalSweep(preset="sasrec-smoke", space=("fit.lr=loguniform(1e-4,1e-2)",))))


def test_code_that_a_space_names_must_be_trusted():
    named = align_sweep("method=choice(dpo, 'their.code:Method')")
    with pytest.raises(ValueError, match=r"would import and run 'their.code:Method'"):
        trusted(named, "config.json")


# ---------------------------------------------------------------- the choice


def row(name, beta, seed, objective, ended=True, failure=None):
    told = {"at": 2, "figures": [[0, 1.0], [2, objective]], "seconds": 1.0, "failure": failure}
    return {"name": name, "options": {"beta": beta}, "seed": seed, "objective": objective, "ended": ended, **told}


ROWS = [
    row("0", 0.1, 0, 2.0), row("1", 0.1, 1, 4.0),
    row("2", 0.2, 0, 9.0), row("3", 0.2, 1, 5.0, ended=False),
    row("4", 0.3, 0, 3.5), row("5", 0.3, 1, 3.5),
    row("6", 0.4, 0, None, ended=False, failure="ValueError: no"), row("7", 0.4, 1, None, ended=False, failure="no"),
]  # fmt: skip


def test_the_best_draw_has_the_highest_mean_over_seeds_that_all_ran_to_their_end():
    draws = draws_of(ROWS)
    assert [(draw["options"]["beta"], draw["ended"], draw["objective"]) for draw in draws] == [
        (0.3, 2, 3.5),
        (0.1, 2, 3.0),
        (0.2, 1, 9.0),  # ASHA stopped it on a seed
        (0.4, 0, None),
    ]


def test_the_command_makes_the_drawn_configuration_again(tmp_path):
    sweep = align_sweep("method=choice(dpo)", "method.beta=uniform(0,1)", "rounds.on_policy=choice(False,True)")
    options = {"method": "dpo", "method.beta": 0.123456789, "rounds.on_policy": False}
    said = command_for(sweep, options, 7, tmp_path / "a b")
    assert said.startswith("feedgym run onerec-ipa-smoke ") and said.endswith(f"--store '{tmp_path}/a b'")
    import shlex

    words = shlex.split(said)[3:]
    parsed = _parse_run("run onerec-ipa-smoke", words, completed(sweep.presets["onerec-ipa-smoke"]()))
    drawn = sweep.drawn({**options, "seed": 7})
    assert {name: getattr(parsed, name) for name in vars(drawn)} == vars(drawn)
    assert drawn.method_options.beta == 0.123456789 and drawn.seed == 7


# ---------------------------------------------------------------- trials


def test_trials_report_each_round_share_the_store_and_end_before_the_judges(tmp_path):
    sweep, place = align_sweep("method.beta=uniform(0,1)"), Place(tmp_path / "trials", tmp_path / "store", False)
    heard = {}
    for name, beta in (("0", 0.1), ("1", 0.9)):
        heard[name] = []
        run_trial(sweep, place, name, {"method.beta": beta, "seed": 0}, heard[name].append)
    for reports in heard.values():
        assert [(told["at"], told["ended"]) for told in reports] == [(1, False), (2, True)]
        assert [at for at, _ in reports[-1]["figures"]] == [0, 1, 2]
        assert reports[-1]["objective"] == reports[-1]["figures"][-1][1]
    assert heard["0"][-1]["figures"][0] == heard["1"][-1]["figures"][0]  # the same base
    made = [path.name.rpartition("-")[0] for path in (tmp_path / "store").iterdir() if path.is_dir()]
    assert {name: made.count(name) for name in ("log", "tokenizer", "base", "reward", "watchers", "aligned-1")} == {
        **dict.fromkeys(("log", "tokenizer", "base", "reward", "watchers"), 1),
        "aligned-1": 2,
    }
    assert not [name for name in made if "judged" in name or "pool" in name]
    # The run of the command reads all of this and only judges.
    with pytest.raises(StageReached):
        launch(sweep.drawn({"method.beta": 0.9, "seed": 0}), tmp_path / "best", store=tmp_path / "store",
               stop_after="chosen", tracker="none")  # fmt: skip
    after = [path.name for path in (tmp_path / "store").iterdir() if path.is_dir()]
    assert len(after) == len(made)


def arguments(folder, *more):
    space = ["--space", "fit.lr=loguniform(1e-4,1e-2)", "--set", "epochs=3", "log.users=60", "log.visits=4"]
    few = ["--num-samples", "2", "--workers", "1", "--tracker", "none"]  # each worker imports the libraries anew
    return ["sweep", "sasrec-smoke", *space, *few, "--run", str(folder), *more]


def test_a_sweep_by_the_command_line(tmp_path, capsys):
    main(arguments(tmp_path / "sweep"))
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert len(summary["trials"]) == 2 and summary["best"]["ended"] == 1
    assert {len(trial["figures"]) for trial in summary["trials"] if trial["ended"]} == {3}
    assert all(1e-4 <= trial["options"]["fit.lr"] <= 1e-2 for trial in summary["trials"])
    assert summary["best"]["objective"] == max(t["objective"] for t in summary["trials"] if t["ended"])
    printed = capsys.readouterr().out
    assert f"Judge the best:\n  {summary['best']['command']}" in printed
    assert summary["best"]["command"] in (tmp_path / "sweep" / "report.html").read_text()
    assert {path.name for path in (tmp_path / "sweep" / "trials").iterdir()} == {"00000", "00001"}
    with Console(width=200).capture():
        Console(width=200).print(terminal_table(summary))


def test_mistakes_end_in_one_line(capsys):
    for words, says in (
        (["--space", "fit.lr=uniform(0,1"], "none of choice"),
        (["--space", "seed=choice(1,2)"], "which a sweep decides itself, by --seeds"),
        (["--space", "epochs=choice(1,2)", "--set", "epochs=3"], "set has epochs, which the space varies"),
        (["--space", "epochs=choice(1,2)", "--ray", "off"], "Ray Tune runs the trials; leave it local"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["sweep", "sasrec-smoke", *words])
        assert exit.value.code == MISTAKE
        said = capsys.readouterr().err.strip()
        assert says in said and "\n" not in said


@pytest.mark.slow
@pytest.mark.parametrize("trust", [[], ["--trust"]], ids=["from the store", "from Tune's records"])
def test_a_killed_sweep_ends_with_the_same_trials(tmp_path, trust):
    def command(folder, *more):
        options = ["--set", *TINY, "--num-samples", "3", "--workers", "1", "--reduction", "2", "--tracker", "none"]
        given = ["--space", "method.beta=loguniform(0.05,1)", *options, *more]
        return [sys.executable, "-m", "feedgym", "sweep", "onerec-ipa-smoke", *folder, *given]

    def trials(folder):
        rows = json.loads((folder / "summary.json").read_text())["trials"]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(["--run", whole]), check=True, capture_output=True)
    begun = subprocess.Popen(command(["--run", killed]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not _is_in(killed, "trials/00001/stages/aligned-1"):  # the second of three
        assert begun.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    time.sleep(6)  # Tune writes its records every five seconds
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    subprocess.run(command(["--resume", killed], *trust), check=True, capture_output=True)
    assert trials(killed) == trials(whole)


def _is_in(folder: Path, stage: str) -> bool:
    return any((folder / stage / file).exists() for file in ("stage.json", "stored.json"))
