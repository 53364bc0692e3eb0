"""The commands that run no experiment: greeting, list, doctor, completion, --dry-run, -q."""

import json
import re
import subprocess

import pytest

from feedgym.cli import COMMANDS, MISTAKE, main
from feedgym.commands.dry_run import dry_run
from feedgym.commands.listing import KINDS, rows_of
from feedgym.envs.registration import ENVIRONMENTS
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.launch import kind_of
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.progress import console
from feedgym.experiments.run import Plan, Run, json_of, made_stages
from feedgym.plugins import BUILT_IN


def test_alone_it_says_what_to_do_next_and_knows_the_latest_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([])
    said = capsys.readouterr().out
    commands = re.findall(r"^  feedgym (\S+)", said, re.M)
    assert {"demo", "list", "doctor"} <= set(commands) and "runs/" not in said
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").touch()
    main([])
    assert "feedgym demo --resume runs/mine" in capsys.readouterr().out
    (tmp_path / "runs" / "mine" / "summary.json").touch()
    main([])
    said = capsys.readouterr().out
    assert "feedgym watch runs/mine" in said and "--resume" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_every_list_has_names_with_a_line_on_each(kind):
    rows = rows_of(kind)
    assert len({name for name, _ in rows}) == len(rows) > 2
    for name, line in rows:
        assert line.endswith((".", ")")) and "\n" not in line and len(line) > 20, (name, line)


def test_lists_are_the_registries():
    assert [name for name, _ in rows_of("presets")] == list(PRESETS)
    assert [name for name, _ in rows_of("envs")] == list(ENVIRONMENTS)
    assert [name for name, _ in rows_of("methods")] == list(BUILT_IN["method"])


def test_a_list_is_not_wrapped_where_it_is_piped(capsys):
    main(["list", "methods"])
    assert len(capsys.readouterr().out.splitlines()) == len(BUILT_IN["method"])


@pytest.mark.parametrize("arguments", [["list", "nothing"], ["completion", "fish"]])
def test_a_mistake_is_one_line_that_names_what_there_is(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == MISTAKE and ("presets" in line or "bash" in line)


def test_the_doctor_tells_versions_and_machine_and_no_secret(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    main(["doctor", "--json"])
    said = capsys.readouterr().out
    found = json.loads(said)
    assert found["libraries"]["torch"].startswith("2.") and "GiB" in found["machine"]["memory"]
    assert found["Weights & Biases"]["account"] == "a key is set" and "s3cret" not in said
    main(["doctor"])
    assert "\n  torch " in capsys.readouterr().out


COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _feedgym; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "feedgym.bash"
    with open(path, "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        main(["completion", "bash"])
    return path


@pytest.mark.parametrize(
    ("words", "some", "none"),
    [
        (["feedgym", ""], set(COMMANDS), {"methods"}),
        (["feedgym", "run", "one"], {"onerec-ipa", "onerec-cycles"}, {"tiger-ipa"}),
        (["feedgym", "compare", ""], {"methods", "cascade"}, {"onerec-ipa"}),
        (["feedgym", "run", "onerec-ipa", "--rounds."], {"--rounds.num", "--rounds.user-share"}, {"--seed"}),
        (["feedgym", "list", ""], set(KINDS), {"demo"}),
        (["feedgym", "data", "inspect", "--"], {"--ties"}, {"--rounds.num"}),
        (["feedgym", "demo", "--"], {"--dry-run", "--seed"}, {"--rounds.num"}),
    ],
)
def test_bash_completes_commands_presets_and_options(completion, words, some, none):
    done = subprocess.run(["bash", "-c", COMPLETE, "bash", completion, *words], capture_output=True, text=True)
    found = set(done.stdout.split())
    assert done.stderr == "" and some <= found and not none & found


def test_a_dry_run_tells_the_stages_and_leaves_no_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    main(["run", "onerec-ipa-smoke", "--rounds.num", "3", "--run", str(folder), "--dry-run"])
    said = capsys.readouterr().out
    assert "aligned-3" in said and "aligned-4" not in said and not folder.exists()
    stages = len(kind_of(smoke()).plan(smoke()))
    _, lines = dry_run(smoke(), folder)
    assert lines[0] == f"{stages} of {stages} stages would be made." and "GiB" in lines[-1]


def test_a_dry_run_tells_what_is_there_and_what_it_took_elsewhere(tmp_path):
    config = smoke()
    run = Run(tmp_path / "one", config, kind_of(config).plan(config), tracker="none")
    run.stage("log", lambda _: [1], json_of(list[int]))
    run.finish({"stages": {name: {"seconds": 60.0} for name in run.plan}})
    run.close()
    table, lines = dry_run(config, tmp_path / "two")
    assert list(table.columns[1].cells) == ["no"] * len(run.plan) and table.columns[2].header == "seconds in one"
    assert lines[1] == f"Those took {len(run.plan):.1f} minutes there."
    table, lines = dry_run(config, tmp_path / "one")
    assert list(table.columns[1].cells) == ["yes"] + ["no"] * (len(run.plan) - 1)
    assert lines[1] == f"Those took {len(run.plan) - 1:.1f} minutes there."


def test_a_stage_in_a_store_is_found_by_a_run_that_is_not_there_yet(tmp_path):
    def plan(share):
        plan = Plan()
        plan.stage("log", [1])
        plan.stage("model", [share], ("log",))
        return plan

    run = Run(tmp_path / "one", smoke(), plan(0.5), tracker="none", store=tmp_path / "store")
    for name in run.plan:
        run.stage(name, lambda _: [1], json_of(list[int]))
    run.close()
    found = [made_stages(tmp_path / "two", plan(share), "AlignConfig", tmp_path / "store") for share in (0.5, 0.6)]
    assert found == [{"log": "in the store", "model": "in the store"}, {"log": "in the store"}]
    assert made_stages(tmp_path / "one", plan(0.5), "AlignConfig") == found[0]
    assert made_stages(tmp_path / "two", plan(0.5), "AlignConfig") == {}


def test_quiet_says_results_alone(capsys, tmp_path):
    try:
        main(["simulate", "--users", "5", "--visits", "1", "--out", str(tmp_path), "-q"])
        assert console.quiet
    finally:
        console.quiet = False
    said = capsys.readouterr()
    assert "5 users" in said.out and said.err == ""
