"""Checks that a generative agent keeps the rules that pretraining, sampling and alignment rely on.

Messages say what to change.
"""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from feedgym.agents.check import _copy, _require, _same, padded, same_weights, scribbled
from feedgym.agents.session_model import history_columns
from feedgym.data.batches import EventBatch
from feedgym.plugins import checked_config
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.item_id import ItemId
from feedgym.tokenizers.own import FixedCodes
from feedgym.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from feedgym.tokenizers.vocabulary import Vocabulary

METHODS = (
    "build", "load", "save_pretrained", "session_tokens", "training_batch", "forward", "start", "step", "train",
    "modules",
)  # fmt: skip
FILES = (".json", ".safetensors", ".parquet", ".txt", ".md")
"""Files allowed in a saved model: those that hold data, and nothing that runs when it is read."""
LENGTH, ROWS = 4, 3
"""K, items per session that models are tried on, and S, sessions per user."""
TOLERANCE = 1e-3
"""Log-probabilities may differ by this much between two ways to compute them."""
NOISE = 0.1
"""Standard deviation of noise added to new weights: many models start so small that all answers look alike."""


def check_model(
    kind: Any, histories: EventBatch, content_IE: Tensor | ArrayLike, profile_sizes: tuple[int, ...]
) -> None:
    """Build a model with its default configuration, and compare several ways to use it that must agree.

    It gets residual k-means codes of two levels; if ``build`` refuses them, one code per item.

    Args:
        kind: the class.
        histories: U >= 3 users, T >= 2 events.
        content_IE: [I, E] content embeddings of the catalogue.
        profile_sizes: cardinalities of the profile fields.

    Raises:
        ValueError: it breaks a rule; the message names the rule and what to change.
    """
    name = kind.__name__
    assert len(histories) >= 3 and histories.mask_UT.shape[1] >= 2
    for method in METHODS:
        _require(
            callable(getattr(kind, method, None)), f"{name} has no {method}(); see feedgym.protocols.GenerativeAgent."
        )
    config = checked_config(kind)
    histories = EventBatch(**history_columns(padded(histories)))
    num_events = histories.mask_UT.shape[1]
    lengths = {"session_length": LENGTH, "history_length": num_events, "profile_sizes": profile_sizes}
    with torch.random.fork_rng(devices=[]):
        model, tokenizer = _built(kind, name, config, torch.as_tensor(content_IE), lengths)
        ids_USK = _sessions(len(histories), tokenizer.num_items)
        _check_tokens(model, name, tokenizer, ids_USK[:, 0])
        _check_loss(model, name, histories, ids_USK[:, 0])
        _vary(model)
        model.train(False)
        with torch.no_grad():
            logp_USN = _check_forward(model, name, histories, ids_USK)
            _check_padding(model, name, histories, ids_USK, logp_USN)
            _check_steps(model, name, histories, ids_USK, logp_USN)
            _check_select(model, name, histories, ids_USK)
            _check_files(model, name, tokenizer, histories, ids_USK, logp_USN)


def _built(kind: Any, name: str, config: Any, content_IE: Tensor, lengths: dict[str, Any]) -> tuple[Any, CodeTokenizer]:
    """A new model, and the tokenizer of its codes."""
    try:
        inspect.signature(kind.build).bind(config, None, **lengths)
    except TypeError as error:
        raise ValueError(
            f"{name}.build() cannot be called ({error}); let it be a classmethod build(config, tokenizer, *, "
            "session_length, history_length, profile_sizes)."
        ) from error
    refused = []
    for tokenizer in (ResidualKMeans(ResidualKMeansConfig(num_codes=(16, 32))), ItemId()):
        tokenizer.fit(content_IE)
        torch.manual_seed(0)
        try:
            model = kind.build(config, tokenizer, **lengths)
        except ValueError as error:
            refused.append(f"{type(tokenizer).__name__}: {error}")
            continue
        _check_built(kind, name, model)
        torch.manual_seed(0)
        again = kind.build(config, tokenizer, **lengths)
        _require(
            same_weights(model, again),
            f"{name}.build() made other weights under the same torch.manual_seed(); draw them only from torch's "
            "global generator.",
        )
        return model, tokenizer
    raise ValueError(f"{name}.build() refused every tokenizer: {'; '.join(refused)}.")


def _check_built(kind: Any, name: str, model: Any) -> None:
    _require(
        isinstance(model, nn.Module) and isinstance(model, kind),
        f"{name}.build() returned {type(model).__name__}; return a {name}, which is a torch.nn.Module.",
    )
    length = getattr(getattr(model, "config", None), "session_length", None)
    _require(
        length == LENGTH,
        f"{name}.config.session_length is {length!r} after build() with session_length={LENGTH}; keep it there: "
        "alignment methods read it.",
    )


