"""Protocols of the parts you can replace: user simulators, models, agents, rewards, tokenizers and alignment methods.

Each is given by name, by import path (``"my_lab.users:Teen"``) or as an object (:mod:`feedgym.plugins`). ``feedgym
check PATH`` runs the conformance checks of the protocol a class follows. Axis letters: see :mod:`feedgym.data.events`.

Randomness is an argument everywhere. A simulator's random numbers are keyed by user: they may depend on the user's
seed, the visit and the position, and on nothing else. So responses depend neither on the batch nor on the other users.
Two recommenders can serve the same users with the same random numbers (``feedgym.envs.luck`` makes this easy).
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch, Histories, ScoredParts, ScoredSessions, SessionBatch
from feedgym.data.events import BoolArray, Catalog, FloatArray, IntArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class UserState(Protocol):
    """State of U users: a dataclass whose fields are arrays with leading axis U, with at least these attributes.

    The rule of randomness: events are a function of the user's seed, the visit and the position
    (``feedgym.envs.luck.stream``). Differences between users are columns of the state, drawn once in ``reset``
    (``feedgym.envs.luck.traits``). Judges replace only ``seed_U`` to draw new random numbers for the same person. So a
    trait taken from the seed inside ``respond`` would turn them into another one. Columns of floats must be finite.

    Attributes:
        seed_U: uint64, the user's own seed.
        visit_U: int64, number of visits so far.
        time_s_U: float64, the user's clock: start of the next visit, seconds.
        profile_UF: int64, profile fields that a recommender may know.
    """

    seed_U: NDArray[np.uint64]
    visit_U: NDArray[np.int64]
    time_s_U: NDArray[np.float64]
    profile_UF: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """Responses of U users to one session of K items each.

    Attributes:
        behaviours_UKB: uint8, 0 or 1, in the order of ``BEHAVIOURS``; 0 where not examined.
        watch_s_UK: float32 seconds watched; 0 where not examined.
        examined_UK: bool, true if the user reached the item; a prefix of the session.
        elapsed_s_U: float32 seconds from the login to the logout.
        left_U: bool, true if the user left before the end of the session.
        return_gap_s_U: float32 seconds from the logout to the next visit.
        churned_U: bool, true if the user never comes back.
    """

    behaviours_UKB: NDArray[np.uint8]
    watch_s_UK: FloatArray
    examined_UK: BoolArray
    elapsed_s_U: FloatArray
    left_U: BoolArray
    return_gap_s_U: FloatArray
    churned_U: BoolArray


@runtime_checkable
class UserSimulator(Protocol):
    """A batched simulator of users.

    ``reset`` makes one user per seed. ``respond`` takes one session per user and returns the responses and the state at
    the beginning of the next visit, without changing its inputs. Neither may loop over users in Python.
    ``profile_names`` and ``profile_sizes`` name the F profile fields and their cardinalities.
    """

    catalog: Catalog
    profile_names: tuple[str, ...]
    profile_sizes: tuple[int, ...]

    def reset(self, seeds_U: NDArray[np.uint64]) -> Any:
        """A fresh :class:`UserState`; row u depends only on ``seeds_U[u]``."""
        ...

    def respond(self, state: Any, slates_UK: IntArray) -> tuple[Response, Any]:
        """The users' responses to one session of item ids each, and their state at the next visit."""
        ...


@runtime_checkable
class Recommender(Protocol):
    """An agent that serves sessions of ``session_length`` different items, given histories."""

    session_length: int

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sampled sessions per user, with log-probabilities if the agent has them."""
        ...

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The session that it would serve to each user (S = 1), deterministic."""
        ...


@runtime_checkable
class SessionReward(Protocol):
    """Scores sessions given histories. It sees item ids and histories, never a simulator's internals."""

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """float32 scores [U, S], higher is better."""
        ...


@runtime_checkable
class ItemTokenizer(Protocol):
    """Turns items into tuples of L codes and back."""

    def fit(self, content_IE: Tensor) -> Self:
        """Learn the codes of I items from their content embeddings [I, E]."""
        ...

    def encode(self, item_ids: Tensor) -> Tensor:
        """Codes [..., L] of item ids [...]."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Item ids [...] of codes [..., L]; -1 if no item has them."""
        ...


