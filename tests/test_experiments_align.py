"""The method with agents other than OneRec: through the command line, and each agent's first step of alignment."""

import json
import math
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from toy_agents import NUM_ITEMS, K, T, toy_histories, toy_tokenizer

from feedgym.agents.alignment.dpo import DPORoundConfig, dpo_round
from feedgym.agents.generation import SamplingConfig
from feedgym.agents.hstu import HSTU, HSTUConfig, HSTUSizes
from feedgym.agents.layers.moe import SparseMoE
from feedgym.agents.onerec import OneRecSizes
from feedgym.agents.session_model import session_logp
from feedgym.agents.tiger import TigerSizes
from feedgym.cli import main
from feedgym.data.batches import Preferences
from feedgym.data.sessions import SessionFilter
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.experiments.align.agents import agents_of, new_model, new_tokenizer
from feedgym.experiments.align.presets import AlignConfig, smoke
from feedgym.experiments.align.shards import SampledRound
from feedgym.experiments.presets import PRESETS
from feedgym.tokenizers.codes import codes_for
from feedgym.tokenizers.item_id import ItemId
from feedgym.tokenizers.own import fit_codes
from feedgym.tokenizers.quality import quality_report
from feedgym.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from feedgym.tokenizers.rqvae import RQVAE, RQVAEConfig

SIZES = {"onerec-ipa": OneRecSizes, "tiger-ipa": TigerSizes, "hstu-ipa": HSTUSizes}


@pytest.mark.parametrize("name", [f"{name}{size}" for name in SIZES for size in ("", "-smoke")] + ["tiger-ipa-paper"])
def test_a_configuration_comes_back_from_a_runs_file_with_its_kind_of_agent(name):
    config = PRESETS[name]()
    assert type(config.model_options) is SIZES[name.removesuffix("-smoke").removesuffix("-paper")]
    kept = json.loads(json.dumps(asdict(config)))
    assert TypeAdapter(AlignConfig).validate_python(kept) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokenizer": "sentencepiece"}, "'sentencepiece' is unknown; give one of residual_kmeans, rqvae, item_id"),
        (
            {"model": "hstu", "model_options": HSTUSizes(loss="ce")},
            "HSTU writes item ids, not the codes of tokenizer='residual_kmeans'",
        ),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(smoke(), **changes)


