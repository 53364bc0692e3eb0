"""Iterative preference alignment of OneRec, in reading order (OneRec, arXiv:2502.18965, §3 and Algorithm 2).

    log -> tokenizer -> base (next-token prediction) -> reward model -> rounds of {sample, score, choose, DPO} -> judge

The world (:mod:`feedgym.experiments.worlds`) is where the log comes from and who judges the agents in the end:
simulated users, who know the truth, or a recorded log, which does not. Everything between is the same code for both.

Deviations from the paper: the 128 sessions of a pair come from sampling by default (the paper searches with beams;
``IPAConfig.beams`` does too); NTP during alignment is on the logged sessions of the sampled users, in the same batches
as their pairs, and not on the rest of the stream; a snapshot is kept a round (the paper: an epoch).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedgym.agents.dpo import dpo_round
from feedgym.agents.onerec import OneRec, OneRecConfig, OneRecRecommender, session_logp
from feedgym.agents.pretrain import SessionDataset, pretrain
from feedgym.data.batches import EventBatch, Preferences, SessionBatch, TensorRows
from feedgym.data.parquet import read_batch, write_batch
from feedgym.experiments.presets import AlignConfig
from feedgym.experiments.progress import progress, say
from feedgym.experiments.report import write_report
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.run import JSON, Codec, Run, Stage, git_revision, write_json
from feedgym.experiments.statistics import within_user_correlation
from feedgym.experiments.worlds import LOG, Pool, World, world_of
from feedgym.rewards.model import RewardModel, auc_per_tower, fit_reward_model
from feedgym.tokenizers.quality import quality_report
from feedgym.tokenizers.residual_kmeans import ResidualKMeans


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled(TensorRows):
    """One round's sessions, what the reward model thinks of them, and what they are truly worth where it is known.

    Attributes:
        row_U: int64 rows of the users' logged sessions in the pool.
        item_ids_USK: int64 sampled sessions.
        logp_US: float32 log-probabilities under the agent that sampled them.
        logp_base_UB: float32 log-probabilities of the first B sessions under the base agent.
        logp_legal_US: float32, see :class:`feedgym.data.batches.SessionBatch`.
        score_US: float32, the reward model's scores.
        truth_US: float32, the simulator's true values; None on a recorded log.
    """

    row_U: torch.Tensor
    item_ids_USK: torch.Tensor
    logp_US: torch.Tensor
    logp_base_UB: torch.Tensor
    logp_legal_US: torch.Tensor
    score_US: torch.Tensor
    truth_US: torch.Tensor | None


def align(config: AlignConfig, run: Run) -> dict[str, Any]:
    """Pretrain, align and judge OneRec.

    Args:
        config: the whole experiment.
        run: the folder that keeps it; stages found there are not done again.

    Returns:
        The summary, as written to ``summary.json``.
    """
    world = world_of(config)

    log = run.stage("log", world.collect, LOG, config=world.key)
    pool = Pool.of(log.value, world, config)

    tokenizer = run.stage(
        "tokenizer",
        lambda _: ResidualKMeans(config.tokenizer_for(pool.catalog)).fit(pool.catalog.content_IE),
        Codec(lambda value, folder: value.save(folder), ResidualKMeans.load),
        config=config.tokenizer_for(pool.catalog),
        parents=[log],
    )
    agents = Codec(lambda model, folder: model.save_pretrained(folder), lambda f: OneRec.load(f, tokenizer.value))

    base = run.stage(
        "base",
        lambda work: pretrained(config, pool, tokenizer.value, work),
        agents,
        config=[config.model, config.pretrain, config.sessions, config.history_length, config.split_seed, config.seed],
        parents=[tokenizer],
    )
    reward = run.stage(
        "reward",
        lambda work: fitted_reward(config, pool, work),
        Codec(lambda model, folder: model.save_pretrained(folder), RewardModel.load),
        config=[config.reward, config.history_length, config.split_seed, config.seed],
        parents=[log],
    )
    reward_figures = run.stage(
        "reward-check",
        lambda _: auc_per_tower(reward.value, pool.unseen.histories, pool.unseen.sessions),
        JSON,
        parents=[reward],
    )

    rounds: list[dict[str, float]] = []
    snapshot, clouds = base, []
    with Rollouts(config.rollouts) as rollouts:
        for t in range(config.ipa.rounds + 1):  # the last one only looks at where the alignment has arrived
            sampled = run.stage(
                f"sampled-{t}",
                lambda _, t=t, snapshot=snapshot: sample_round(
                    config, pool, world, rollouts, tokenizer.value, snapshot.value, base.value, reward.value, t
                ),
                Codec(lambda v, folder: write_batch(v, folder / "sampled.safetensors"), read_sampled),
                config=[
                    replace(config.ipa, rounds=0, margin=0.0),  # these two decide nothing here
                    config.sampling,
                    config.rollouts.users_per_task,
                    config.weights,
                    config.seed,
                ],
                parents=[snapshot, reward],
            )
            rounds.append(round_metrics(sampled.value, pool))
            clouds.append(cloud(sampled.value, t))
            if t < config.ipa.rounds:
                aligned = run.stage(
                    f"aligned-{t + 1}",
                    lambda work, snapshot=snapshot, sampled=sampled, t=t: dpo_snapshot(
                        config, pool, snapshot.value, sampled.value, t, work
                    ),
                    with_metrics(agents),
                    config=[config.dpo, config.ipa.margin],
                    parents=[sampled],
                )
                snapshot = Stage(aligned.name, aligned.key, aligned.value[0], aligned.seconds)
                rounds[-1] |= aligned.value[1]
            run.log({f"round/{name}": value for name, value in rounds[-1].items()}, step=t)

    judged = run.stage(
        "judged",
        lambda _: world.judge(
            {"base": recommender(config, base.value, tokenizer.value),
             "aligned": recommender(config, snapshot.value, tokenizer.value)},
            reward.value, pool,
        ),
        JSON,
        config=[config.judge, config.num_beams, config.weights],
        parents=[base, snapshot, reward],
    )  # fmt: skip
    summary = {
        "title": world.title,
        "note": world.note,
        **judged.value,
        "rounds": rounds,
        "scatter": clouds if clouds[0] else [],
        "reward_model": reward_figures.value,
        "tokenizer": quality_report(tokenizer.value, pool.catalog.content_IE, pool.catalog.topic_I),
        "stages": {name: {"seconds": seconds} for name, seconds in run.seconds.items()},
        "peak_memory_mb": run.memory.peak_mb,
        "seed": config.seed,
        "git_revision": git_revision(),
    }
    write_json(run.folder / "summary.json", summary)
    write_report(summary, run.folder)
    publish(run, summary)
    return summary


def pretrained(config: AlignConfig, pool: Pool, tokenizer: ResidualKMeans, work: Path) -> OneRec:
    """OneRec after next-token prediction on the training users' good sessions."""
    torch.manual_seed(config.seed)
    model = OneRec.from_tokenizer(tokenizer, OneRecConfig(**config.model_arguments(pool)))
    dataset = SessionDataset(histories=pool.imitate.histories, item_ids_NK=pool.imitate.targets_NK)
    with progress("Pretraining OneRec") as step:
        return pretrain(model, dataset, config.seeded(config.pretrain), work, step)


