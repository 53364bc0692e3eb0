"""Trackers: what goes to W&B and TensorBoard, and that both stay in the run's folder."""

from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from feedgym.experiments.align.presets import smoke
from feedgym.experiments.align.stages import plan
from feedgym.experiments.run import Run, json_of, plain
from feedgym.experiments.tracking import Product, flat, group_of, tracker_of

ROUNDS = [{"true_mean": 1.0, "model_mean": 1.5}, {"true_mean": 2.0, "model_mean": 3.0}]
SAMPLES = {"columns": ["item", "watched"], "rows": [[1, True]]}


class Recorded:
    """Stands in for a W&B run and keeps what it is given."""

    def __init__(self):
        self.rows, self.artifacts = [], []

    def log(self, row, step=None):
        self.rows.append((row, step))

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def finish(self):
        pass


@pytest.fixture
def recorded(monkeypatch):
    import wandb

    asked, made = {}, Recorded()
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options) or made)
    made.asked = asked
    return made


def test_wandb_has_the_configuration_by_the_command_lines_names_and_the_same_id_when_resumed(recorded, tmp_path):
    for resumed in (False, True):
        run = Run(tmp_path / "run", smoke(), plan(smoke()), resume=resumed)
        run.close()
        config, first = recorded.asked["config"], recorded.asked["id"]
        assert config["rounds.num"] == smoke().rounds.num and not any(isinstance(v, dict) for v in config.values())
        assert recorded.asked["resume"] == "allow" and recorded.asked["dir"] == str(tmp_path / "run")
        recorded.asked.clear()
        if not resumed:
            kept = first
    assert first == kept


def test_wandb_draws_truth_and_prediction_together_and_artefacts_tell_their_parents(recorded, tmp_path):
    config = smoke()
    run = Run(tmp_path / "run", config, plan(config))
    for name in ("log", "tokenizer", "base", "reward"):
        run.stage(name, lambda _: [1], json_of(list[int]))
    (tmp_path / "run" / "report.html").write_text("<p>")
    summary = {"agents": {"base": {"true_reward": {"mean": 2.5}}}, "rounds": ROUNDS, "samples": SAMPLES}
    run.publish(summary, {"log": "log", "codes": "tokenizer", "base-agent": "base", "reward-model": "reward"})
    run.close()
    logged = {name: value for row, _ in recorded.rows for name, value in row.items()}
    assert logged["base/true_reward"] == 2.5 and logged["sample_sessions"].data == SAMPLES["rows"]
    assert {row[1:] for row in map(tuple, logged["reward_by_round"].table.data)} == {
        ("true", 1.0), ("true", 2.0), ("predicted", 1.5), ("predicted", 3.0),
    }  # fmt: skip
    parents = {artifact.name: artifact.metadata["parents"] for artifact in recorded.artifacts}
    assert parents["log"] == [] and parents["codes"] == ["log"]
    assert parents["base-agent"] == ["codes"] and parents["reward-model"] == ["log"]
    kinds = [(artifact.name, artifact.type) for artifact in recorded.artifacts]
    made = [("log", "dataset"), ("codes", "tokenizer"), ("base-agent", "model"), ("reward-model", "reward-model")]
    assert kinds == [*made, ("report", "report")]
    keys = [artifact.metadata["key"] for artifact in recorded.artifacts]
    assert keys == [*(run.plan[name] for name in ("log", "tokenizer", "base", "reward")), ""]


def test_a_run_within_a_run_has_a_wandb_record_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = smoke()
    outer = Run(tmp_path / "outer", config, plan(config))
    inner = Run(tmp_path / "outer" / "cells" / "inner", config, plan(config))
    inner.log({"loss": 1.0})
    inner.close()
    outer.log({"loss": 2.0})  # an error if the inner run had taken over this record, and closed it
    outer.close()
    for folder in (outer.folder, inner.folder):
        assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1


def test_runs_that_differ_in_the_seed_alone_are_a_group_and_cells_are_their_comparisons():
    one, other = ({"seed": seed, "rounds": {"num": 2}} for seed in (0, 1))
    assert group_of(Path("runs/a"), one, "AlignConfig") == group_of(Path("runs/b"), other, "AlignConfig")
    longer = {"seed": 0, "rounds": {"num": 3}}
    assert group_of(Path("runs/a"), one, "AlignConfig") != group_of(Path("runs/a"), longer, "AlignConfig")
    assert group_of(Path("runs/table/cells/s_dpo-2"), one, "AlignConfig") == ("table", "s_dpo")


def events_of(folder):
    """What a TensorBoard folder holds: per event its length (8 bytes), a check (4), the event, another check (4)."""
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            yield event
            data = data[16 + length :]


def test_tensorboard_has_scalars_the_curves_layout_and_the_sessions(tmp_path):
    tracker = tracker_of("tensorboard", tmp_path, plain(smoke()), "AlignConfig")
    tracker.log({"round/true_mean": 1.5, "round/rank_correlation": None}, 3)
    tracker.publish(ROUNDS, SAMPLES, {"report": Product(kind="report", path=tmp_path)})
    tracker.finish()
    values = [(value, event.step) for event in events_of(tmp_path / "tensorboard") for value in event.summary.value]
    (scalar,) = [(value.simple_value, step) for value, step in values if value.tag == "round/true_mean"]
    assert scalar == (1.5, 3)
    tags = {value.tag for value, _ in values}
    assert "round/rank_correlation" not in tags and any("custom_scalars" in tag for tag in tags)
    assert any("sample_sessions" in tag for tag in tags) and any("config" in tag for tag in tags)


def test_no_tracker_writes_nothing_and_an_unknown_one_is_refused(tmp_path):
    tracker = tracker_of("none", tmp_path, {}, "AlignConfig")
    tracker.log({"a": 1.0}, 0)
    tracker.publish(ROUNDS, SAMPLES, {})
    tracker.finish()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="There is no tracker 'mlflow'; the trackers are wandb, tensorboard, none"):
        tracker_of("mlflow", tmp_path, {}, "AlignConfig")


def test_names_of_a_flat_configuration_are_those_of_the_options():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