def _sessions(num_users: int, num_items: int) -> Tensor:
    """Sessions [U, S, K] of different items."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_users, ROWS, num_items, generator=generator).argsort(-1)[..., :LENGTH]


def _check_tokens(model: Any, name: str, tokenizer: CodeTokenizer, ids_NK: Tensor) -> None:
    """Check sessions as tokens: complete ones, one that ends early, and one without items."""
    ids_NK = ids_NK.clone()
    ids_NK[0], ids_NK[1, 2:] = -1, -1
    kept = ids_NK.clone()
    tokens = model.session_tokens(ids_NK)
    wanted = Vocabulary(tokenizer.num_codes).session_tokens(tokenizer.encode(ids_NK))
    _require(torch.equal(ids_NK, kept), f"{name}.session_tokens() changed the items it was given; work on a copy.")
    _require(
        isinstance(tokens, Tensor) and tokens.dtype == torch.int64 and tokens.shape == wanted.shape,
        f"{name}.session_tokens() of items {tuple(ids_NK.shape)} gave {_described(tokens)}; return int64 "
        f"{tuple(wanted.shape)}: BOS and {tokenizer.num_levels} codes per item.",
    )
    _require(
        torch.equal(tokens, wanted),
        f"{name}.session_tokens() gave {tokens[1].tolist()} for a session that ends after two items, not "
        f"{wanted[1].tolist()}; use feedgym.tokenizers.vocabulary.Vocabulary(tokenizer.num_codes).session_tokens(codes)"
        ": BOS before every item, PAD where an item is -1.",
    )


def _check_loss(model: Any, name: str, histories: EventBatch, ids_NK: Tensor) -> None:
    """Check pretraining on a batch with a session that ends early and one without items."""
    ids_NK = ids_NK.clone()
    ids_NK[0], ids_NK[1, 2:] = -1, -1
    kept, kept_ids = _copy(histories), ids_NK.clone()
    model.train(True)
    batch = model.training_batch(histories, ids_NK)
    _require(
        isinstance(batch, dict) and all(isinstance(column, Tensor) for column in batch.values()),
        f"{name}.training_batch() gave no dictionary of tensors; return keyword arguments of forward().",
    )
    loss: Any = getattr(model(**batch), "loss", None)
    _require(
        isinstance(loss, Tensor) and loss.ndim == 0 and bool(loss.isfinite()),
        f"{name}.forward() of its training_batch() has the loss {_described(loss)}; return an output whose loss is one "
        "finite number. A session of only -1 adds nothing to it.",
    )
    _require(
        _same(kept, histories) and torch.equal(ids_NK, kept_ids),
        f"{name}.training_batch() or forward() changed the histories or sessions it was given; work on copies.",
    )
    if loss.requires_grad:
        loss.backward()
    learns = any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    _require(learns, f"{name}'s loss has no gradient on any parameter; do not detach anything on the way to it.")
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _vary(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator).to(parameter))


def _check_forward(model: Any, name: str, histories: EventBatch, ids_USK: Tensor) -> Tensor:
    """Check that teacher forcing is deterministic, user by user and in order of rows; return log-probabilities."""
    kept, first_U1K = _copy(histories), ids_USK[:, :1]
    single = _teacher_forced(model, name, histories, first_U1K)
    _require(
        torch.equal(single, _teacher_forced(model, name, histories, first_U1K)),
        f"{name}.forward() gave other logits the second time; after train(False) nothing may be random: make what is "
        "an nn.Dropout.",
    )
    order = torch.arange(len(histories)).flip(0)
    moved = _teacher_forced(model, name, histories.rows(order), first_U1K[order])[order]
    _require(
        _near(moved, single),
        f"{name}.forward() did not permute its logits with the users; let no user's logits depend on the others.",
    )
    alone = [
        _teacher_forced(model, name, histories.rows([u]), first_U1K[u : u + 1]) for u in range(min(3, len(histories)))
    ]
    _require(
        _near(torch.cat(alone), single[: len(alone)]),
        f"{name}.forward() gave users other logits alone and in a batch; let no user's logits depend on the others.",
    )
    logp_USN = _teacher_forced(model, name, histories, ids_USK)
    each = [_teacher_forced(model, name, histories, ids_USK[:, s : s + 1]) for s in range(ROWS)]
    _require(
        _near(torch.cat(each, dim=1), logp_USN),
        f"{name}.forward() gave other logits for {ROWS} sessions per user than for one; row r of input_ids continues "
        "history r mod U: repeat the encoded histories with .repeat(R // U, 1, ...), not repeat_interleave.",
    )
    _require(_same(kept, histories), f"{name}.forward() changed the histories it was given; work on copies.")
    return logp_USN


def _check_padding(model: Any, name: str, histories: EventBatch, ids_USK: Tensor, logp_USN: Tensor) -> None:
    for other, rule in (
        (scribbled(histories), "reads events where mask_UT is false"),
        (histories.events(slice(-1)), "depends on how far the histories are padded"),
    ):
        _require(
            _near(_teacher_forced(model, name, other, ids_USK), logp_USN),
            f"{name}.forward() {rule}; use only the events where it is true.",
        )


def _check_steps(model: Any, name: str, histories: EventBatch, ids_USK: Tensor, logp_USN: Tensor) -> None:
    """Check decoding code by code, with one session per user and then several."""
    kept = _copy(histories)
    single = _step_by_step(model, name, histories, ids_USK[:, :1])
    _require(
        _near(single, logp_USN[:, :1]),
        f"{name}.step() gave log-probabilities that differ from forward()'s by up to "
        f"{_gap(single, logp_USN[:, :1]):.3g}; the logits after a session's first tokens must not depend on how they "
        "were fed.",
    )
    several = _step_by_step(model, name, histories, ids_USK)
    _require(
        _near(several, logp_USN),
        f"{name}.step() agrees with forward() for one session per user but not for {ROWS}; let state.select(parent_US) "
        "make rows [U, S] of it, each a copy of the user's row parent_US[u, s], and mix no users' rows.",
    )
    _require(_same(kept, histories), f"{name}.start() or step() changed the histories it was given; work on copies.")


def _check_select(model: Any, name: str, histories: EventBatch, ids_USK: Tensor) -> None:
    """Within the second item, turn rows into copies of others (two of them of the same), and let them diverge."""
    generator = torch.Generator().manual_seed(1)
    parent_US = torch.randint(ROWS, ids_USK.shape[:2], generator=generator)
    parent_US[:, :2] = torch.arange(len(ids_USK))[:, None] % ROWS
    first_USK = ids_USK.gather(1, parent_US[..., None].expand(-1, -1, LENGTH))
    joined_USK = torch.cat([first_USK[..., :2], ids_USK[..., 2:]], dim=2)
    stepped = _step_by_step(model, name, histories, ids_USK, parent_US, joined_USK)
    wanted = _teacher_forced(model, name, histories, joined_USK)
    num_codes = wanted.shape[2] // LENGTH
    _require(
        _near(stepped[..., num_codes + 1 :], wanted[..., num_codes + 1 :]),
        f"{name}'s state does not follow select(parent_US); let row (u, s) become a copy of row (u, parent_US[u, s]) "
        "with everything it has read, and let step() continue from there.",
    )


def _check_files(
    model: Any, name: str, tokenizer: CodeTokenizer, histories: EventBatch, ids_USK: Tensor, logp_USN: Tensor
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model.save_pretrained(folder)
        files = [path for path in Path(place).rglob("*") if path.is_file()]
        _require(bool(files), f"{name}.save_pretrained() wrote nothing into the folder it was given.")
        wrong = sorted(path.name for path in files if path.suffix not in FILES)
        _require(
            not wrong,
            f"{name}.save_pretrained() wrote {', '.join(wrong)}; write only .safetensors and .json: pickles and code "
            "run when somebody else's folder is read.",
        )
        torch.manual_seed(1)
        loaded = type(model).load(folder, tokenizer)
        _require(
            isinstance(loaded, type(model)),
            f"{name}.load() returned {type(loaded).__name__}; return the model that was saved.",
        )
        loaded.train(False)
        _require(
            _near(_teacher_forced(loaded, name, histories, ids_USK), logp_USN),
            f"{name}.load() made a model with other logits than the saved one; save and load every weight and size.",
        )
        other = _other_codes(tokenizer)
        try:
            type(model).load(folder, other)
        except ValueError:
            return
        except Exception as error:
            raise ValueError(
                f"{name}.load() fails for another tokenizer with {type(error).__name__} ({error}); compare "
                "tokenizer.hash with the saved one's first, and raise ValueError."
            ) from error
        raise ValueError(
            f"{name}.load() accepted another tokenizer than the model was built with; save tokenizer.hash and raise "
            "ValueError if it differs."
        )


def _other_codes(tokenizer: CodeTokenizer) -> CodeTokenizer:
    """The same codes given to other items; if every item has a single unique code, the codes of fewer items."""
    codes_IL, num_codes = tokenizer.codes_IL.flip(0), tokenizer.num_codes
    if tokenizer.num_levels == 1:
        num_codes = (tokenizer.num_items - 1,)
        codes_IL = torch.arange(tokenizer.num_items - 1)[:, None]
    return FixedCodes(FixedCodes.Config()).freeze(codes_IL, num_codes)


def _teacher_forced(model: Any, name: str, histories: EventBatch, ids_USK: Tensor) -> Tensor:
    """Log-probabilities [U, S, K·L] of sessions' codes from one forward pass over all rows."""
    num_users, num_rows, _ = ids_USK.shape
    tokens_RM = model.session_tokens(ids_USK.transpose(0, 1).flatten(0, 1))
    kept = tokens_RM.clone()
    logits: Any = getattr(model(input_ids=tokens_RM, **history_columns(histories)), "logits", None)
    _require(torch.equal(kept, tokens_RM), f"{name}.forward() changed the tokens it was given; work on a copy.")
    _require(
        isinstance(logits, Tensor) and logits.ndim == 3 and logits.shape[:2] == tokens_RM.shape,
        f"{name}.forward() of tokens {tuple(tokens_RM.shape)} has the logits {_described(logits)}; return an output "
        "whose logits are [R, M, V].",
    )
    logp_RM = logits[:, :-1].float().log_softmax(-1).gather(2, tokens_RM[:, 1:, None]).squeeze(2)
    logp = logp_RM[tokens_RM[:, 1:] > Vocabulary.bos_id].view(num_rows, num_users, -1).transpose(0, 1)
    _require(
        bool(logp.isfinite().all()),
        f"{name}.forward() gave log-probabilities of codes that are not finite; look for masks that exclude everything "
        "for users without events.",
    )
    return logp