def fitted_reward(config: AlignConfig, pool: Pool, work: Path) -> RewardModel:
    """The session reward model after training on the training users' logged sessions, good or bad."""
    torch.manual_seed(config.seed)
    with progress("Training the reward model") as step:
        return fit_reward_model(
            pool.catalog, pool.rate.histories, pool.rate.sessions, config.seeded(config.reward), work, progress=step
        )


class Searching(OneRecRecommender):
    """A OneRec whose "samples" are the sessions of a beam search, as in the paper."""

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """The ``n`` best sessions a user; the generator is not needed."""
        return self.beams(histories, n)


def recommender(config: AlignConfig, model: OneRec, tokenizer: ResidualKMeans) -> OneRecRecommender:
    """A model as an agent, with the experiment's sampling and serving choices."""
    kind = Searching if config.ipa.beams else OneRecRecommender
    return kind(model, tokenizer, config.session_length, config.sampling, config.num_beams)


def sample_round(
    config: AlignConfig, pool: Pool, world: World, rollouts: Rollouts, tokenizer: ResidualKMeans,
    model: OneRec, base: OneRec, reward: RewardModel, t: int,
) -> Sampled:  # fmt: skip
    """Round t's users (Algorithm 2, line 4), 128 sessions for each from the snapshot, scored, and their true values."""
    row_U = torch.from_numpy(pool.draw_users(config.ipa.user_share, np.random.default_rng((config.seed, t))))
    histories = pool.imitate.histories.rows(row_U)
    agent = recommender(config, model, tokenizer)
    with progress(f"Round {t}: sampling, scoring") as step:
        sessions, score_US = rollouts(agent, reward, histories, config.ipa.num_samples, (config.seed, t), step)
    with progress(f"Round {t}: true values") as step:
        truth_US = world.true_value(pool, row_U.numpy(), sessions.item_ids_USK.numpy(), step)
    few = sessions.item_ids_USK[:, : config.ipa.kl_samples]
    with torch.inference_mode():
        logp_base_UB = session_logp(base.eval(), histories, few)
    assert sessions.logp_legal_US is not None
    return Sampled(
        row_U=row_U,
        item_ids_USK=sessions.item_ids_USK,
        logp_US=sessions.logp_US,
        logp_base_UB=logp_base_UB,
        logp_legal_US=sessions.logp_legal_US,
        score_US=score_US,
        truth_US=None if truth_US is None else torch.from_numpy(truth_US),
    )