def test_tiger_is_aligned_and_judged_through_the_command_line(tmp_path, capsys):
    run = tmp_path / "run"
    main(["run", "tiger-ipa-smoke", "--ray", "off", "--run", str(run), "--rounds.num", "1", "--judge.users", "8"])
    assert "True reward, aligned over base" in capsys.readouterr().out.replace("\n", " ")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["title"] == "TIGER + IPA on ShortVideo, simulated users"
    assert summary["rounds"][0]["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert {"base", "aligned"} <= set(summary["agents"]) and summary["lift"]
    finished = agents_of(run)
    base, aligned = (finished.agents[name].model for name in ("base", "aligned"))
    assert type(base).__name__ == "Tiger" and base.config.tokenizer_hash == aligned.config.tokenizer_hash
    assert RQVAE.load(run / "stages" / "tokenizer").hash == base.config.tokenizer_hash
    assert any(not torch.equal(a, b) for a, b in zip(base.parameters(), aligned.parameters(), strict=True))


def test_hstu_is_aligned_among_candidates(tmp_path):
    run, sizes = tmp_path / "run", ["--rounds.num", "1", "--judge.users", "8", "--method", "grpo"]
    main(["run", "hstu-ipa-smoke", "--ray", "off", "--run", str(run), *sizes, "--sampling.candidates", "20",
          "--model.loss", "sampled_softmax"])  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    for figures in summary["rounds"]:
        assert math.isfinite(figures["entropy"]) and figures["kl_to_base"] < math.inf
    assert summary["rounds"][0]["kl_to_base"] == pytest.approx(0, abs=1e-5), "both agents write among the same items"
    assert {"base", "aligned"} <= set(summary["agents"]) and summary["lift"]
    drawn = SampledRound.load(run / "stages" / "sampled-0").whole()
    assert drawn.for_method().logp_US.isnan().all() and drawn.for_method().logp_allowed_US.isnan().all()
    assert drawn.logp_drawn_US.isfinite().all()
    assert all(len(row_SK.unique()) <= 20 for row_SK in drawn.item_ids_USK)


@pytest.mark.parametrize("num_items", [2, 3, 5, 16, 120, 2000, 2049, 4096, 10_000, 10**6])
def test_codes_have_room_for_four_times_the_items(num_items):
    num_codes = codes_for(num_items)
    assert 4 * num_items <= math.prod(num_codes) < 8 * num_items
    assert all(size & (size - 1) == 0 and 1 < size <= num_items for size in num_codes)  # powers of two, none empty


def test_the_default_codes_are_balanced_and_an_existing_item_is_not_written_by_chance():
    """With 2,048 tuples for 2,000 items, 98% of all codes could follow a first one; no new item found a free tuple."""
    content_IE = ShortVideo(ShortVideoConfig(num_items=500)).catalog.content_IE
    tokenizer = ResidualKMeans(ResidualKMeansConfig(num_codes=codes_for(500))).fit(content_IE)
    report = quality_report(tokenizer, content_IE)
    assert report["utilisation"] == [1.0, 1.0] and report["unique_tuple_ratio"] == 1.0
    assert all(
        most - least <= 1 for least, most in zip(report["cluster_size_min"], report["cluster_size_max"], strict=True)
    )
    assert report["items_per_tuple"] <= 1 / 4 and report["max_prefix_group"][0] <= tokenizer.num_codes[1] / 4


def test_the_papers_preset_has_what_the_paper_publishes():
    config = PRESETS["onerec-ipa-paper"]()
    assert config.sessions == SessionFilter(min_watched=5, min_interactions=1, top_share=1.0)
    assert (config.rounds.num_samples, config.rounds.user_share, config.rounds.search) == (128, 0.01, "beam")
    assert (config.history_length, config.model_options.num_experts, config.judge.beams) == (256, 24, 128)
    assert config.pretrain.lr == config.method_options.learning_rate == 2e-4 and config.method_options.epochs == 1


@pytest.mark.parametrize("changes", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.9}])
def test_a_beam_search_refuses_the_options_of_sampling(changes):
    beams = replace(smoke().rounds, search="beam")
    with pytest.raises(ValueError, match=r"top_k and top_p do nothing where rounds\.search='beam'; leave"):
        replace(smoke(), rounds=beams, sampling=SamplingConfig(**changes))
    assert (
        replace(smoke(), rounds=beams, sampling=SamplingConfig(block_seen=False)).rounds == beams
    )  # the search obeys it


def test_options_of_the_experts_reach_the_built_model():
    sizes = {"num_experts_per_tok": 3, "gate_renormalise": True, "router_aux_loss_coef": 0.25}
    config = replace(smoke(), model_options=replace(smoke().model_options, **sizes))
    model = new_model(config, toy_tokenizer(), (3, 2))
    usual = new_model(smoke(), toy_tokenizer(), (3, 2))
    assert {name: getattr(model.config, name) for name in sizes} == sizes
    assert not any(getattr(usual.config, name) == value for name, value in sizes.items())
    experts = [module for module in model.modules() if isinstance(module, SparseMoE)]
    assert [(layer.experts_per_token, layer.renormalise) for layer in experts] == [(3, True)]


