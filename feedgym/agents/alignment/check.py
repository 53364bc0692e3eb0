"""Checks that an alignment method keeps the rules that an experiment's rounds rely on.

Messages say what to change. Methods are tried on a small OneRec with dropout, which is a
``transformers.PreTrainedModel``.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from feedgym.agents.check import _copy, _require, same_weights
from feedgym.agents.generation import GenerativeRecommender
from feedgym.agents.onerec import OneRec, OneRecSizes
from feedgym.data.batches import EventBatch, ScoredParts, ScoredSessions
from feedgym.plugins import checked_config
from feedgym.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig

LENGTH, SAMPLES = 4, 6
"""K, items per session that methods are given, and S, sessions per user."""


def check_method(
    kind: Any, histories: EventBatch, content_IE: Tensor | ArrayLike, profile_sizes: tuple[int, ...]
) -> None:
    """Let a method with its default configuration update a small model several times.

    Args:
        kind: the class.
        histories: U >= 3 users.
        content_IE: [I, E] content embeddings of the catalogue.
        profile_sizes: cardinalities of the profile fields.

    Raises:
        ValueError: it breaks a rule; the message names the rule and what to change.
    """
    name = kind.__name__
    assert len(histories) >= 3
    _require(callable(getattr(kind, "update", None)), f"{name} has no update(); see feedgym.protocols.AlignmentMethod.")
    method = kind(checked_config(kind))
    try:
        inspect.signature(method.update).bind(None, None, None, None, None, None)
    except TypeError as error:
        raise ValueError(
            f"{name}.update() cannot be called ({error}); let it take (model, histories, sampled, logged_UK, work, "
            "progress=None)."
        ) from error
    with torch.random.fork_rng(devices=[]):
        model, round_ = _round(histories, content_IE, profile_sizes)
        trained, again, unmoved = (copy.deepcopy(model) for _ in range(3))
        steps = _updated(kind, name, trained, round_)
        _check_change(name, model, trained, steps)
        _updated(kind, name, again, round_, told=False)
        _require(
            same_weights(trained, again),
            f"{name}.update() made other weights of the same round the second time; draw every random number from a "
            "generator seeded by the Config's seed, or from torch's global one, which experiments seed. The second "
            "time users came in parts(), which must not matter.",
        )
        _check_flat(kind, name, unmoved, round_)


class _Round(NamedTuple):
    """Arguments of a method besides the model."""

    histories: EventBatch
    sampled: ScoredSessions
    logged_UK: Tensor

    def in_parts(self, name: str) -> tuple[Any, ScoredParts, Tensor]:
        """The same as an experiment's rounds give it: histories and sessions are read some users at a time."""
        users = torch.arange(len(self.sampled)).split(2)
        sampled = ScoredParts([len(idx) for idx in users], lambda number: self.sampled.rows(users[number]))
        return _Unbuilt(self.histories, name), sampled, self.logged_UK


