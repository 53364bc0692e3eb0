"""Rounds that are sampled ahead, from snapshots that are some updates old."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread

import pytest
import torch

from feedgym.agents.generation import score_sessions
from feedgym.cli import main
from feedgym.experiments.align import experiment
from feedgym.experiments.align.agents import model_codec, recommender_of, reward_of, tokenizer_codec
from feedgym.experiments.align.ahead import Ahead
from feedgym.experiments.align.experiment import align, plan
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.align.rounds import sample_round
from feedgym.experiments.align.stages import REWARD, SAMPLED
from feedgym.experiments.align.world import world_of
from feedgym.experiments.logs import LOG
from feedgym.experiments.progress import console, progress
from feedgym.experiments.rollouts import AbandonedError, Rollouts, ray_running
from feedgym.experiments.run import Run, StageReached, read_product

ROUNDS = 3


def stale(staleness=1, ray="local", method="ipa", **rounds):
    tiny = smoke()
    return replace(
        tiny,
        ray=ray,
        method=method,
        method_options=tiny.method_options if method == "ipa" else None,
        rounds=replace(tiny.rounds, **{"num": ROUNDS, "user_share": 0.2, "num_samples": 6} | rounds),
        rollouts=replace(tiny.rollouts, users_per_task=3, tasks_per_shard=2, max_staleness=staleness),
        judge=replace(tiny.judge, users=8, beams=0),
    )


def run_of(config, folder, **options):
    run = Run(folder, config, plan(config), tracker="none", resume=True, **options)
    try:
        return align(config, run)
    finally:
        run.close()


def figures(summary):
    return {name: summary[name] for name in ("rounds", "chosen", "by_visit", "scatter")}


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """Ray starts once for all tests of this file; the pools of their runs join it."""
    with ray_running():
        yield


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Makes a folder of a run that has come to its rounds."""
    first = tmp_path_factory.mktemp("ahead") / "first"
    with pytest.raises(StageReached):
        run_of(stale(), first, stop_after="watchers")
    return lambda folder: Path(shutil.copytree(first, folder))


@pytest.fixture(scope="module")
def finished(begun, tmp_path_factory):
    """A run whose rounds are sampled while the last one is learned from, and its summary."""
    folder = begun(tmp_path_factory.mktemp("ahead") / "run")
    return folder, run_of(stale(), folder)


# ---------------------------------------------------------------- which snapshot


def test_a_plan_has_the_snapshot_of_so_many_rounds_before_and_none_of_the_others_moves():
    now, one, two = (plan(stale(staleness)) for staleness in range(3))
    snapshots = ["base", *(f"aligned-{t}" for t in range(1, ROUNDS))]
    for staleness, found in enumerate((now, one, two)):
        for t in range(ROUNDS):
            assert found.parents[f"sampled-{t}"] == (snapshots[max(0, t - staleness)], "base", "reward")
            assert found.parents[f"aligned-{t + 1}"] == (f"sampled-{t}", snapshots[t], "base")
    same = {name for name in now if now[name] == one[name]}
    assert {"log", "base", "reward", "sampled-0", "aligned-1", "probe-1"} <= same  # from one store, made once
    assert not same & {"sampled-1", "aligned-2", "probe-2", "judged"}
    assert one["sampled-1"] == two["sampled-1"] and one["sampled-2"] != two["sampled-2"]


def test_sessions_are_those_of_a_plain_loop_over_old_snapshots(finished):
    folder, _ = finished
    config, stages = stale(), finished[0] / "stages"
    with Rollouts(config.rollouts, "off") as workers:
        world = world_of(config, workers=workers)
        pool = Pool.of(read_product(stages / "log", LOG.load), world, config)
        tokenizer = read_product(stages / "tokenizer", tokenizer_codec(config).load)
        load = model_codec(config, tokenizer).load
        score = reward_of(config, pool.known, pool.catalog, read_product(stages / "reward", REWARD.load))
        names = ["base", *(f"aligned-{t}" for t in range(1, ROUNDS + 1))]
        # Rounding depends on where weights lie in memory: a copy is aligned, as one sent to an actor is.
        models = [copy.deepcopy(read_product(stages / name, load)) for name in names]
        agents = [recommender_of(config, model, tokenizer, pool.catalog) for model in models]
        for t, drawing in enumerate([agents[0], agents[0], agents[1]]):
            work = folder.parent / f"plain-{t}"
            work.mkdir()
            plain = sample_round(
                config.rounds, pool, world, workers, drawing, t, work,
                base=agents[0], reward=score, seed=config.seed,
            ).whole()  # fmt: skip
            found = read_product(stages / f"sampled-{t}", SAMPLED.load).whole()
            for name, column in vars(plain).items():
                torch.testing.assert_close(vars(found)[name], column, rtol=0, atol=0, equal_nan=True)
            histories = pool.imitate.histories.rows(found.row_U)
            logp_US, newer_US = (
                score_sessions(of.model, of.trie, histories, found.item_ids_USK, True).logp_US
                for of in (drawing, agents[t])
            )
            torch.testing.assert_close(found.logp_US, logp_US, rtol=1e-4, atol=1e-4)
            assert (t == 0) == torch.allclose(found.logp_US, newer_US, rtol=1e-4, atol=1e-4)