def choose_pairs(sampled: Sampled, logged_UK: torch.Tensor, margin: float) -> Preferences:
    """Best against worst of each user's sessions by the reward model (Algorithm 2, lines 7-9).

    Args:
        sampled: S sessions a user, scored.
        logged_UK: what the log showed these users.
        margin: pairs whose scores differ by less are left out, as are those that do not differ.

    Returns:
        At most one pair a user.
    """
    user = torch.arange(len(sampled.row_U))
    best, worst = sampled.score_US.argmax(dim=1), sampled.score_US.argmin(dim=1)
    pairs = Preferences(
        user_idx_P=sampled.row_U,
        chosen_PK=sampled.item_ids_USK[user, best],
        rejected_PK=sampled.item_ids_USK[user, worst],
        logged_PK=logged_UK,
        score_chosen_P=sampled.score_US[user, best],
        score_rejected_P=sampled.score_US[user, worst],
    )
    gap_P = pairs.score_chosen_P - pairs.score_rejected_P
    return pairs.rows((gap_P > 0) & (gap_P >= margin))


def dpo_snapshot(
    config: AlignConfig, pool: Pool, snapshot: OneRec, sampled: Sampled, t: int, work: Path
) -> tuple[OneRec, dict[str, float]]:
    """The next snapshot: DPO against the last one on the round's pairs, plus NTP on the logged sessions."""
    pairs = choose_pairs(sampled, pool.imitate.targets_NK[sampled.row_U], config.ipa.margin)
    model = copy.deepcopy(snapshot)
    if not len(pairs):
        say(f"[yellow]Round {t}: no pair reaches the margin {config.ipa.margin}; the snapshot stays as it is.[/]")
        return model, {"pairs": 0}
    with progress(f"Round {t}: DPO") as step:
        settings = replace(config.dpo, seed=config.dpo.seed + config.seed + t)
        histories = pool.imitate.histories.rows(pairs.user_idx_P)
        metrics = dpo_round(model, histories, pairs, settings, work, progress=step)
    return model, {"pairs": len(pairs), **metrics}


def round_metrics(sampled: Sampled, pool: Pool) -> dict[str, float]:
    """What a round's samples say of the agent that drew them; means over users of means and maxima over sessions."""
    metrics = {
        "model_mean": sampled.score_US.mean().item(),
        "model_max": sampled.score_US.amax(dim=1).mean().item(),
        "legality": sampled.logp_legal_US.exp().mean().item(),
        "diversity": pool.diversity(sampled.item_ids_USK.numpy()).mean().item(),
        "entropy": -sampled.logp_US.mean().item(),
        "kl_to_base": (sampled.logp_US[:, : sampled.logp_base_UB.shape[1]] - sampled.logp_base_UB).mean().item(),
    }
    if sampled.truth_US is not None:
        score_US, truth_US = sampled.score_US.numpy(), sampled.truth_US.numpy()
        metrics |= {
            "true_mean": truth_US.mean().item(),
            "true_max": truth_US.max(axis=1).mean().item(),
            "true_of_best": truth_US[np.arange(len(truth_US)), score_US.argmax(axis=1)].mean().item(),
            "rank_correlation": within_user_correlation(score_US, truth_US, ranks=True),
        }
    return metrics


def cloud(sampled: Sampled, t: int, points: int = 1500) -> dict[str, Any]:
    """Some of a round's sessions as points: the reward model's score against the truth; empty without a truth."""
    if sampled.truth_US is None:
        return {}
    some = np.linspace(0, sampled.score_US.numel() - 1, points).astype(int)
    return {
        "round": t,
        "model": sampled.score_US.flatten()[some].tolist(),
        "true": sampled.truth_US.flatten()[some].tolist(),
    }


def publish(run: Run, summary: dict[str, Any]) -> None:
    """Put the result into the W&B record."""
    for kind in ("agents", "offline"):
        for agent, metrics in summary.get(kind, {}).items():
            run.log({f"{agent}/{name}": value["mean"] for name, value in metrics.items()})
    if summary.get("samples"):
        run.log_table("sample_sessions", summary["samples"]["columns"], summary["samples"]["rows"])
    last = max((run.folder / "stages").glob("aligned-*"), key=lambda path: int(path.name.split("-")[1]), default=None)
    if last is not None:
        run.log_artifact("aligned-agent", "model", last)
    run.log_artifact("tokenizer", "tokenizer", run.folder / "stages" / "tokenizer")
    run.log_artifact("report", "report", run.folder / "report.html")


def read_sampled(folder: Path) -> Sampled:
    """A round's sessions from its stage folder."""
    return read_batch(Sampled, folder / "sampled.safetensors")


def with_metrics(agents: Codec[OneRec]) -> Codec[tuple[OneRec, dict[str, float]]]:
    """An agent and the metrics of the round that made it."""

    def save(product: tuple[OneRec, dict[str, float]], folder: Path) -> None:
        agents.save(product[0], folder)
        JSON.save(product[1], folder)

    return Codec(save, lambda folder: (agents.load(folder), JSON.load(folder)))
