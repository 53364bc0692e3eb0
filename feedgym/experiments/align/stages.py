"""The stages of an alignment, with the settings that decide each and the codec of its product."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from feedgym.data.parquet import read_batch, write_batch
from feedgym.experiments.against import rivals_key
from feedgym.experiments.align.presets import AlignConfig, RoundsConfig
from feedgym.experiments.align.probe import Probe
from feedgym.experiments.align.shards import SampledRound
from feedgym.experiments.align.world import plan_world
from feedgym.experiments.configs import CostConfig
from feedgym.experiments.cost import MEASURED_HERE
from feedgym.experiments.run import Codec, NumberOrNone, Plan, json_of
from feedgym.plugins import key_of, options_key, resolve
from feedgym.rewards.ensemble import RewardEnsemble, load_reward_model
from feedgym.rewards.model import RewardModel

FIGURES = json_of(dict[str, NumberOrNone])
"""Codec of figures by name."""
REWARD: Codec[RewardModel | RewardEnsemble] = Codec(
    lambda model, folder: model.save_pretrained(folder), load_reward_model
)
"""Codec of a reward model, or of an ensemble."""
SAMPLED: Codec[SampledRound] = Codec(lambda sampled, folder: sampled.save(folder), SampledRound.load)
"""Codec of a round's sessions."""
PROBE: Codec[Probe] = Codec(
    lambda probe, folder: write_batch(probe, folder / "probe.safetensors"),
    lambda folder: read_batch(Probe, folder / "probe.safetensors"),
)
"""Codec of a probe."""


def _save_rewards(models: list[RewardModel | RewardEnsemble], folder: Path) -> None:
    for number, model in enumerate(models):
        (folder / str(number)).mkdir()
        REWARD.save(model, folder / str(number))


REWARDS: Codec[list[RewardModel | RewardEnsemble]] = Codec(
    _save_rewards, lambda folder: [REWARD.load(path) for path in sorted(folder.iterdir()) if path.name.isdigit()]
)
"""Codec of several reward models, each in a folder with its number."""


class Decisions(NamedTuple):
    """The settings that decide the stages of an alignment, besides their parents.

    Attributes:
        cut: for the sessions to learn from.
        codes, base, reward: for the tokenizer, pretraining and the reward model.
        scored: for the items an agent leaves out, and the scores of its sessions.
        drawn: for a round's sessions.
        method: for a round's update.
    """

    cut: list[Any]
    codes: list[Any]
    base: list[Any]
    reward: list[Any]
    scored: list[Any]
    drawn: list[Any]
    method: list[Any]

    @classmethod
    def of(cls, config: AlignConfig) -> Decisions:
        """The decisions of a configuration."""
        cut = [config.session_length, config.history_length, config.split, config.split_seed, config.seed]
        learned = [key_of("model", config.model), config.model_options, config.pretrain, config.sessions]
        scored = [config.memory, config.weights, key_of("reward", config.reward), config.reward_options, config.seed]
        scored += [] if config.rollouts.device == "cpu" else [config.rollouts.device]
        scored += [] if config.rollouts.dtype == "float32" else [config.rollouts.dtype]
        return cls(
            cut=cut,
            codes=[key_of("tokenizer", config.tokenizer), options_key(config.tokenizer_options), config.seed],
            base=learned + cut,
            reward=[config.reward_model, config.reward_share, *cut],
            scored=scored,
            drawn=[_drawing(config.rounds), config.sampling, config.rollouts.users_per_task, *scored],
            method=[
                key_of("method", config.method), config.method_options, config.rounds.reference, config.seed,
            ],
        )  # fmt: skip


def plan(config: AlignConfig) -> Plan:
    """Plan the stages in order, with the settings that decide each.

    Raises:
        ValueError: the method or the rule does not fit the other settings.
    """
    check_together(config)
    plan, rounds = Plan(), config.rounds
    spread = ("ray", "rollouts.num_actors", "rollouts.tasks_per_shard", "rollouts.gpus_per_actor")
    plan.leave_out(*spread, because="the process that draws a block, and the time, do not change its sessions")
    if not rounds.num:
        unused = [f"rounds.{f.name}" for f in fields(rounds) if f.name not in ("num", "num_samples", "truth_replicas")]
        unused += ["method", "method_options", "stop", "stop_options", "rollouts.users_per_task"]
        plan.leave_out(*unused, because="without rounds nothing is aligned")
    log, of = plan_world(plan, config), Decisions.of(config)
    tokenizer = plan.stage("tokenizer", of.codes, (log,))
    base = plan.stage("base", of.base, (tokenizer,))
    reward = plan.stage("reward", of.reward, (log,))
    plan.stage("reward-check", parents=(reward,))
    watchers = plan.stage("watchers", [config.probe.watchers, config.reward_model, *of.cut], (log,))
    shown = [config.sampling.block_seen, config.sampling.candidates]
    looked = [config.probe, *shown, rounds.truth_replicas, *of.scored]
    snapshots = [base]
    for t in range(rounds.num + 1):
        snapshot, drawing = snapshots[t], snapshots[max(0, t - config.rollouts.max_staleness)]
        plan.stage(f"probe-{t}", looked, (snapshot, base, reward, watchers))
        if t == rounds.num:
            break
        if rounds.serve:
            served = plan.stage(f"served-{t}", [rounds.serve, rounds.serve_visits, config.sampling], (snapshot,))
            reward = plan.stage(f"reward-{t}", of.reward, (served, reward))
        sampled = plan.stage(f"sampled-{t}", of.drawn, (drawing, base, reward))
        snapshots.append(plan.stage(f"aligned-{t + 1}", of.method, (sampled, snapshot, base)))
    rule = [key_of("stop", config.stop), config.stop_options]
    chosen = plan.stage("chosen", rule, (f"probe-{rounds.num}",)) if rounds.num else base
    pools = [plan.stage(f"pool-{name}", [*looked, rounds.num_samples], (of, base, reward, watchers))
             for name, of in (("base", base), ("aligned", chosen))]  # fmt: skip
    judges = [replace(config.judge, cost=CostConfig()), rivals_key(config.judge.against)]
    beside = plan.stage("judged-beside", [*judges, config.sampling, *of.scored], (base, reward))
    judged = plan.stage("judged", None, (beside, *pools))
    plan.stage("cost", config.judge.cost, (judged,), MEASURED_HERE)
    return plan


def check_together(config: AlignConfig) -> None:
    """Refuse choices that do nothing together. Method and rule must be trusted by now, because this imports them."""
    rule = resolve("stop", config.stop)
    config.check_reward()
    if config.rounds.reference == "base":
        config.check_reference()
    if config.sampling.candidates and not hasattr(resolve("model", config.model), "query"):
        raise ValueError(
            f"sampling.candidates={config.sampling.candidates} needs a model with the methods query and item_vectors, "
            f"as HSTU has; leave it 0 for {config.model}."
        )
    if getattr(rule, "watched", False) and not config.probe.watchers:
        raise ValueError(
            f"stop={config.stop!r} needs reward models that are not optimised; set --probe.watchers 2, or choose kl "
            "or diversity."
        )


def _drawing(rounds: RoundsConfig) -> Any:
    """The settings of the rounds that decide the sessions of one round, besides the models."""
    others = ("num", "reference", "serve", "serve_visits")
    return {f.name: getattr(rounds, f.name) for f in fields(rounds) if f.name not in others}