def test_neither_actors_nor_time_change_a_figure(begun, finished, tmp_path):
    assert figures(run_of(stale(ray="off"), begun(tmp_path / "off"))) == figures(finished[1])


def test_a_round_is_sampled_while_the_last_one_is_learned_from(begun, monkeypatch, tmp_path):
    """The update waits for the next round's sessions: without sampling ahead it would wait for ever."""
    really, stages = experiment.updated, tmp_path / "run" / "stages"

    def after_the_next_is_sampled(*those):
        t, deadline = those[5], time.monotonic() + 120
        while t + 1 < ROUNDS and not (stages / f"sampled-{t + 1}" / "stage.json").exists():
            assert time.monotonic() < deadline, "the next round is not sampled meanwhile"
            time.sleep(0.02)
        assert not (stages / f"sampled-{t + 2}").exists(), "its snapshot does not exist yet"
        return really(*those)

    monkeypatch.setattr(experiment, "updated", after_the_next_is_sampled)
    with pytest.raises(StageReached):
        run_of(stale(), begun(tmp_path / "run"), stop_after=f"aligned-{ROUNDS}")


def test_the_base_as_a_reference_is_not_sampled_from_while_it_is_prepared(begun, monkeypatch, tmp_path):
    """TRL gives it another forward for an update, which an agent that draws with it must not get."""
    config = stale(method="dpo", reference="base", num=2)
    drawing, really = [], experiment.sample_round

    def noted(*those, **options):
        drawing.append((current_thread() is main_thread(), those[4].model))
        return really(*those, **options)

    def noted_update(config, pool, snapshot, base, *those):
        assert all(model is not base and model is not snapshot for _, model in drawing)
        return updating(config, pool, snapshot, base, *those)

    updating = experiment.updated
    monkeypatch.setattr(experiment, "sample_round", noted)
    monkeypatch.setattr(experiment, "updated", noted_update)
    with pytest.raises(StageReached):
        run_of(config, begun(tmp_path / "run"), stop_after="aligned-2")
    assert [in_main for in_main, _ in drawing] == [False, False]


# ---------------------------------------------------------------- stopping and going on


def test_a_run_that_fails_in_an_update_gives_the_next_round_up_and_goes_on_to_the_same_figures(
    begun, finished, monkeypatch, tmp_path
):
    really, config = experiment.updated, stale()

    def fails(*those):
        if those[5] == 1:
            raise KeyboardInterrupt
        return really(*those)

    monkeypatch.setattr(experiment, "updated", fails)
    with pytest.raises(KeyboardInterrupt):
        run_of(config, begun(tmp_path / "run"))
    monkeypatch.setattr(experiment, "updated", really)
    summary = run_of(config, tmp_path / "run")
    assert figures(summary) == figures(finished[1])
    assert summary["idle"][0] == {} and all(summary["idle"][1:]), "of a round that is read nothing was measured"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["sampled-1", "aligned-2", "sampled-2"])
def test_a_killed_run_goes_on_to_the_same_figures(begun, finished, tmp_path, moment):
    config, folder = stale(), begun(tmp_path / "run")
    code = (
        "from test_experiments_align_ahead import *\n"
        f"run_of(stale(), Path({str(folder)!r}))"
    )  # fmt: skip
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (folder / "stages" / moment / "work").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert figures(run_of(config, folder)) == figures(finished[1])


class AtOnce:
    """Stops after the first update."""

    watched = False

    def stopped(self, signals):
        return "enough" if len(signals) == 2 else None

    def best(self, signals):
        return len(signals) - 1


def test_a_rule_that_stops_gives_up_what_is_sampled_ahead(begun, finished, monkeypatch, tmp_path):
    really = experiment.built
    monkeypatch.setattr(experiment, "built", lambda kind, *of: AtOnce() if kind == "stop" else really(kind, *of))
    summary = run_of(stale(), begun(tmp_path / "run"))
    assert summary["chosen"] == {"round": 1, "last": 1, "reason": "enough"}
    known = finished[1]["rounds"]
    assert summary["rounds"][0] == known[0]
    assert summary["rounds"][1] == {name: known[1][name] for name in summary["rounds"][1]}


