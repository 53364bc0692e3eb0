"""Every numeric option of every configuration has a range, and refuses what lies outside of it."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import types
import typing

import numpy as np
import pytest
from annotated_types import Interval
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedConfig

import feedgym
from feedgym.agents.alignment.dpo import DPORoundConfig
from feedgym.agents.onerec import OneRecConfig
from feedgym.agents.pretrain import PretrainConfig
from feedgym.agents.rl_settings import TrainConfig
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.experiments.align.presets import RoundsConfig
from feedgym.experiments.configs import JudgeConfig, LogConfig
from feedgym.ranges import Ranged, check_ranges, field_types
from feedgym.rewards.model import RewardModelConfig
from feedgym.tokenizers.residual_kmeans import ResidualKMeansConfig
from feedgym.tokenizers.rqvae import RQVAEConfig

READ_OFF_THE_DATA = {"feedgym.rewards.network.Sizes"}
"""What looks like options and is none: nobody chooses it."""

NO_OPTIONS = ("profile_sizes", "num_codes")
"""Fields of models that the data and the tokenizer fill in; their tuples have no range."""


def configurations():
    """All classes that hold options: those of the mechanism, and what the models keep."""
    found = set()
    for module in pkgutil.walk_packages(feedgym.__path__, "feedgym."):
        if module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and kind.__module__ == module.name and holds_options(kind):
                found.add(kind)
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def holds_options(kind):
    if f"{kind.__module__}.{kind.__name__}" in READ_OFF_THE_DATA:
        return False
    if issubclass(kind, PreTrainedConfig):
        return True
    named = kind.__name__.endswith(("Config", "Run", "Options", "Arguments", "Size", "Sizes", "Weights", "Filter"))
    is_frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
    return issubclass(kind, Ranged) or (named and is_frozen and all(f.kw_only for f in dataclasses.fields(kind)))


def numbers(hint, interval=None):
    """The numbers in a type, each as its type and its range or None."""
    if typing.get_origin(hint) is typing.Annotated:
        marks = [mark for mark in hint.__metadata__ if isinstance(mark, Interval)]
        yield from numbers(hint.__origin__, marks[0] if marks else None)
    elif hint in (int, float):
        yield hint, interval
    elif typing.get_origin(hint) in (tuple, list, typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from numbers(part)


def numeric_fields():
    for kind in configurations():
        for name, hint in field_types(kind).items():
            if typing.get_origin(hint) is not typing.ClassVar and not (
                issubclass(kind, PreTrainedConfig) and name in NO_OPTIONS
            ):
                yield from ((kind, name, number, interval) for number, interval in numbers(hint))


def test_there_are_many_configurations():
    assert len(configurations()) > 50
    assert {"AlignConfig", "ShortVideoConfig", "SimulateArguments", "OneRecConfig"} <= {
        kind.__name__ for kind in configurations()
    }


def test_every_number_has_a_range_and_every_class_checks_it():
    without = {
        f"{kind.__module__}.{kind.__name__}.{name}" for kind, name, _, interval in numeric_fields() if not interval
    }
    assert not without
    unchecked = {kind.__name__ for kind, *_ in numeric_fields() if not issubclass(kind, (Ranged, PreTrainedConfig))}
    assert not unchecked


def outside(number, interval):
    """Values on the wrong sides of a range, and the two that lie outside of all."""
    low = interval.ge - 1 if interval.ge is not None else interval.gt
    high = interval.lt if interval.le is None else interval.le + 1
    return [low, high] if number is int else [low, high, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("kind", sorted({kind for kind, *_ in numeric_fields()}, key=lambda kind: kind.__name__))
def test_what_lies_outside_is_refused_in_one_line(kind):
    class Bare(kind):
        """Without the class's own checks, which are not meant here."""

        def __post_init__(self, **kwargs):
            check_ranges(self)

    for name, hint in field_types(kind).items():
        found = list(numbers(hint))
        if not found or typing.get_origin(hint) is typing.ClassVar or (name in NO_OPTIONS and not found[0][1]):
            continue
        for value in outside(*found[0]):
            config = object.__new__(Bare)
            defaults = {other: None for other in field_types(kind)}
            for other, default in (defaults | {name: shaped(hint, value)}).items():
                object.__setattr__(config, other, default)
            with pytest.raises(
                ValueError, match=rf"^{name}[^ ]*=[^ ]+ (must be|is not a finite number).*; \w+ .*\.$"
            ) as error:
                check_ranges(config)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind", [kind for kind in configurations() if issubclass(kind, Ranged) and not issubclass(kind, PreTrainedConfig)]
)
def test_own_checks_of_a_class_come_after_its_ranges(kind):
    fields = {name: list(numbers(hint)) for name, hint in field_types(kind).items()}
    name = next((name for name, found in fields.items() if found and found[0][1]), None)
    if name is None:
        return
    config = object.__new__(kind)
    value = outside(*fields[name][0])[1]
    for other in fields:
        object.__setattr__(config, other, None)
    object.__setattr__(config, name, shaped(field_types(kind)[name], value))
    with pytest.raises(ValueError, match=f"^{name}.*must be"):
        config.__post_init__()


