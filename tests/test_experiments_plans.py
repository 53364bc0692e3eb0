"""Every field of every configuration decides a product, and says so by the key of a stage, or is declared inert."""

import types
import typing
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from feedgym.envs.truth import RewardWeights
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.launch import kind_of
from feedgym.experiments.presets import COMPARISONS, CONFIGS, PRESETS
from feedgym.experiments.rollouts import RolloutConfig
from feedgym.experiments.sweep.presets import AlignSweep, RetrievalSweep
from feedgym.plugins import BUILT_IN
from feedgym.rewards.config import RewardModelConfig
from feedgym.tokenizers.residual_kmeans import ResidualKMeansConfig

OTHER: dict[str, list[Any]] = {
    "data": ["elsewhere.csv"],
    "columns": [("user_id=uid",)],
    "items": ["items.csv"],
    "simulator": ["my_lab.users:Teen"],
    "tokenizer": ["my_lab.own:Codes"],
    "model": ["my_lab.own:Model"],
    "method": ["rsft", "my_lab.own:Method"],
    "methods": [("gbpo",)],
    "rewards": [("clicks",)],
    "candidates": [20, 50],
    "pairing": [("any",)],
    "preset": ["tiger-ipa-smoke", "hstu-smoke"],
    "space": [("rounds.num=choice(1,2)",), ("epochs=choice(1,2)",)],
    "options": [("rounds.num=1",), ("epochs=3",)],
    "reward": ["clicks", "keep"],
    "stop": ["diversity", "kl"],
    "ray": ["off", "local", "auto"],
    "ranker": ["my_lab.rankers:Mine"],
    "env": ["feedgym/Retention-v0"],
    "env_options": [("num_items=70",)],
    "end_to_end": ["tiger-ipa-smoke"],
    "weights": [RewardWeights(like=0.5)],
    "feedback_logit": [(-6.0,) * 5],
    "feedback_enjoyment": [(1.0,) * 5],
    "behaviours": [("like",)],
    "tasks": [("like",)],
    "stochastic_alpha": [1.5],
    "best_of": [(4,)],
    "learners": [("aligned", "base")],
}
"""Other values of fields whose type does not say which there are."""

FIXED = {"against", "model_options.loss", "simulator_options", "reward_options", "stop_options", "judge.best_of"}
FIXED |= {"judge.study", "judge.against"}
"""Fields that no test here changes: folders of runs, the one loss by which HSTU learns sessions, options of what has
none, and what reinforcement learning has only beside the agents of another run."""

OWN = {"CyclesConfig": "cycles."}
"""How the fields begin that are a kind of configuration's own; its others are walked with the kind they are of."""

SMOKES = {name: preset for name, preset in {**PRESETS, **COMPARISONS}.items() if name.endswith("-smoke")}


def bases():
    """Configurations that between them take every branch of the plans."""
    yield from ((name, preset()) for name, preset in SMOKES.items())
    for name in ("onerec-ipa-smoke", "sasrec-smoke", "genrank-smoke", "learned-simulator-smoke"):
        yield f"{name} on a recorded log", replace(SMOKES[name](), data="nowhere.csv")
    yield (
        "a simulator of one's own",
        replace(SMOKES["onerec-ipa-smoke"](), simulator="my_lab.users:Child", simulator_options=None),
    )
    apart = replace(SMOKES["onerec-ipa-smoke"]().probe, apart=True)
    yield "probed users kept apart", replace(SMOKES["onerec-ipa-smoke"](), data="nowhere.csv", probe=apart)
    yield "without rounds", replace(PRESETS["onerec-ipa-smoke"](), rounds=replace(AlignConfig().rounds, num=0))
    sampled = replace(SMOKES["onerec-ipa-smoke"]().judge, best_of=(2, 4))
    yield "judged beside the best of a few", replace(SMOKES["onerec-ipa-smoke"](), judge=sampled)
    served = replace(SMOKES["onerec-ipa-smoke"]().rounds, serve=5, serve_visits=3, served_share=0.4)
    yield "with rounds that serve", replace(PRESETS["onerec-ipa-smoke"](), rounds=served)
    shared = RolloutConfig(device="cuda", gpus_per_actor=0.5)
    yield "actors that share a GPU", replace(SMOKES["onerec-ipa-smoke"](), rollouts=shared)
    yield "with a rule to stop by", replace(SMOKES["onerec-ipa-smoke"](), stop="kl")
    several = {"reward_model": RewardModelConfig(members=3, backbone="genrank", max_weight=10.0)}
    yield "several rankers as the reward", replace(SMOKES["onerec-ipa-smoke"](), **several)
    yield "a mixed reward", replace(SMOKES["onerec-ipa-smoke"](), reward="mixed", reward_options={"freshness": 0.2})
    cautious = replace(SMOKES["onerec-ipa-smoke"](), reward="cautious", **several)
    yield "a cautious reward", replace(cautious, reward_model=RewardModelConfig(members=2, resample=False))
    cycles = PRESETS["onerec-cycles-smoke"]()
    further = replace(cycles.cycles, base="continue", further_epochs=0.3, further_lr=1e-4)
    yield "cycles that train further", replace(cycles, cycles=further)
    yield "DPO", replace(SMOKES["onerec-ipa-smoke"](), method="dpo", method_options=None)
    codes = {"tokenizer": "residual_kmeans", "tokenizer_options": ResidualKMeansConfig(num_codes=(8, 16))}
    yield "TIGER over balanced codes", replace(PRESETS["tiger-smoke"](), **codes)
    yield "a sweep", AlignSweep(preset="onerec-ipa-smoke", space=("method.beta=choice(0.1,0.2)",))
    yield "a sweep of next items", RetrievalSweep(preset="sasrec-smoke", space=("fit.lr=choice(0.001,0.002)",))
    sasrec = PRESETS["sasrec-smoke"]()
    yield "SASRec-CE", replace(sasrec, model=replace(sasrec.model, loss="ce"))