class Workers:
    """Workers that have nothing to do."""

    def start(self, do):
        pass

    def waited_for(self):
        return nullcontext()

    def abandoned(self):
        return nullcontext()


@pytest.mark.parametrize("staleness", [1, 2])
def test_rounds_are_prepared_here_in_order_and_no_further_ahead_than_allowed(staleness):
    config = stale(staleness, num=4)
    prepared = []

    def sampling(t):
        assert current_thread() is main_thread()
        prepared.append(t)
        return lambda: (t, current_thread() is main_thread())

    with Ahead(config, Workers()) as ahead:
        for t in range(4):
            assert ahead(t, sampling) == (t, False)
            assert prepared == list(range(min(4, t + staleness + 1)))


def test_an_error_in_sampling_is_that_of_the_round_that_is_asked_for():
    def fail():
        raise ValueError("no sessions")

    with Ahead(stale(), Workers()) as ahead:
        assert ahead(0, lambda t: fail if t else int) == 0
        with pytest.raises(ValueError, match="no sessions"):
            ahead(1, lambda t: int)


def slowly(number):
    time.sleep(0.3)
    return number


def test_threads_take_turns_at_the_actors_and_one_that_is_abandoned_ends():
    with Rollouts(stale().rollouts, "local") as workers, ThreadPoolExecutor(1) as thread:
        workers.start(slowly)
        tasks = [(number,) for number in range(4)]
        other = thread.submit(workers.map, slowly, (), tasks)
        assert workers.map(abs, (), [(-number,) for number in range(9)]) == list(range(9))
        assert other.result() == list(range(4))
        other = thread.submit(workers.map, slowly, (), [(number,) for number in range(1000)])
        with workers.abandoned(), pytest.raises(AbandonedError):
            other.result(timeout=20)
        assert workers.map(slowly, (), tasks) == list(range(4))
        workers.idle.read()
        with workers.waited_for():
            time.sleep(0.2)
        found = workers.idle.read()
        assert found["driver"] > 0.9 and found["worker 1"] == found["worker 2"] == 1.0


def test_a_bar_in_another_thread_is_not_shown(monkeypatch):
    monkeypatch.setattr(type(console), "is_terminal", True)

    def work():
        with console.capture() as said, progress("Sampling") as step:
            step(1, 1)
        return said.get()

    with ThreadPoolExecutor(1) as thread, progress("Training"):
        assert thread.submit(work).result() == ""


# ---------------------------------------------------------------- idle shares


def test_idle_shares_are_told_by_round(finished):
    folder, summary = finished
    assert len(summary["idle"]) == ROUNDS
    for row in summary["idle"]:
        assert set(row) == {"seconds", "driver", "worker 1", "worker 2"} and row["seconds"] > 0
        assert all(0 <= row[name] <= 1 for name in row if name != "seconds")
        assert row["driver"] < 1 and min(row["worker 1"], row["worker 2"]) < 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [{name: line[name] for name in line if name.startswith("idle/")} for line in lines if "step" in line]
    assert told[0]["idle/worker_1"] == summary["idle"][0]["worker 1"] and told[-1] == {}
    assert "Share of each round that workers idled" in (folder / "report.html").read_text()


def test_without_actors_nobody_idles(begun, tmp_path):
    summary = run_of(stale(0, ray="off", num=1), begun(tmp_path / "run"))
    assert summary["idle"] == [{}] and "workers idled" not in (tmp_path / "run" / "report.html").read_text()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(stale, serve=5), r"samples ahead of the snapshot that rounds\.serve=5 serves users with"),
        (partial(stale, on_policy=False), r"does nothing with rounds\.on_policy=False"),
        (partial(stale, ROUNDS), r"max_staleness=3 does no more than 2, because the last of rounds\.num=3 rounds"),
        (partial(stale, 1, num=0), r"max_staleness=1 does no more than 0"),
        (partial(stale, -1), "max_staleness=-1"),
    ],
)
def test_rounds_that_cannot_be_sampled_ahead_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cycles_learn_from_what_the_last_snapshot_served(capsys, tmp_path):
    options = ["--rounds.num", "2", "--rollouts.max-staleness", "1", "--run", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(["run", "onerec-cycles-smoke", *options])
    assert "does not fit cycles" in " ".join(capsys.readouterr().err.split())
    assert not Path(tmp_path / "run").exists()