class GenerativeAgent(Protocol):
    """A model that writes sessions token by token, which can be pretrained, sampled, scored and aligned.

    A ``torch.nn.Module`` whose tokens are those of :class:`feedgym.tokenizers.vocabulary.Vocabulary` over the codes of
    a tokenizer. A session is [BOS, s1^1..s1^L, BOS, s2^1, ...], padded with PAD. Methods that use TRL need a
    ``transformers.PreTrainedModel``. ``feedgym check PATH`` tests all of it; subclasses of
    :class:`feedgym.agents.session_model.SessionModel` have most of it.
    """

    Config: type
    """A frozen dataclass: the options of the command line."""
    config: Any
    """Has at least ``session_length``, the most items of a session."""
    training: bool

    @classmethod
    def build(
        cls, config: Any, tokenizer: Any, *, session_length: int, history_length: int, profile_sizes: tuple[int, ...]
    ) -> Self:
        """Make a new model, with weights from torch's global generator.

        Args:
            config: an instance of ``Config``.
            tokenizer: a fitted :class:`feedgym.tokenizers.codes.CodeTokenizer`.
            session_length: K, most items of a session.
            history_length: T, most events of a history.
            profile_sizes: cardinalities of the F profile fields.
        """
        ...

    @classmethod
    def load(cls, folder: Path, tokenizer: Any) -> Self:
        """Load a model that :meth:`save_pretrained` wrote; ValueError if it belongs to another tokenizer."""
        ...

    def save_pretrained(self, folder: Any) -> Any:
        """Write the model to a folder, without pickles."""
        ...

    def session_tokens(self, item_ids_NK: Tensor) -> Tensor:
        """Tokens [N, M] of sessions of item ids, BOS before every item; PAD where an item is -1."""
        ...

    def training_batch(self, histories: EventBatch, item_ids_NK: Tensor) -> dict[str, Tensor]:
        """Keyword arguments with which ``forward`` returns a ``loss``: next-token prediction of the sessions."""
        ...

    def forward(self, **batch: Any) -> Any:
        """Teacher forcing: an output with ``logits`` and, given ``labels``, ``loss``.

        ``forward(input_ids, attention_mask, labels, use_cache, **history)`` takes R sessions and the columns of an
        EventBatch of U histories; row r continues history r mod U. If the logits [R, M, V] come from an output matrix,
        it must be called ``lm_head``, above a backbone ``model`` that gives the ``last_hidden_state``.
        """
        ...

    def start(self, histories: EventBatch, max_tokens: int) -> Any:
        """Start decoding: a state with the histories, one row per user, and room for ``max_tokens`` positions.

        The state has a method ``select(parent_US)``: row (u, s) becomes a copy of row (u, parent_US[u, s]).
        """
        ...

    def step(self, tokens_USM: Tensor, state: Any) -> Tensor:
        """Feed M more tokens per row; returns float32 logits [U, S, V] after the last of them."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As in ``nn.Module``."""
        ...

    def modules(self) -> Any:
        """As in ``nn.Module``."""
        ...


class AlignmentMethod(Protocol):
    """A method that trains a model on scored sessions; made from an instance of its frozen dataclass ``Config``."""

    Config: type

    def update(
        self,
        model: Any,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Callable[[int, int, dict[str, float]], None] | None = None,
        reference: Any = None,
    ) -> dict[str, float]:
        """Train a model in place for one round. Experiments seed torch's global generator before.

        Args:
            model: a :class:`GenerativeAgent`; before training it is the snapshot that the sessions were drawn from,
                unless the experiment draws all of them from the base.
            histories: histories of U users, built as their ``rows(idx)`` are asked for.
            sampled: S sessions per user from this model, with scores and log-probabilities. ``parts()`` reads them some
                users at a time; its columns, as ``score_US``, are those of all users.
            logged_UK: int64 items of the logged session of the same request, -1 after the last one.
            work: the round's own folder, where a killed round finds its files again.
            progress: called after each step with the number of steps done and in all, and the latest figures.
            reference: the model to stay near; ``model`` before training, if left out. A method without a reference has
                no such parameter, and experiments then refuse the choice of one.

        Returns:
            Figures of the round.
        """
        ...