def _step_by_step(
    model: Any,
    name: str,
    histories: EventBatch,
    ids_USK: Tensor,
    parent_US: Tensor | None = None,
    then_USK: Tensor | None = None,
) -> Tensor:
    """Log-probabilities [U, S, K·L] of sessions' codes, fed in the same way as in sampling.

    BOS comes to one row per user, which is then copied; an item's last code comes with the BOS of the next item.

    Args:
        model: the model.
        name: name of its class.
        histories: U users.
        ids_USK: the sessions.
        parent_US: after the second item's first code, the rows become copies of these rows;
        then_USK: the sessions after that.
    """
    num_users, num_rows, _ = ids_USK.shape
    tokens_USM = model.session_tokens(ids_USK.flatten(0, 1)).unflatten(0, (num_users, num_rows))
    num_levels = tokens_USM.shape[2] // LENGTH - 1
    state = model.start(histories, tokens_USM.shape[2])
    _require(
        callable(getattr(state, "select", None)),
        f"{name}.start() returned {type(state).__name__}, which has no select(parent_US); return a state that has it.",
    )
    fed, logp = tokens_USM[:, :1, :1], []
    for n in range(LENGTH * num_levels):
        item, level = divmod(n, num_levels)
        at = item * (num_levels + 1) + 1 + level
        logits = model.step(fed, state)
        shape = (num_users, fed.shape[1])
        _require(
            isinstance(logits, Tensor)
            and logits.dtype == torch.float32
            and logits.ndim == 3
            and logits.shape[:2] == shape,
            f"{name}.step() of tokens {tuple(fed.shape)} gave {_described(logits)}; return float32 logits [U, S, V] "
            "after the last of them.",
        )
        if n == 0:
            state.select(torch.zeros(num_users, num_rows, dtype=torch.long))
            logits = logits.expand(-1, num_rows, -1)
        logp.append(logits.log_softmax(-1).gather(2, tokens_USM[:, :, at, None]))
        last = level == num_levels - 1
        if parent_US is not None and then_USK is not None and n == num_levels:
            state.select(parent_US)
            tokens_USM = model.session_tokens(then_USK.flatten(0, 1)).unflatten(0, (num_users, num_rows))
        fed = tokens_USM[:, :, at : at + 1 + last]
    return torch.cat(logp, dim=2)


def _near(logp: Tensor, other: Tensor) -> bool:
    return logp.shape == other.shape and _gap(logp, other) <= TOLERANCE


def _gap(logp: Tensor, other: Tensor) -> float:
    gap = (logp - other).abs().nan_to_num(nan=torch.inf)
    return float(gap.max())


def _described(value: Any) -> str:
    """A tensor's type and shape, a number's value, or another object's class."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{value.item():g}" if value.ndim == 0 else f"{value.dtype} {tuple(value.shape)}"
