"""TIGER in next-item retrieval: its windows, and the whole experiment through the command line."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from feedgym.agents.tiger import Tiger
from feedgym.cli import main, read_config
from feedgym.data.events import Event
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.retrieval.agents import fitted_tokenizer, load_recommender
from feedgym.experiments.retrieval.data import RetrievalData, read_log
from feedgym.experiments.retrieval.experiment import plan
from feedgym.tokenizers.residual_kmeans import ResidualKMeansConfig
from feedgym.tokenizers.rqvae import RQVAEConfig


def test_windows_are_every_item_taken_with_what_came_before_it():
    config = PRESETS["tiger-smoke"]()
    world = RetrievalData.of(config, read_log(config, None))
    train, want = world.split.train, []
    for u in range(train.num_users):
        seen = []
        for row in range(train.offsets_U1[u], train.offsets_U1[u + 1]):
            if train.event[row] != Event.IMPRESSION or not train.examined[row]:
                continue
            if train.behaviours[row, 0]:  # a click
                want.append((u, seen[-5:], int(train.item_id[row])))
            seen.append(int(train.item_id[row]))
    every, last = world.windows(5, True), world.windows(5, False)
    whole = every.histories.rows(slice(None))
    found = [h[m].tolist() for h, m in zip(whole.item_ids_UT, whole.mask_UT, strict=True)]
    assert found == [seen for _, seen, _ in want] and len(want) > 50
    assert every.item_ids_NK[:, 0].tolist() == [item for _, _, item in want]
    assert last.item_ids_NK[:, 0].tolist() == list({u: item for u, _, item in want}.values())


@pytest.mark.parametrize(
    ("tokenizer", "options"),
    [
        ("residual_kmeans", ResidualKMeansConfig(assignment="nearest", collisions="counter", max_iterations=2)),
        ("rqvae", RQVAEConfig(steps=3, latent_width=6, optimizer="adagrad", codebook="ema")),
    ],
)
def test_options_of_a_tokenizer_reach_the_fitted_one(tokenizer, options, tmp_path):
    given = replace(options, num_codes=(4, 8), seed=2)
    config = replace(PRESETS["tiger-smoke"](), tokenizer=tokenizer, tokenizer_options=given, seed=5)
    content_IE = np.random.default_rng(0).normal(size=(24, 10)).astype(np.float32)
    fitted = fitted_tokenizer(
        config, SimpleNamespace(content_IE=content_IE, raw_ids_I=range(len(content_IE))), tmp_path
    )
    assert fitted.config == replace(given, seed=7)
    with pytest.raises(ValueError, match="takes LSHConfig"):
        replace(config, tokenizer="lsh")


def test_positives_are_the_behaviours_of_the_run():
    config = PRESETS["tiger-smoke"]()
    other = replace(config, model=replace(config.model, positives=("like",)))
    assert plan(other) == plan(config) and "model.positives" in plan(config).inert


@pytest.mark.parametrize("tokenizer", ["rqvae", "random"])
def test_tiger_is_trained_and_ranked_through_the_command_line(tokenizer, tmp_path):
    main(["run", "tiger-smoke", "--run", str(tmp_path / "run"), "--tokenizer", tokenizer])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ranked_by"]["tiger"] == "lists"
    assert np.isfinite(summary["agents"]["tiger"]["ndcg@10"]["mean"])
    config = read_config(tmp_path / "run")
    agent = load_recommender(Tiger, config, tmp_path / "run" / "stages" / "tiger")
    assert config.tokenizer == tokenizer and agent.model.config.session_length == 1 and agent.trie.num_items == 80