class _Unbuilt:
    """Histories that are built as they are asked for."""

    def __init__(self, batch: EventBatch, name: str) -> None:
        self._batch, self._name = batch, name
        self.length, self.lengths_N, self.profile_UF, self.rows = (
            batch.length, batch.lengths_N, batch.profile_UF, batch.rows,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._batch)

    def at(self, idx: Any) -> _Unbuilt:
        return _Unbuilt(self._batch.rows(idx), self._name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute in EventBatch.__dataclass_fields__ or attribute in ("to", "trimmed", "events"):
            raise ValueError(
                f"{self._name}.update() used histories.{attribute}, but a round's histories are built a batch at a "
                f"time; take them as histories.rows(idx)."
            )
        raise AttributeError(attribute)


def _round(
    histories: EventBatch, content_IE: Tensor | ArrayLike, profile_sizes: tuple[int, ...]
) -> tuple[OneRec, _Round]:
    """Make a model, its scored sessions, and the logged sessions of the same requests; one of these ends early."""
    torch.manual_seed(0)
    tokenizer = ResidualKMeans(ResidualKMeansConfig(num_codes=(16, 32))).fit(content_IE)
    sizes = OneRecSizes(d_model=16, num_heads=2, decoder_layers=1, d_ff=32, dropout=0.1)
    lengths = {"session_length": LENGTH, "history_length": histories.mask_UT.shape[1]}
    model = OneRec.build(sizes, tokenizer, **lengths, profile_sizes=profile_sizes).eval()
    generator = torch.Generator().manual_seed(0)
    sessions = GenerativeRecommender(model, tokenizer.trie(), LENGTH).sample(histories, SAMPLES, generator)
    assert sessions.logp_drawn_US is not None and sessions.logp_allowed_US is not None
    sampled = ScoredSessions(
        item_ids_USK=sessions.item_ids_USK,
        score_US=torch.randn(sessions.logp_US.shape, generator=generator),
        logp_US=sessions.logp_US,
        logp_allowed_US=sessions.logp_allowed_US,
        logp_drawn_US=sessions.logp_drawn_US,
    )
    logged_UK = torch.rand(len(histories), tokenizer.num_items, generator=generator).argsort(-1)[:, :LENGTH]
    logged_UK[0, 2:] = -1
    return model, _Round(histories, sampled, logged_UK)


def _updated(kind: Any, name: str, model: OneRec, given: _Round, told: bool = True) -> int:
    """Update a model, check everything except what it learned, and return the number of reported steps.

    Once it is not told the progress, and then given histories and sessions in parts.
    """
    kept = _copy(given.histories), _copy(given.sampled), given.logged_UK.clone()
    flags, progress = _flags(model), _Told(name)
    method = kind(checked_config(kind))
    with tempfile.TemporaryDirectory() as place:
        work, here = Path(place) / "work", Path(place) / "here"
        work.mkdir()
        here.mkdir()
        torch.manual_seed(0)
        with contextlib.chdir(here):
            metrics = method.update(model, *(given if told else given.in_parts(name)), work, progress if told else None)
        stray = sorted(path.name for folder in (here, work.parent) for path in folder.iterdir())
    _require(
        stray == ["here", "work"],
        f"{name}.update() left {', '.join({*stray} - {'here', 'work'})} outside of its folder; write only into work.",
    )
    now = _copy(given.histories), _copy(given.sampled), given.logged_UK
    for what, before, after in zip(("histories", "sampled", "logged_UK"), kept, now, strict=True):
        _require(_equal(before, after), f"{name}.update() changed the {what} it was given; work on copies.")
    _check_metrics(name, metrics)
    _require(
        _flags(model) == flags,
        f"{name}.update() left the model with other training flags, dropout rates or frozen parameters than before; "
        "end with model.eval() if that is how it came, and undo what you set.",
    )
    return progress.steps


class _Told:
    """The progress callback that a method is given; it checks its arguments."""

    def __init__(self, name: str) -> None:
        self.name, self.steps = name, 0

    def __call__(self, done: int, total: int, figures: dict[str, float]) -> None:
        _require(
            isinstance(done, int) and isinstance(total, int) and self.steps < done <= total,
            f"{self.name}.update() called progress({done!r}, {total!r}) after {self.steps} steps; call it after "
            "each step with the number of steps done, from 1, and the total.",
        )
        _require(
            isinstance(figures, dict),
            f"{self.name}.update() gave progress a {type(figures).__name__}; give the latest figures as a dictionary.",
        )
        self.steps = done


def _check_metrics(name: str, metrics: Any) -> None:
    _require(
        isinstance(metrics, dict) and all(isinstance(key, str) for key in metrics),
        f"{name}.update() returned {_described(metrics)}; return a dictionary of figures by name.",
    )
    for key, value in metrics.items():
        _require(
            isinstance(value, int | float) and math.isfinite(value),
            f"{name}.update() returned {key}={_described(value)}; return finite Python numbers (tensors have .item()).",
        )


def _check_change(name: str, model: nn.Module, trained: nn.Module, steps: int, flat: bool = False) -> None:
    """Check that the model learned and reported progress; if all scores are equal there may be nothing to learn."""
    before, after = model.state_dict(), trained.state_dict()
    _require(
        before.keys() == after.keys() and all(after[key].shape == value.shape for key, value in before.items()),
        f"{name}.update() gave the model other parameters; remove what you add to it.",
    )
    _require(
        all(bool(value.isfinite().all()) for value in after.values() if value.is_floating_point()),
        f"{name}.update() left weights that are not finite; look at logarithms of 0 and divisions by a spread of 0.",
    )
    if same_weights(model, trained):
        _require(
            flat,
            f"{name}.update() did not change the model it was given, though the scores differ; train it in place.",
        )
        return
    _require(steps > 0, f"{name}.update() never called progress; call it after each step if it is not None.")


def _check_flat(kind: Any, name: str, model: OneRec, given: _Round) -> None:
    """Try a reward that gives all sessions the same score."""
    before = copy.deepcopy(model)
    score_US = torch.zeros_like(given.sampled.score_US)
    flat = given._replace(sampled=replace(given.sampled, score_US=score_US))
    try:
        steps = _updated(kind, name, model, flat)
        _check_change(name, before, model, steps, flat=True)
    except Exception as error:
        raise ValueError(
            f"If all sessions of a user have the same score: {error} Skip such users, and leave the model as it is "
            "if no user is left."
        ) from error


def _flags(model: nn.Module) -> list[Any]:
    """Flags that a method may set for its own use and must restore."""
    modules = [(module.training, getattr(module, "p", None)) for module in model.modules()]
    return [modules, [parameter.requires_grad for parameter in model.parameters()]]


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    return all(torch.equal(value.nan_to_num(), after[key].nan_to_num()) for key, value in before.items())


def _described(value: Any) -> str:
    return repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
