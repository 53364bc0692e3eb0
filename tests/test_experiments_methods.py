"""Comparisons of alignments: cells and options, the table on planted figures, and whole ones by the command line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from feedgym.cli import FAILED, MISTAKE, main
from feedgym.experiments import place, report
from feedgym.experiments.align.agents import read_config
from feedgym.experiments.align.presets import paper
from feedgym.experiments.methods.cells import cells_of, with_method
from feedgym.experiments.methods.experiment import command_of, plan
from feedgym.experiments.methods.figures import figures_of, gains_of, spent
from feedgym.experiments.methods.presets import AblationsRun, MethodsRun, ablations_smoke, methods_smoke
from feedgym.experiments.methods.report import best_sentence, terminal_table
from feedgym.experiments.methods.table import bold, choosers_of, compared, on_the_way, over_seeds, rows_of, table_of
from feedgym.experiments.options import pairs_of, with_options
from feedgym.plugins import BUILT_IN, config_type

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = (
    *("log.users=60", "log.visits=3", "pretrain.steps=3", "pretrain.checkpoint_steps=3"),
    *("rounds.num=1", "rounds.num_samples=6", "rounds.truth_replicas=2"),
    *("judge.users=8", "judge.visits=2", "judge.beams=2", "judge.cost.requests=4", "judge.cost.repeats=1"),
)


@pytest.fixture(scope="module", autouse=True)
def unreported():
    """The cells' own reports are other tests' matter, and take seconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda summary, folder: (folder / "report.html").touch())
        yield


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


# ---------------------------------------------------------------- cells


def test_all_methods_of_the_registry_are_compared_and_each_seed_is_begun_before_a_second_method():
    cells = cells_of(MethodsRun())
    assert [cell.name for cell in cells[:3]] == [f"{next(iter(BUILT_IN['method']))}-{seed}" for seed in range(3)]
    assert {cell.condition for cell in cells} == set(BUILT_IN["method"]) and len({cell.name for cell in cells}) == len(
        cells
    )
    assert all(cell.config.ray == "off" and cell.config.method == cell.condition for cell in cells)


def test_options_are_for_all_cells_or_for_those_of_one_method():
    run = MethodsRun(
        methods=("none", "dpo", "grpo"), seeds=(4,), options=("dpo.beta=0.7", "method.epochs=5", "log.users=9")
    )
    none, dpo, grpo = (cell.config for cell in cells_of(run))
    assert (dpo.method_options.beta, dpo.method_options.epochs, grpo.method_options.epochs) == (0.7, 5, 5)
    assert grpo.method_options.beta != 0.7 and none.rounds.num == 0 and none.log.users == dpo.log.users == 9


def test_what_a_preset_says_of_its_training_is_said_to_all_methods_and_nothing_else():
    before = paper().method_options
    config = with_method(paper(), "rsft").method_options
    assert (config.bf16, config.epochs, config.learning_rate) == (before.bf16, before.epochs, before.learning_rate)
    usual = type(config)()
    assert config.ntp_weight == usual.ntp_weight
    assert with_method(paper(), paper().method) == paper()


def test_options_vary_one_at_a_time_and_the_presets_own_values_appear_once():
    run = AblationsRun(
        preset="onerec-ipa-smoke",
        seeds=(0,),
        num_samples=(12, 6),
        user_share=(),
        pairing=("best_worst", "any"),
        beta=(0.5,),
        rounds=(1,),
    )
    configs = {cell.condition: cell.config for cell in cells_of(run)}
    assert list(configs) == ["preset", "num_samples=6", "pairing=any", "beta=0.5", "rounds=1"]  # 12 is the preset's own
    assert configs["beta=0.5"].method_options.beta == 0.5
    assert configs["pairing=any"].method_options.pairing.kind == "any"
    for name, option in (("num_samples=6", "num_samples"), ("rounds=1", "num")):
        own = getattr(configs["preset"].rounds, option)
        assert replace(configs[name], rounds=replace(configs[name].rounds, **{option: own})) == configs["preset"]


