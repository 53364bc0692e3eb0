"""``feedgym watch``: the right agent in the right world, pictures on disk, and mistakes told in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from toy_users import ToyUsers

from feedgym.agents.baselines import PopularRecommender
from feedgym.cli import INTERRUPTED, MISTAKE, main
from feedgym.data.events import Event
from feedgym.envs.feed import FeedVectorEnv
from feedgym.envs.logging import collect_log
from feedgym.envs.render.picture import picture_height
from feedgym.experiments.watch import show_of, styled, visits_of

TOY = "toy_users:ToyUsers"


def watched(capsys, *arguments):
    """What the program prints."""
    main(["watch", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """The line it says to a mistake."""
    with pytest.raises(SystemExit) as stop:
        main(["watch", *map(str, arguments)])
    assert stop.value.code == MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    return line


def headers(text):
    return [line for line in text.splitlines() if line.startswith("user ")]


def served(text):
    """Ids of the items served, a list a visit."""
    visits = []
    for line in text.splitlines():
        if line.startswith("user "):
            visits.append([])
        elif line.split()[:1] and line.split()[0].isdigit():
            visits[-1].append(int(line.split()[1]))
    return visits


# ---------------------------------------------------------------- agents and worlds


def test_random_serves_as_many_visits_as_wished_one_user_after_another(capsys):
    text = watched(capsys, "random", "--simulator", TOY, "--visits", 15, "--session-length", 3)
    heads = headers(text)
    assert len(heads) == 15 and all(len(items) == 3 for items in served(text))
    assert heads[0].startswith("user 0 · visit 1 ·")
    users = [head.split(" · ")[0] for head in heads]
    assert len(set(users)) > 1, "one in ten visits of toy users is their last"
    leaving = [i for i in range(14) if users[i] != users[i + 1]]
    told = [block for block in text.split("user ")[1:]]  # the first piece is the title
    assert all("never comes back" in told[i] for i in leaving)
    assert all(" visit 1 " in heads[i + 1] for i in leaving)
    assert "\x1b" not in text, "no colours where there is no terminal"


def test_the_same_seed_is_the_same_user_and_another_is_not(capsys):
    again = [watched(capsys, "random", "--simulator", TOY, "--visits", 2, "--seed", seed) for seed in (7, 7, 8)]
    assert again[0] == again[1] != again[2]


def test_popular_serves_what_is_popular(capsys):
    text = watched(capsys, "popular", "--simulator", TOY, "--visits", 1, "--session-length", 5)
    assert served(text) == [[0, 1, 2, 3, 4]], "toy items are the less popular the higher their id"


def test_popular_is_counted_in_a_log_where_the_simulator_does_not_tell():
    class Quiet(ToyUsers):
        def __init__(self):
            super().__init__()
            del self.popularity_I

    from feedgym.experiments.watch import LOG_USERS, LOG_VISITS, _reference

    agent = _reference("popular", Quiet(), 4)
    assert isinstance(agent, PopularRecommender)
    log = collect_log(Quiet(), num_users=LOG_USERS, num_visits=LOG_VISITS, session_length=4, seed=0)
    seen = log.item_id[(log.event == Event.IMPRESSION) & log.examined]
    assert torch.equal(agent.count_I, torch.from_numpy(np.bincount(seen, minlength=40)).double())


def test_the_oracle_sees_the_state():
    show = show_of("oracle", env="feedgym/ShortVideo-v1", session_length=4)
    env = show.make("ansi")
    env.reset(seed=3)
    best_UK = env.simulator.oracle(env.state, 4)
    ((seen, _),) = visits_of(show, seed=3, visits=1)
    assert served(seen["ansi"]) == best_UK.tolist()


@pytest.mark.parametrize("level", ["Session", "Request", "Retention"])
def test_every_task_level_can_be_watched(level, capsys):
    text = watched(capsys, "random", "--env", f"feedgym/ShortVideo{level}-v1", "--visits", 3, "--session-length", 2)
    assert len(headers(text)) == 3


def test_an_agent_of_ones_own_gets_what_it_asks_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_agents.py").write_text(
        "import torch\n"
        "from feedgym.agents.baselines import PopularRecommender\n"
        "def longest(catalog, log):\n"
        "    assert (log.item_id >= 0).any()\n"
        "    return PopularRecommender(torch.from_numpy(catalog.duration_s_I), 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    text = watched(capsys, "my_agents:longest", "--simulator", TOY, "--visits", 1)
    longest = np.argsort(-ToyUsers().catalog.duration_s_I, kind="stable")[:3]
    assert served(text) == [longest.tolist()], "its own session length counts"
    assert "--session-length 4" in refused(capsys, "my_agents:longest", "--simulator", TOY, "--session-length", 4)


def test_a_runs_agents_are_watched_in_the_runs_own_world(aligned_run, capsys):
    text = watched(capsys, aligned_run, "--visits", 2, "--seed", 5)
    assert text.startswith(f"aligned of {aligned_run}")
    assert all(len(items) == 4 and max(items) < 120 for items in served(text))
    base = watched(capsys, aligned_run, "--visits", 2, "--seed", 5, "--agent", "base")
    assert base.startswith(f"base of {aligned_run}") and headers(base)[0] == headers(text)[0], "the same user"
    random = watched(capsys, aligned_run, "--visits", 1, "--seed", 5, "--agent", "random")
    assert headers(random)[0] == headers(text)[0] and served(random) != served(text)[:1]
    assert len(served(watched(capsys, aligned_run, "--visits", 1, "--agent", "oracle"))[0]) == 4


def test_a_runs_agent_serves_what_it_would_recommend(aligned_run):
    from feedgym.envs.feed import event_batch
    from feedgym.experiments.align.agents import agents_of

    finished = agents_of(aligned_run)
    env = FeedVectorEnv(1, finished.world.simulator, session_length=4, history_length=finished.config.history_length)
    observation, _ = env.reset(seed=2)
    for seen, reward in visits_of(show_of(str(aligned_run), visits=3), seed=2, visits=3):
        slates_UK = finished.agents["aligned"].recommend(event_batch(observation)).item_ids_USK[:, 0].numpy()
        assert served(seen["ansi"]) == slates_UK.tolist()
        observation, reward_U, ended_U, *_ = env.step(slates_UK)
        assert reward == pytest.approx(float(reward_U[0]))
        if ended_U[0]:
            break


# ---------------------------------------------------------------- pictures and terminals


def test_pictures_are_written_whole_one_a_visit_and_show_the_same_visits(tmp_path, capsys):
    arguments = ("random", "--simulator", TOY, "--visits", 4, "--session-length", 3)
    text = watched(capsys, *arguments, "--frames", tmp_path / "frames", "--png", tmp_path / "last.png")
    assert text == watched(capsys, *arguments)
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == [f"visit-{n:04}.png" for n in range(1, 5)]
    pictures = [np.asarray(Image.open(tmp_path / "frames" / name)) for name in names]
    assert {picture.shape for picture in pictures} == {(picture_height(3), 1000, 3)}
    assert np.array_equal(pictures[-1], np.asarray(Image.open(tmp_path / "last.png")))
    show = show_of("random", simulator=TOY, session_length=3)
    seen = [frames for frames, _ in visits_of(show, 0, 4, "rgb_array")]
    assert all(np.array_equal(frame["rgb_array"], picture) for frame, picture in zip(seen, pictures, strict=True))


def test_colours_leave_the_text_as_it_is():
    ((seen, _),) = visits_of(show_of("random", simulator=TOY), 0, 1)
    text = styled(seen["ansi"])
    assert text.plain == seen["ansi"] and len(text.spans) > 3


def test_the_delay_is_between_visits(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("feedgym.experiments.watch.time.sleep", waited.append)
    watched(capsys, "random", "--simulator", TOY, "--visits", 3, "--delay", 0.25)
    assert waited == [0.25, 0.25]
    watched(capsys, "random", "--simulator", TOY, "--visits", 2)
    assert waited[2:] == [0], "nobody waits for a pipe"


def test_ctrl_c_quits_without_a_traceback():
    code = "from feedgym.cli import main; main()"
    arguments = [sys.executable, "-c", code, "watch", "random", "--simulator", TOY, "--delay", "60"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background is deaf to it
    with subprocess.Popen(arguments, **pipes, env=environment, preexec_fn=hearing) as run:
        lines = iter(run.stdout.readline, "")
        assert any(line.startswith("  reward") for line in lines), "the first visit is shown at once"
        time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == INTERRUPTED and errors == ""


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["watch", "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for word in ("AGENT", "oracle", "--simulator", "--frames", "feedgym watch runs/one --seed 3 --agent base"):
        assert word in told


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nobody"], "There is no agent 'nobody'; give random, popular, oracle"),
        (["random", "--agent", "base"], "'random' is not a run's folder"),
        (["random", "--env", "CartPole-v1"], "CartPole-v1 is not a feed; the feeds are feedgym/"),
        (["random", "--env", "feedgym/Nothing-v1"], "There is no environment 'feedgym/Nothing-v1'"),
        (["random", "--env", "feedgym/ShortVideo-v1", "--simulator", TOY], "either --env or --simulator"),
        (["oracle", "--simulator", TOY], "ToyUsers has no oracle"),
        (["random", "--simulator", "nothing"], "simulator='nothing' is unknown; give one of short_video,"),
        (["toy_users:ToyUsers"], "not a Recommender"),
        (["random", "--simulator", TOY, "--visits", "0"], "visits=0 must be 1 or more"),
        (["random", "--simulator", TOY, "--seed", "-1"], "seed=-1 must be 0 or more"),
        (["random", "--simulator", TOY, "--delay", "nan"], "delay=nan is not a finite number"),
        (["random", "--simulator", TOY, "--session-length", "0"], "session_length=0 must be 1 or more"),
        (["random", "--simulator", TOY, "--session-length", "41"], "session_length=41 must be in 1..40"),
        (["random", "--simulator", TOY, "--png", "picture.jpg"], "let it end in .png"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, told, capsys):
    assert told in refused(capsys, *arguments)


def test_folders_that_hold_no_run_or_other_pictures_are_refused(aligned_run, tmp_path, capsys):
    assert "holds no run" in refused(capsys, tmp_path)
    assert "the run's own world" in refused(capsys, aligned_run, "--simulator", TOY)
    assert "its agents are random, popular, base, aligned, oracle" in refused(capsys, aligned_run, "--agent", "best")
    (tmp_path / "mine.png").write_bytes(b"")
    assert "not an empty folder" in refused(capsys, "random", "--simulator", TOY, "--frames", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": {"seed": "none"}}))
    assert "is of version 1 of run folders" in refused(capsys, tmp_path / "run")
