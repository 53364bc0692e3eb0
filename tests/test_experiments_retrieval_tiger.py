"""TIGER in next-item retrieval: its windows, and the whole experiment through the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest

from feedgym.cli import main
from feedgym.data.events import Event
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.retrieval.agents import TIGER_TOKENIZERS, _load_tiger, tiger_tokenizer
from feedgym.experiments.retrieval.data import Retrieval, read_log
from feedgym.experiments.retrieval.presets import TigerSizes
from feedgym.tokenizers.residual_kmeans import KMeansOptions
from feedgym.tokenizers.rqvae import RQVAEOptions


def test_windows_are_every_item_taken_with_what_came_before_it():
    config = PRESETS["tiger-smoke"]()
    world = Retrieval.of(config, read_log(config, None))
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
    found = [h[m].tolist() for h, m in zip(every.histories.item_ids_UT, every.histories.mask_UT, strict=True)]
    assert found == [seen for _, seen, _ in want] and len(want) > 50
    assert every.item_ids_NK[:, 0].tolist() == [item for _, _, item in want]
    assert last.item_ids_NK[:, 0].tolist() == list({u: item for u, _, item in want}.values())


@pytest.mark.parametrize(
    ("tokenizer", "options"),
    [
        ("residual_kmeans", {"kmeans": KMeansOptions(assignment="nearest", collisions="counter", max_iterations=2)}),
        ("rqvae", {"rqvae": RQVAEOptions(steps=3, latent_width=6, optimizer="adagrad", codebook="ema")}),
    ],
)
def test_options_of_a_tokenizer_reach_the_fitted_one(tokenizer, options, tmp_path):
    config = PRESETS["tiger-smoke"]()
    usual = {"kmeans": KMeansOptions(), "rqvae": TigerSizes().rqvae}
    sizes = replace(config.model, tokenizer=tokenizer, num_codes=(4, 8), **usual | options)
    content_IE = np.random.default_rng(0).normal(size=(24, 10)).astype(np.float32)
    fitted = tiger_tokenizer(replace(config, model=sizes), content_IE, tmp_path)
    (given,) = options.values()
    assert vars(given).items() <= vars(fitted.config).items()


@pytest.mark.parametrize("tokenizer", ["rqvae", "random"])
def test_tiger_is_trained_and_ranked_through_the_command_line(tokenizer, tmp_path):
    unused = [] if tokenizer == "rqvae" else ["--model.rqvae.steps", "20000"]  # the smoke's own would be refused
    main(["run", "tiger-smoke", "--run", str(tmp_path / "run"), "--model.tokenizer", tokenizer, *unused])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["ranked_by"]["tiger"] == "lists"
    assert np.isfinite(summary["agents"]["tiger"]["ndcg@10"]["mean"])
    agent = _load_tiger(TIGER_TOKENIZERS[tokenizer], tmp_path / "run" / "stages" / "tiger")
    assert agent.model.config.session_length == 1 and agent.trie.num_items == 80