StateT = TypeVar("StateT")


def take_users(state: StateT, idx: NDArray) -> StateT:
    """The state of the users at ``idx`` (index or boolean array), copied."""
    assert is_dataclass(state) and not isinstance(state, type)
    return replace(state, **{f.name: getattr(state, f.name)[idx] for f in fields(state)})  # type: ignore[return-value]


def put_users(state: StateT, idx: NDArray, rows: StateT) -> StateT:
    """``state`` with the users at ``idx`` replaced by ``rows``; the input stays unchanged."""
    assert is_dataclass(state) and not isinstance(state, type)
    columns = {}
    for f in fields(state):
        column = getattr(state, f.name).copy()
        column[idx] = getattr(rows, f.name)
        columns[f.name] = column
    return replace(state, **columns)  # type: ignore[return-value]


def cat_users(states: list[StateT]) -> StateT:
    """Joins the states of several groups of users."""
    if len(states) == 1:
        return states[0]
    assert is_dataclass(states[0]) and not isinstance(states[0], type)
    columns = {f.name: np.concatenate([getattr(state, f.name) for state in states]) for f in fields(states[0])}
    return replace(states[0], **columns)  # type: ignore[return-value]


def checked_slates(slates_UK: IntArray, num_users: int, num_items: int) -> IntArray:
    """Checks slates for ``num_users`` users and ``num_items`` items, and returns them; for ``respond`` methods.

    Raises:
        ValueError: they have another shape, are not integers, or hold an unknown item.
    """
    slates_UK = np.asarray(slates_UK)
    if slates_UK.ndim != 2 or len(slates_UK) != num_users or slates_UK.shape[1] == 0:
        raise ValueError(f"Slates of shape {slates_UK.shape} do not fit {num_users} users; give [{num_users}, K >= 1].")
    if not np.issubdtype(slates_UK.dtype, np.integer):
        raise ValueError(f"Slates of dtype {slates_UK.dtype} are not item ids; give integers.")
    low, high = slates_UK.min(initial=0), slates_UK.max(initial=0)
    if low < 0 or high >= num_items:
        wrong = low if low < 0 else high
        raise ValueError(f"Item id {wrong} is outside 0..{num_items - 1}; serve only ids of the catalogue.")
    return slates_UK


def too_few(session_length: int, existing: int) -> ValueError:
    """The error for a time at which there are not enough items for a session."""
    return ValueError(
        f"A session of {session_length} different items was requested when only {existing} exist; give more items, or "
        "a longer lifetime_days."
    )


def is_reward(target: Any) -> bool:
    """True if a function is itself a reward (it takes histories and sessions), not one that makes a reward."""
    return inspect.isfunction(target) and list(inspect.signature(target).parameters)[:2] == ["histories", "sessions"]


def make(target: Any, **given: Any) -> Any:
    """Calls a class or function with the parameters it names; returns any other object as it is.

    Args:
        target: the class, function or object.
        **given: available arguments; the class or function gets those that it names as parameters.

    Raises:
        ValueError: a parameter has no default and is not given.
    """
    if not (inspect.isclass(target) or inspect.isfunction(target)):
        return target
    names = inspect.signature(target).parameters
    try:
        return target(**{name: value for name, value in given.items() if name in names})
    except TypeError as error:
        raise ValueError(
            f"Cannot make {target.__name__} ({error}); give its parameters defaults, or name a function that makes one."
        ) from error


def load(path: str) -> Any:
    """Load the object of an import path.

    Args:
        path: ``"package.module:Name"``; for packages other than feedgym, the current folder is searched too.

    Raises:
        ValueError: the path has no colon, or the module or the name in it cannot be found.
    """
    module_name, _, name = path.partition(":")
    if not name:
        raise ValueError(f"{path!r} is not an import path; write it as 'package.module:Name'.")
    if module_name.partition(".")[0] != "feedgym" and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"Cannot import {module_name!r} from {path!r}: {error}; is its package installed?") from error
    if not hasattr(module, name):
        raise ValueError(f"Module {module_name!r} has no {name!r}; check the part of {path!r} after the colon.")
    return getattr(module, name)
