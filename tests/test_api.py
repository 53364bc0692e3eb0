"""Experiments from Python: objects where names are, options by name, and runs that are gone on with."""

import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from toy_users import ToyUsers

import feedgym
from feedgym import api, plugins
from feedgym.cli import MISTAKE, main
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.options import with_options

ROOT = Path(feedgym.__file__).parent.parent
TINY = {"log.users": 40, "log.visits": 3, "judge.users": 8, "judge.visits": 1, "judge.beams": 0, "ray": "off"}
EXAMPLES = sorted((ROOT / "examples" / "python").glob("*.py"))


def low_ids(histories, sessions):
    return -sessions.item_ids_USK.float().mean(-1)


@dataclass(frozen=True, kw_only=True)
class NudgeConfig:
    step: float = 0.01


class Nudge:
    """A method that adds to all weights; what it was given is kept for the test to look at."""

    Config = NudgeConfig
    asked: list = []  # noqa: RUF012

    def __init__(self, config=NudgeConfig()):
        self.config = config

    def update(self, model, histories, sampled, logged_UK, work, progress=None):
        self.asked.append((histories, sampled, logged_UK))
        with torch.no_grad():
            for weight in model.parameters():
                weight += self.config.step
        return {"step": self.config.step}


def align(tmp_path, **given):
    given = {
        "preset": "onerec-ipa-smoke",
        "rounds": 1,
        "run": tmp_path / "run",
        "tracker": "none",
        "options": TINY,
    } | given
    return api.align(**given)


def test_objects_are_taken_wherever_names_are_and_a_run_goes_on(tmp_path, capsys):
    Nudge.asked.clear()
    given = {"reward": low_ids, "method": Nudge(NudgeConfig(step=0.02))}
    result = align(tmp_path, **given)
    (_, sampled, logged_UK), *more = Nudge.asked
    assert not more and not hasattr(sampled, "truth_US"), "a method never sees the truth"
    torch.testing.assert_close(sampled.score_US, -sampled.item_ids_USK.float().mean(-1))
    assert (sampled.logp_drawn_US >= sampled.logp_US - 1e-4).all(), "what is drawn is drawn from fewer codes"
    assert len(logged_UK) == len(sampled.item_ids_USK)
    assert result.summary["rounds"][0]["step"] == 0.02 and set(result.lift()) == {"mean", "low", "high"}
    assert result.log.num_users == 40 and set(result.agents) == {"base", "aligned"} and result.report().exists()
    base, aligned = (dict(agent.model.named_parameters()) for agent in result.agents.values())
    for name, weight in aligned.items():
        torch.testing.assert_close(weight, base[name] + 0.02)

    capsys.readouterr()
    assert align(tmp_path, **given).summary["lift"] == result.summary["lift"]
    assert "done" not in capsys.readouterr().err, "nothing is made again under the same objects"
    other = align(tmp_path, **given | {"method": Nudge(NudgeConfig(step=0.5))})
    said = capsys.readouterr().err
    assert "done aligned-1" in said and "done base" not in said, "another state of the object is another method"
    assert other.summary["rounds"][0]["step"] == 0.5