BASES = dict(bases())


def methods():
    """Configurations that between them take every option of the methods of alignment."""
    spread = {"margin": 1.0, "margin_unit": "spread"}
    for method in BUILT_IN["method"]:
        yield method, method, None
    yield "margins", "sppo", {"pairing": spread, "labels": "soft"}
    yield "margins of lists", "s_dpo", {"rejected": spread}
    yield "margins of good and bad", "kto", {"graded": spread}


METHODS = {
    name: replace(SMOKES["onerec-ipa-smoke"](), method=method, method_options=options)
    for name, method, options in methods()
}


def leaves(config, before=""):
    """Dotted names of all fields that are no dataclasses themselves."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{before}{field.name}.")
        else:
            yield f"{before}{field.name}"


def changed(config, name):
    """The configuration with the first other value that the field takes; None if the other fields allow no other."""
    head, _, rest = name.partition(".")
    if rest:
        part = changed(getattr(config, head), rest)
        return part and retold(config, head, part)
    value = getattr(config, head)
    found = (retold(config, head, other) for other in others(head, value, hints_of(type(config))[head]))
    return next((other for other in found if other and getattr(other, head) != value), None)


hints_of = cache(get_type_hints)


def retold(config, name, value):
    """The configuration with another value; None if it is refused."""
    try:
        return replace(config, **{name: value})
    except ValueError:
        return None


def others(name, value, hint):
    """Candidates for another value of a type."""
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, max(1, value // 2), 2 * value]
    if isinstance(value, float):
        return [value / 2, value + 0.25, 2.0 * value, 0.5, 0.9]
    options = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    found = []
    for option in options:
        if get_origin(option) is Literal:
            found += get_args(option)
        elif get_origin(option) is tuple:
            found += [(4, 8), value and value[:-1], ("like",)]
        else:
            found += {int: [7], float: [0.5], bool: [True], str: ["other"], Path: [Path("other")]}.get(option, [])
    return [other for other in found if other is not None]


def unlike(config, name, plan):
    """What is wrong with a field: it decides a key and is declared inert, or neither; None if all is well."""
    if (other := changed(config, name)) is None:
        return None
    after = kind_of(config).plan(other)
    parts = name.split(".")
    inert = any(".".join(parts[:depth]) in plan.inert for depth in range(1, len(parts) + 1))
    if (dict(after) != dict(plan)) is inert:
        return f"{name} is declared inert and changes a key" if inert else f"{name} changes no key"
    return None


def faults(config, names):
    """What is wrong with some fields, each beside the same plan."""
    plan = kind_of(config).plan(config)
    return [fault for name in names if (fault := unlike(config, name, plan))]


@pytest.mark.parametrize("name", BASES)
def test_every_field_changes_a_stages_key_or_is_declared_inert(name):
    assert faults(BASES[name], [leaf for leaf in leaves(BASES[name]) if not leaf.endswith("against")]) == []  # below


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_changes_a_stages_key(name):
    options = [leaf for leaf in leaves(METHODS[name]) if leaf.startswith("method_options.")]
    assert options and faults(METHODS[name], options) == []


@pytest.mark.parametrize("preset", ["rllib-smoke", "cascade-smoke", "ope-smoke"])
def test_beside_the_agents_of_another_run_too(preset, aligned_run):
    config = replace(SMOKES[preset](), against=str(aligned_run))
    assert faults(config, [leaf for leaf in leaves(config) if not leaf.endswith("against")]) == []
    assert dict(kind_of(config).plan(config)) != dict(kind_of(config).plan(SMOKES[preset]()))


def test_all_fields_of_all_kinds_of_configurations_are_walked():
    assert {type(config) for config in BASES.values()} == set(CONFIGS.values())
    there, walked = set(), set()
    for config in (*BASES.values(), *METHODS.values()):
        names = {(type(config), leaf) for leaf in leaves(config)}
        there |= names
        walked |= {name for name in names if name not in walked and changed(config, name[-1]) is not None}
    fixed = {leaf for kind, leaf in there - walked if leaf.startswith(OWN.get(kind.__name__, ""))}
    assert fixed <= FIXED, "add another value to OTHER, or a configuration to BASES"


def test_declared_fields_exist_and_have_reasons():
    for config in BASES.values():
        for name, reason in kind_of(config).plan(config).inert.items():
            value = config
            for part in name.split("."):
                value = getattr(value, part)
            assert reason


def test_session_length_decides_the_base_on_a_recorded_log():
    config = replace(SMOKES["onerec-ipa-smoke"](), data="nowhere.csv")
    plan = kind_of(config).plan
    before, after = plan(config), plan(replace(config, session_length=3))
    assert before["log"] == after["log"]
    assert all(before[name] != after[name] for name in ("base", "reward", "sampled-0", "aligned-1", "judged"))