def test_fewer_rounds_are_read_from_those_of_more():
    run = AblationsRun(
        preset="onerec-ipa-smoke", seeds=(0,), num_samples=(), user_share=(), pairing=(), beta=(), rounds=(1,)
    )
    from feedgym.experiments.align.experiment import plan as plan_of_cell

    two, one = (plan_of_cell(cell.config).shared for cell in cells_of(run))
    assert one["aligned-1"] == two["aligned-1"] and one["judged"] != two["judged"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods", "dpo", "ppo"], "methods has 'ppo', which is unknown; give ipa, dpo"),
        (["--methods", "dpo", "dpo"], "methods has 'dpo' twice"),
        (["--seeds", "1", "0", "1"], "seeds has 1 twice"),
        (["--seeds"], "seeds is empty"),
        (["--preset", "sasrec"], "preset='sasrec' aligns nothing"),
        (["--set", "method.beta=0.3"], "rsft: There is no option 'beta'"),
        (["--set", "method.beta=0.3"], "give METHOD.beta for each method that has it"),
        (["--set", "dpo.beta=-1"], "beta=-1.0 must be above 0"),
        (["--set", "rounds.num=many"], "num='many'"),
        (["--set", "rounds.num"], "set='rounds.num' is not a NAME=VALUE pair"),
        (["--set", "log.users=9", "log.users=8"], "set has log.users twice"),
        (["--set", "seed=3"], "which a comparison decides itself, by --seeds"),
        (["--set", "data=log.csv"], "only simulated users"),
        (["--set", "rounds.num=0"], "rounds.num=0 aligns nothing"),
        (["--set", "log.users=1000000000"], "log.users=1000000000"),
        (["--workers", "0"], "workers=0"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(options, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "methods-smoke", "--run", str(tmp_path / "run"), *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == MISTAKE and says in line and not (tmp_path / "run").exists()


def test_an_ablation_of_nothing_or_of_what_the_method_lacks_is_refused():
    with pytest.raises(ValueError, match="nothing is varied"):
        AblationsRun(num_samples=(), user_share=(), pairing=(), beta=(), rounds=())
    with pytest.raises(ValueError, match=r"beta=0\.3: There is no option 'beta'"):
        cells_of(AblationsRun(method="rsft", pairing=(), beta=(0.3,)))
    with pytest.raises(ValueError, match="pairing=all: kind='all'"):
        cells_of(AblationsRun(pairing=("all",)))


def test_the_command_says_what_is_not_usual():
    run = MethodsRun(methods=("dpo", "rsft"), seeds=(3,), options=("rounds.num=2",))
    assert command_of(run) == "feedgym compare methods --seeds 3 --set rounds.num=2 --methods dpo rsft"
    assert command_of(MethodsRun()) == "feedgym compare methods"


def test_options_by_name_have_the_types_of_their_fields():
    config = with_options(paper(), pairs_of(["rounds.num=3.0", "judge.best_of=4,8", "tokenizer=lsh"], "set"))
    assert (config.rounds.num, config.judge.best_of, config.tokenizer) == (3, (4, 8), "lsh")
    assert type(config.rounds.num) is int and type(config.tokenizer_options) is config_type("tokenizer", "lsh")
    with pytest.raises(ValueError, match="reward has no options, and got x"):
        with_options(paper(), {"reward.x": 1})


# ---------------------------------------------------------------- the table


def planted(rewards, base, oracle):
    """Cells of methods by seed with such true rewards."""

    def told(value):
        return {"mean": value, "low": value - 0.5, "high": value + 0.5}

    return [
        (name, seed, {"base": {"true_reward": told(base[seed])}, "oracle": {"true_reward": told(oracle[seed])},
                      "aligned": {"true_reward": told(value)}, "aligned_searched": {"true_reward": told(value + 1)}})
        for name, values in rewards.items()
        for seed, value in enumerate(values)
        if value is not None
    ]  # fmt: skip


REWARDS = {"good": [3.0, 13.1, 23.05], "bad": [2.1, 12.0, 22.1], "late": [3.0, None, 23.0]}
BASE, ORACLE = [2.0, 12.0, 22.0], [4.0, 14.0, 24.0]


def test_rows_are_the_methods_and_the_agents_beside_them():
    rows = rows_of(planted(REWARDS, BASE, ORACLE))
    assert list(rows) == ["good", "bad", "late", "base", "oracle"]
    assert [figure["mean"] for figure in rows["base"]["true_reward"].values()] == BASE
    assert set(rows["late"]["true_reward"]) == {0, 2}
    choosers = choosers_of(planted(REWARDS, BASE, ORACLE), "good")
    assert list(choosers) == ["good_searched"] and choosers["good_searched"]["true_reward"][0]["mean"] == 4.0


def test_figures_over_seeds_have_students_interval_and_one_seed_that_of_its_users():
    told = table_of(rows_of(planted(REWARDS, BASE, ORACLE)))["good"]["true_reward"]
    values = np.array(REWARDS["good"])
    half = 4.302652729911275 * values.std(ddof=1) / 3**0.5
    assert (told["low"], told["high"]) == pytest.approx((values.mean() - half, values.mean() + half))
    alone = over_seeds({7: {"mean": 1.0, "low": 0.25, "high": 2.0}})
    assert (alone["mean"], alone["low"], alone["high"], alone["seeds"]) == (1.0, 0.25, 2.0, [7])
    assert over_seeds({7: {"mean": None, "low": None, "high": None}}) is None


def test_differences_are_taken_seed_by_seed_so_that_generous_seeds_do_not_hide_them():
    rows = rows_of(planted(REWARDS, BASE, ORACLE))
    found = compared(rows, ["good", "bad", "late"], "base")
    assert set(found) == {"good", "bad"}  # late lacks a seed
    assert found["good"]["runs"] == pytest.approx([1.0, 1.1, 1.05]) and found["good"]["low"] > 0.9
    assert found["good"]["p"] <= found["good"]["p_holm"] < 0.01
    assert compared(rows, ["good", "bad"], "good")["bad"]["high"] < 0
    assert compared(rows, ["good"], "nobody") == {}


def test_the_way_to_the_oracle_counts_all_seeds_alike():
    found = on_the_way(rows_of(planted(REWARDS, BASE, ORACLE)))
    assert found["good"]["runs"] == pytest.approx([0.5, 0.55, 0.525]) and found["good"]["worst"] == pytest.approx(0.5)
    assert found["late"]["seeds"] == [0, 2] and found["base"]["mean"] == 0 and found["oracle"]["mean"] == 1
    assert on_the_way(rows_of(planted(REWARDS, BASE, BASE))) == {}  # no way


def test_bold_is_what_nothing_beats_and_nothing_where_the_seeds_cannot_tell():
    rows = rows_of(planted(REWARDS, BASE, ORACLE))
    assert bold(rows, ["good", "bad"]) == {"true_reward": ["good"]}
    assert bold(rows_of(planted({"a": [1.0, 3.0, 2.0], "b": [2.0, 1.0, 3.0]}, BASE, ORACLE)), ["a", "b"]) == {}
    assert bold(rows_of(planted({"a": [1.0], "b": [2.0]}, BASE, ORACLE)), ["a", "b"]) == {}


def test_figures_of_a_cell_are_those_of_its_first_and_last_look():
    figure = {"mean": 2.0, "low": 1.0, "high": 3.0}
    rounds = [
        {"kl_to_base": 0.0, "model_mean": 1.0, "true_mean": 2.0, "legality": 0.9, "pairs": 5, "requests_spent": 0},
        {"kl_to_base": 4.0, "model_mean": 3.0, "true_mean": 2.5, "legality": 0.8, "groups": 7, "requests_spent": 40},
        {"kl_to_base": 9.0, "model_mean": 4.0, "true_mean": 2.2, "legality": None},
    ]
    agents = {name: {"true_reward": figure, "creator_gini": figure} for name in ("base", "aligned", "aligned_searched")}
    visits = {name: {"true_reward": {end: [1.0, 1.5] for end in ("mean", "low", "high")}} for name in agents}
    stages = {"base": {"seconds": 9.0}, "aligned-1": {"seconds": 2.0}, "aligned-2": {"seconds": 3.0}}
    summary = {"agents": agents, "by_visit": {"agents": visits}, "rounds": rounds, "stages": stages}
    found = figures_of(summary)
    assert spent(summary) == {"learned_from": 12, "update_s": 5.0, "requests_spent": 40}
    assert found["base"]["kl_to_base"]["mean"] == 0 and found["aligned"]["kl_to_base"]["mean"] == 9
    assert found["aligned"]["legality"]["mean"] == 0.8 and found["aligned"]["true_reward_last"]["mean"] == 1.5
    assert found["aligned"]["true_reward_searched"] == figure and "creator_gini" not in found["base"]
    assert [row["truth"] for row in gains_of(summary)] == pytest.approx([0, 0.5, 0.2])


# ---------------------------------------------------------------- whole comparisons


@pytest.fixture(scope="module")
def finished(one_thread, unreported, tmp_path_factory):
    """Two methods with two seeds."""
    folder = tmp_path_factory.mktemp("methods") / "run"
    main(["compare", "methods-smoke", "--ray", "off", "--set", *TINY, "--run", str(folder)])
    return folder


def made(store, stage):
    return [mark for mark in store.glob(f"{stage}-*/stage.json") if mark.parent.name.rpartition("-")[0] == stage]


def test_what_a_seeds_methods_share_is_made_once(finished):
    store = finished / "store"
    for stage in ("log", "tokenizer", "base", "reward", "sampled-0"):
        assert len(made(store, stage)) == 2, stage
    assert len(made(store, "aligned-1")) == len(made(store, "judged")) == 4


def test_the_summary_has_rows_differences_and_every_cell(finished):
    summary = summary_of(finished)
    assert summary["conditions"] == {"dpo": "DPO", "rsft": "RSFT"} and summary["seeds"] == [0, 1]
    assert list(summary["cells"]) == ["dpo-0", "dpo-1", "rsft-0", "rsft-1"] and summary["failed"] == {}
    for name, told in summary["agents"]["dpo"].items():
        assert told["seeds"] == [0, 1] and len(told["runs"]) == 2, name
    own = summary_of(finished / "cells" / "dpo-1")["agents"]
    for row, agent in (("dpo", "aligned"), ("base", "base"), ("oracle", "oracle"), ("popular", "popular")):
        assert summary["agents"][row]["true_reward"]["runs"][1] == own[agent]["true_reward"]["mean"]
    gain = own["aligned"]["true_reward"]["mean"] - own["base"]["true_reward"]["mean"]
    assert summary["over"]["base"]["dpo"]["runs"][1] == pytest.approx(gain)
    assert {"kl_to_base", "learned_from", "update_s", "cost_ms", "true_reward_searched"} <= set(
        summary["agents"]["dpo"]
    )
    assert "--set log.users=60" in summary["command"] and summary["work_s"] > 0


def test_the_report_and_the_table_show_it(finished):
    page = (finished / "report.html").read_text()
    for text in (
        "Visit by visit",
        "cost of a request",
        "cells/dpo-0/report.html",
        "p, Holm",
        "feedgym compare methods",
    ):
        assert text in page
    console = Console(width=80, record=True)
    console.print(terminal_table(summary_of(finished)))
    printed = console.export_text()
    assert "RSFT" in printed and "…" not in printed and "over the base" in " ".join(printed.split())


def test_a_stopped_comparison_reads_what_is_finished_and_runs_the_rest(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "stages" / "rsft-1")  # as if it had been killed in this cell
    shutil.rmtree(folder / "cells" / "rsft-1" / "stages" / "judged")
    begun = []
    monkeypatch.setattr(
        place, "launch", lambda config, cell, **options: begun.append(cell.name) or launch(config, cell, **options)
    )
    main(["compare", "methods-smoke", "--resume", str(folder)])
    assert begun == ["rsft-1"] and "3 of 4 cells" in capsys.readouterr().err
    before, after = summary_of(finished), summary_of(folder)
    for row, figures in before["agents"].items():
        assert after["agents"][row]["true_reward"] == figures["true_reward"]
    assert len(made(folder / "store", "log")) == 2


launch = place.launch


def test_a_cell_that_fails_is_told_and_the_others_go_on(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def failing(config, cell, **options):
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(place, "launch", failing)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "methods-smoke", "--resume", str(folder), "--methods", "dpo", "rsft", "gbpo"])
    said = capsys.readouterr()
    assert (
        stop.value.code == FAILED
        and f"2 cells failed; to try them again: feedgym compare methods --resume {folder}" in said.err
    )
    summary = summary_of(folder)
    assert summary["failed"] == dict.fromkeys(["gbpo-0", "gbpo-1"], "RuntimeError: out of luck")
    assert len(summary["cells"]) == 4 and "out of luck" in (folder / "report.html").read_text()
    assert read_config(folder).methods == ("dpo", "rsft", "gbpo")


def test_nothing_finished_is_no_crash(finished, tmp_path, monkeypatch):
    def failing(config, cell, **options):
        raise ValueError("no")

    monkeypatch.setattr(place, "launch", failing)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "methods-smoke", "--ray", "off", "--run", str(tmp_path / "run")])
    assert stop.value.code == FAILED
    assert best_sentence(summary_of(tmp_path / "run")) == "No cell is finished."