def test_a_run_with_objects_is_no_matter_of_the_command_line(tmp_path, capsys):
    result = align(tmp_path, reward=low_ids)
    plugins._objects.clear()  # as in another process
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["stage", "judged", "--run", str(result.folder)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == MISTAKE and "low_ids" in line and "was an object of a Python program" in line


def test_names_tell_code_and_state_of_objects_apart():
    assert plugins.named("reward", "clicks") == "clicks"
    first, second = (plugins.named("method", Nudge(NudgeConfig(step=step))) for step in (0.1, 0.2))
    assert first != second and first == plugins.named("method", Nudge(NudgeConfig(step=0.1)))
    assert plugins.named("method", Nudge) != first and plugins.resolve("method", first).config.step == 0.1
    by_state = {plugins.named("simulator", ToyUsers(num_items)) for num_items in (30, 30, 31)}
    assert len(by_state) == 2

    def reward_of(power):
        return lambda histories, sessions: sessions.item_ids_USK.float().pow(power).mean(-1)

    assert len({plugins.named("reward", reward_of(power)) for power in (1, 1, 2)}) == 2


def test_what_a_folder_names_is_imported_only_if_the_program_named_it_or_says_so(tmp_path):
    result = align(tmp_path, method="test_api:Nudge")
    assert set(result.agents) == {"base", "aligned"}, "the program named it itself"
    for again in (api.Result(result.folder, {}), api.Result(result.folder, {}, frozenset({"test_api:Other"}))):
        with pytest.raises(ValueError, match=r"would import and run 'test_api:Nudge' \(its method\)"):
            _ = again.agents
    assert set(api.Result(result.folder, {}, trust=True).agents) == {"base", "aligned"}


def test_what_nothing_tells_from_others_has_a_new_name_each_time_and_the_run_says_so(tmp_path, capsys):
    class Opaque:
        def __init__(self):
            self.generator = (number for number in range(3))  # cannot be hashed

        def __call__(self, histories, sessions):
            return low_ids(histories, sessions)

    names = {plugins.named("reward", Opaque()) for _ in range(2)}
    assert len(names) == 2 and all(plugins.UNTOLD in name for name in names)
    align(tmp_path, reward=Opaque())
    assert "cannot be resumed: its reward cannot be identified later" in capsys.readouterr().err.replace("\n", " ")


def test_options_have_the_names_of_the_command_line():
    config = with_options(smoke(), {"method.beta": 0.7, "model.d-model": 8, "log.users": 9, "seed": 3})
    assert (config.method_options.beta, config.model_options.d_model) == (0.7, 8)
    assert (config.log.users, config.seed) == (9, 3) and config.log.visits == smoke().log.visits


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"preset": "onerec"}, "There is no preset 'onerec'"),
        ({"model": "gru"}, "model='gru' is unknown; give one of onerec, tiger, hstu"),
        ({"options": {"rounds.round": 3}}, "There is no option 'round'"),
        ({"options": {"method.beta": -1.0}}, "beta=-1.0 must be above 0"),
        ({"users": "long_term_satisfaction", "data": "nowhere.csv"}, "nowhere.csv: no such file"),
    ],
)
def test_mistakes_are_told_before_work_starts(tmp_path, given, says):
    with pytest.raises(ValueError, match=says):
        align(tmp_path, **given)
    assert not list(tmp_path.rglob("stage.json"))


def test_agents_are_judged_by_users_of_ones_own(toy=30):
    from feedgym.agents.baselines import RandomRecommender

    agents = {"one": RandomRecommender(toy, 3, seed=0), "two": RandomRecommender(toy, 3, seed=1)}
    found = api.evaluate(agents, users=ToyUsers(toy), num_users=20, visits=2)
    assert list(found) == ["one", "two"] and {"mean", "low", "high"} <= set(found["one"]["true_reward"])
    assert api.evaluate(agents["one"], users=ToyUsers(toy), num_users=20, visits=2)["RandomRecommender"] == found["one"]
    with pytest.raises(ValueError, match=r"sessions of \[3, 4\] items"):
        api.evaluate(agents | {"long": RandomRecommender(toy, 4)}, users=ToyUsers(toy))


def test_a_runs_agents_are_judged_again(tmp_path):
    result = align(tmp_path)
    again = api.evaluate(result.folder, num_users=12)
    assert again["judged_by"].startswith("12 fresh users, served 1 visits")
    with pytest.raises(ValueError, match="holds no finished run"):
        api.evaluate(tmp_path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_ten_lines_of_an_example_run(path, tmp_path, monkeypatch, capsys):
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith(('"""', "#"))]
    assert len(lines) <= 13, "imports included"
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")  # a process of its own would take longer to import than to run
    assert capsys.readouterr().out.strip()


def test_there_are_examples_of_all_four_functions():
    assert [path.stem for path in EXAMPLES] == ["align", "evaluate", "pretrain", "simulate"]