@pytest.mark.parametrize(
    ("tokenizer", "options"),
    [
        (
            "residual_kmeans",
            ResidualKMeansConfig(
                num_codes=(4, 8), seed=1, assignment="nearest", collisions="counter", max_iterations=2
            ),
        ),
        (
            "rqvae",
            RQVAEConfig(
                num_codes=(4, 8), seed=1, hidden_widths=(12,), latent_width=6, beta=0.5, codebook="ema", ema_decay=0.9,
                revive_steps=3, collisions="sinkhorn", optimizer="adagrad", lr=0.01, batch_size=16, steps=4,
                kmeans_iterations=2, checkpoint_steps=2,
            ),
        ),
    ],
)  # fmt: skip
def test_options_of_a_tokenizer_reach_the_fitted_one(tokenizer, options, tmp_path):
    config = replace(smoke(), tokenizer=tokenizer, tokenizer_options=options)
    content_IE = torch.randn(24, 10, generator=torch.Generator().manual_seed(0)).numpy()
    catalog = SimpleNamespace(content_IE=content_IE, raw_ids_I=np.arange(24))
    fitted = fit_codes(new_tokenizer(config), catalog, tmp_path)
    assert vars(options) == vars(fitted.config)
    assert all(getattr(options, f.name) != f.default for f in fields(options))  # none was left as it is
    kept = {folder.name for folder in tmp_path.iterdir()}
    assert kept == ({"checkpoint-2", "checkpoint-4"} if tokenizer == "rqvae" else set())


def test_hstu_says_by_which_loss_it_learned_sessions():
    ids = ItemId().fit(np.zeros((NUM_ITEMS, 1)))
    assert new_model(PRESETS["hstu-ipa-smoke"](), ids, (3, 2)).config.loss == "ce"
    with pytest.raises(ValueError, match="HSTU is trained with loss='ce', not 'bce'; choose ce"):
        replace(PRESETS["hstu-ipa-smoke"](), model_options=HSTUSizes(loss="bce"))
    sampled = HSTUSizes(loss="sampled_softmax", num_negatives=9)
    with pytest.raises(ValueError, match=r"not 'sampled_softmax'; choose ce, or set sampling\.candidates"):
        replace(PRESETS["hstu-ipa-smoke"](), model_options=sampled)
    config = replace(PRESETS["hstu-ipa-smoke"](), model_options=sampled, sampling=SamplingConfig(candidates=20))
    assert new_model(config, ids, (3, 2)).config.loss == "sampled_softmax"


def test_hstu_starts_a_round_at_ln_2_and_learns_to_prefer_the_chosen(tmp_path):
    """Its logits are cosines and come from no output matrix: TRL's head is answered by the model's own forward."""
    torch.manual_seed(0)
    config = HSTUConfig(num_items=NUM_ITEMS, d_model=16, d_qk=8, d_v=8, num_heads=2, num_layers=1, dropout=0.2,
                        history_length=T, session_length=K, temperature=0.5, only_positives=False)  # fmt: skip
    model, histories = HSTU(config).eval(), toy_histories(24, seed=3)
    sessions = [torch.stack([torch.randperm(NUM_ITEMS)[:K] for _ in range(24)]) for _ in range(3)]
    chosen, rejected, logged = sessions
    pairs = Preferences(
        user_idx_P=torch.arange(24),
        chosen_PK=chosen,
        rejected_PK=rejected,
        logged_PK=logged,
        score_chosen_P=torch.ones(24),
        score_rejected_P=torch.zeros(24),
    )
    with torch.no_grad():
        before = session_logp(model, histories, torch.stack([chosen, rejected], dim=1))
    metrics = dpo_round(model, histories, pairs, DPORoundConfig(epochs=8, batch_size=12, learning_rate=1e-2), tmp_path)
    with torch.no_grad():
        gain = session_logp(model, histories, torch.stack([chosen, rejected], dim=1)) - before
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["margin"] == pytest.approx(0.1 * (gain[:, 0] - gain[:, 1]).mean().item(), abs=1e-4)
    assert metrics["margin"] > 0.05 and metrics["accuracy"] > 0.5
    assert "forward" not in model.__dict__ and not model.training
