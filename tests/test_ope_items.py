"""Off-policy evaluation of single items: on a tiny log of KuaiRand's form, and on a simulated one."""

import json

import numpy as np
import pandas as pd
import pytest

from feedgym.cli import main
from feedgym.data.public.kuairand import PROFILE_FIELDS, read_kuairand
from feedgym.data.sessions import user_of_rows
from feedgym.experiments.ope.items import Exposures, known_chances, policies, told_of_items
from feedgym.experiments.ope.presets import OPEItemsRun

pytestmark = pytest.mark.usefixtures("one_thread")

VIDEOS = 12
FIRST_MS = 1651363200000
FEEDBACK = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")


def exposures(rng, users, number, chance_V, rate_V):
    """Exposures of videos drawn with some chance, viewed long at the video's own rate."""
    video = rng.choice(VIDEOS, number, p=chance_V)
    table = pd.DataFrame({"user_id": rng.integers(users, size=number), "video_id": video})
    table["time_ms"] = FIRST_MS + np.sort(rng.choice(10**8, number, replace=False)) * 10
    table = table.assign(**dict.fromkeys(FEEDBACK, 0), play_time_ms=1000, duration_ms=9000)
    table["long_view"] = (rng.random(number) < rate_V[video]).astype(int)
    return table.assign(is_click=table["long_view"])


@pytest.fixture(scope="module")
def kuairand(tmp_path_factory):
    """A folder of KuaiRand's form: popular videos are no better than others, but a system showed them."""
    folder, rng = tmp_path_factory.mktemp("kuairand"), np.random.default_rng(0)
    rate_V = np.linspace(0.1, 0.9, VIDEOS)
    shares_V = np.linspace(2, 1, VIDEOS) / np.linspace(2, 1, VIDEOS).sum()
    exposures(rng, 80, 2000, shares_V, rate_V).to_csv(folder / "log_standard_4_22.csv", index=False)
    exposures(rng, 80, 3000, np.full(VIDEOS, 1 / VIDEOS), rate_V).to_csv(folder / "log_random_4_22.csv", index=False)
    videos = {"video_id": range(VIDEOS), "author_id": range(VIDEOS), "video_type": "NORMAL", "tag": "1"}
    videos |= {"upload_dt": "2022-04-10", "upload_type": "S", "video_duration": 9000.0, "music_type": 9.0}
    pd.DataFrame(videos).to_csv(folder / "video_features_basic_pure.csv", index=False)
    users = pd.DataFrame(dict.fromkeys(PROFILE_FIELDS, 0), index=range(80)).assign(user_id=range(80))
    users.to_csv(folder / "user_features_pure.csv", index=False)
    return folder, rate_V


CONFIG = OPEItemsRun(popularity_temperatures=(0.5, 1.0), content_temperatures=(0.3,), min_rows_share=0.001)


def test_random_exposures_tell_what_policies_of_single_items_earn(kuairand):
    folder, rate_V = kuairand
    data = read_kuairand(folder)
    shown = Exposures.of(CONFIG, data)
    assert (shown.prob_N == pytest.approx(1 / VIDEOS)) and shown.pool_I.all()
    rate_I = rate_V[data[1].raw_ids_I]
    told = told_of_items(CONFIG, data)
    popularity_I = shown.count_I + 1
    for agent, prob_I in {
        "random": np.full(VIDEOS, 1 / VIDEOS),
        "popular at 1": popularity_I / popularity_I.sum(),
        "popular at 0.5": popularity_I**2 / (popularity_I**2).sum(),
    }.items():
        for name, estimate in told["agents"][agent].items():
            assert abs(estimate["mean"] - prob_I @ rate_I) < 0.05, (agent, name)
    assert told["halves"]["dr"] > 0.3 and told["rows"]["random"] == pytest.approx(len(shown.row_N))


def test_who_judges_teaches_nothing_and_only_known_chances_count(kuairand):
    log, catalog = read_kuairand(kuairand[0])
    shown = Exposures.of(CONFIG, (log, catalog))
    assert known_chances(log).sum() == 3000 and 1000 < len(shown.row_N) < 2000
    judging = np.unique(user_of_rows(log)[shown.row_N])
    others = ~np.isin(user_of_rows(log), judging)
    counted = np.bincount(log.item_id[others & (log.behaviours[:, 1] > 0)], minlength=VIDEOS)
    assert np.array_equal(shown.count_I, counted)
    few = Exposures.of(OPEItemsRun(exposures=50), (log, catalog))
    assert len(few.row_N) == 50


def test_probabilities_of_an_agent_are_of_the_pool_alone(kuairand):
    shown = Exposures.of(CONFIG, read_kuairand(kuairand[0]))
    shown.pool_I[0] = False
    told = policies(CONFIG, shown)
    assert (told["random"][0][shown.item_N == 0] == 0).all()
    assert told["random"][0][shown.item_N != 0] == pytest.approx(1 / (VIDEOS - 1))
    assert told["random"][1] == pytest.approx(shown.rate_I[1:].mean())


def test_an_agent_that_the_log_hardly_shows_is_refused(kuairand):
    strict = OPEItemsRun(popularity_temperatures=(0.1,), content_temperatures=(), min_rows_share=0.99)
    told = told_of_items(strict, read_kuairand(kuairand[0]))
    assert set(told["agents"]["popular at 0.1"]) == {"dm"} and set(told["agents"]["random"]) == {
        "ips",
        "snips",
        "dm",
        "dr",
    }
    assert "effective sample size" in told["refused"]["popular at 0.1"]["ips"]


def test_a_log_without_chances_is_refused_in_one_line(kuairand, capsys, tmp_path):
    folder, _ = kuairand
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in folder.iterdir():
        if "random" not in file.name:
            (plain / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "ope-items", "--data", str(plain), "--run", str(tmp_path / "run")])
    assert "no exposure with a known probability of being shown" in capsys.readouterr().err


def test_by_the_command_line_on_a_simulated_log(tmp_path, capsys):
    main(["compare", "ope-items-smoke", "--run", str(tmp_path / "run")])
    said, summary = capsys.readouterr().out, json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "popular at 4" in said and "the truth is unknown" in " ".join(said.split())
    assert set(summary["agents"]["random"]) == {"ips", "snips", "dm", "dr"}
    assert "Estimated reward of each agent" in (tmp_path / "run" / "report.html").read_text()