def test_processes_of_ray_find_the_same_figures(finished, tmp_path):
    folder = tmp_path / "run"
    options = ["--methods", "rsft", "none", "--seeds", "1", "--set", *TINY]
    main(
        [
            "compare",
            "methods-smoke",
            "--ray",
            "local",
            *options,
            "--store",
            str(finished / "store"),
            "--run",
            str(folder),
        ]
    )
    before, after = summary_of(finished), summary_of(folder)
    assert after["agents"]["rsft"]["true_reward"]["runs"] == before["agents"]["rsft"]["true_reward"]["runs"][1:]
    assert after["agents"]["none"]["true_reward"]["mean"] == after["agents"]["base"]["true_reward"]["mean"]
    assert not (folder / "store").exists() and len(made(finished / "store", "log")) == 2


def test_an_ablation_runs_and_draws_its_options(finished, tmp_path):
    folder = tmp_path / "run"
    axes = ["--num-samples", "8", "--user-share", "--rounds"]
    places = ["--store", str(finished / "store"), "--run", str(folder)]
    main(["compare", "ablations-smoke", "--ray", "off", "--seeds", "0", *axes, "--set", *TINY, *places])
    summary = summary_of(folder)
    assert list(summary["conditions"]) == ["preset", "num_samples=8"] and summary["centre"]["num_samples"] == 6
    assert set(summary["over"]["preset"]) == {"num_samples=8"}
    assert len(made(finished / "store", "base")) == 2  # that of the methods' comparison
    assert "Options varied one by one" in (folder / "report.html").read_text()


@pytest.mark.parametrize("preset", [methods_smoke, ablations_smoke])
def test_configurations_come_back_from_a_folder(preset, tmp_path):
    from feedgym.experiments.run import Run

    config = preset()
    Run(tmp_path / "run", config, plan(config), tracker="none").close()
    assert read_config(tmp_path / "run") == config


def test_help_teaches_how_long_it_takes_and_how_to_go_on(capsys):
    main(["compare", "--help"])
    said = capsys.readouterr().out
    assert "minutes" in said and "--resume" in said and "ablations" in said