def shaped(hint, value):
    """The value in as many tuples as the type has."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return shaped(typing.get_args(hint)[0], value)
    if typing.get_origin(hint) is tuple:
        return (shaped(typing.get_args(hint)[0], value),)
    return value


def test_a_configuration_and_a_models_config_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match="num_samples=0 must be 2 or more; raise it"):
        RoundsConfig(num_samples=0)
    with pytest.raises(ValueError, match="d_model=0 must be 1 or more; raise it"):
        OneRecConfig(d_model=0)


def test_elements_of_tuples_are_checked():
    with pytest.raises(ValueError, match=r"num_codes\[1\]=0 must be 1 or more; raise it"):
        ResidualKMeansConfig(num_codes=(8, 0))


def test_pydantic_checks_the_ranges_of_a_file():
    with pytest.raises(ValidationError) as error:
        TypeAdapter(RoundsConfig).validate_python({"num_samples": 0})
    assert error.value.errors()[0]["loc"] == ("num_samples",)
    assert "greater than or equal to 2" in error.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interest_topics": (8, 2)}, r"interest_topics=\(8, 2\) must not fall"),
        ({"duration_range_s": (300.0, 5.0)}, "duration_range_s=.* must not fall"),
        ({"feedback_logit": (0.0,)}, "feedback_logit has 1 numbers; give 5, one for each of like, follow"),
        ({"feedback_enjoyment": (0.0,) * 6}, "feedback_enjoyment has 6 numbers; give 5"),
        ({"day_base": 0.0, "day_peaks": ((12.0, 1.0, 0.0),)}, "nobody is active; raise either"),
        ({"popularity_offset": 0.0}, "popularity_offset=0.0 must be 0.001 or more; raise it"),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        ShortVideoConfig(**changes)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (PretrainConfig, "steps"),
        (PretrainConfig, "epochs"),
        (RQVAEConfig, "steps"),
        (DPORoundConfig, "epochs"),
        (TrainConfig, "iterations"),
        (TrainConfig, "steps"),
        (RewardModelConfig, "epochs"),
        (LogConfig, "visits"),
        (JudgeConfig, "visits"),
    ],
)
def test_a_billion_of_what_takes_time_is_refused(kind, field):
    with pytest.raises(ValueError, match=f"{field}=1000000000 must be .* or less; lower it"):
        kind(**{field: 10**9})


def test_interests_of_no_weight_leave_the_mood():
    simulator = ShortVideo(ShortVideoConfig(num_items=40, interest_weight=0.0))
    state = simulator.reset(np.arange(3, dtype=np.uint64))
    affinity_UM, _ = simulator.interests(state)
    assert np.isfinite(affinity_UM).all() and not affinity_UM.any()  # no mood yet
