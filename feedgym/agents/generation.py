"""Samples and searches whole sessions, for every agent that writes items as codes.

The history is encoded once per user. The user's S rows share its keys and values, and cache their own for what they
decoded. A trie restricts every choice to codes that lead to an item that is not in the session nor, with
``block_seen``, in the history. If trie (:meth:`feedgym.tokenizers.trie.Trie.dated`) and histories are dated, the item
must also exist at the user's request. Temperature, top-k and top-p affect only the choice. Log-probabilities are sums
of the UNMASKED log-softmax over the joint vocabulary in float32, so they equal those of teacher forcing.

With ``candidates``, all of a user's sessions are written among the same few items (:mod:`feedgym.agents.candidates`).
The candidates are the whole vocabulary then: all log-probabilities are those of the log-softmax over them, not of
teacher forcing. Temperature, top-k and top-p affect the choice among them.

BOS before an item is forced, so it is decoded together with the last code of the item before. So a session takes K·L
steps, not K·(L + 1). Python loops only over items and levels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from feedgym.agents.candidates import Options, Shortlist, check_candidates, retrieved
from feedgym.agents.requests import request_noise, seen_by
from feedgym.data.batches import DatedEventBatch, EventBatch, SessionBatch
from feedgym.data.events import Catalog
from feedgym.protocols import GenerativeAgent, too_few
from feedgym.ranges import Count, CountOrZero, Positive, Ranged, SomeShare
from feedgym.tokenizers.trie import Trie
from feedgym.tokenizers.vocabulary import Vocabulary

ROWS_PER_BLOCK = 2048
"""Rows decoded at a time: enough to fill the matrix products, few enough to stay in a CPU's cache."""
SHARED = 0.8
"""Beginnings of sessions are shared while there are at most this many per session."""
SUPPLY_CELLS = 2**22
"""Users times nodes of the trie held at a time, if items come and go."""
CANDIDATE_CELLS = 2**17
"""Users times candidates held at a time; every candidate has a vector."""
USERS_WITH_CANDIDATES = 128
"""Users whose candidates are retrieved at a time, at most."""


class DecodingState(Protocol):
    """An agent's memory of the users and of the rows decoded so far."""

    def select(self, parent_US: Tensor) -> None:
        """Let row (u, s) become a copy of row (u, parent_US[u, s]); the number of samples may change."""
        ...


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Ranged):
    """Options for drawing codes; the defaults draw from the model itself, restricted to the catalogue."""

    temperature: Positive = 1.0
    """Divides the logits; below 1 the distribution is sharper."""
    top_k: CountOrZero = 0
    """Draw only from the k likeliest codes; 0 means all."""
    top_p: SomeShare = 1.0
    """Draw from the fewest codes whose probabilities reach p."""
    block_seen: bool = True
    """Leave out items of the history, and of a longer memory if there is one, in sampling and in beam search. If the
    catalogue does not have enough others, only the newest of them are left out."""
    candidates: CountOrZero = 0
    """Write all sessions of a request among so many candidates: the items that are the likeliest first ones. 0 means
    all items. This is for HSTU over very many items, in sampling and in beam search. The probabilities of a session are
    then those given that each of its items is a candidate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.candidates <= self.top_k:
            raise ValueError(
                f"top_k={self.top_k} does nothing among candidates={self.candidates}; lower it, or leave it 0."
            )

    def weights(self, logp: Tensor) -> Tensor:
        """Probabilities [..., C] to choose by, given log-probabilities that are -inf at forbidden codes."""
        if 0 < self.top_k < logp.shape[-1]:
            logp = logp.masked_fill(logp < logp.topk(self.top_k, dim=-1).values[..., -1:], -torch.inf)
        weights = (logp if self.temperature == 1 else logp / self.temperature).softmax(-1)
        if self.top_p == 1:
            return weights
        ranked, order = weights.sort(dim=-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= self.top_p, 0.0)
        return torch.zeros_like(weights).scatter_(-1, order, ranked)


@dataclass(frozen=True, kw_only=True)
class SeveralSamplings(SamplingConfig):
    """Several ways of drawing at once: the first ``each`` of a user's rows by the first way, and so on.

    So an agent at several temperatures reads the history once. The inherited temperature and filters are not used.
    """

    ways: tuple[SamplingConfig, ...] = ()
    """Ways of drawing, which all block the same items and have the same number of candidates as this object."""
    each: Count = 1
    """Rows per way."""

    def weights(self, logp: Tensor) -> Tensor:
        """Probabilities [U, S, C] to choose by; a single row per user gives those of all S."""
        logp_USC = logp.expand(-1, len(self.ways) * self.each, -1)
        parts = zip(self.ways, logp_USC.split(self.each, dim=1), strict=True)
        return torch.cat([way.weights(part_USC) for way, part_USC in parts], dim=1)


Choice = tuple[Tensor | None, Tensor, Tensor | None]
"""Parents [U, S] of the new rows, places [U, S] of the chosen options, and log-probabilities [U, S] of the draws.
Parents are None if no row moves. A place is -1 for a beam without a session. The log-probabilities are None if nothing
was drawn."""

Choose = Callable[[int, Tensor, Tensor, Options], Choice]
"""Chooses codes, given the step, the log-probabilities [U, S, W] of each row's options (-inf if forbidden), and two
more. These are the log-probabilities of the sessions so far [U, S], and the options themselves."""

Candidates = int | Tensor
"""The number of candidates that each user's sessions are written among, 0 for all items. Or the candidates themselves,
int64 [U, C] items that exist and are not blocked, -1 where a user has fewer."""


@torch.no_grad()
def sample_sessions(
    model: GenerativeAgent,
    trie: Trie,
    histories: EventBatch,
    n: int,
    session_length: int,
    generator: torch.Generator,
    sampling: SamplingConfig = SamplingConfig(),
    candidates: Candidates | None = None,
) -> SessionBatch:
    """``n`` sessions per user, drawn code by code.

    A user's sessions depend on the generator's state and on the user's row in the batch, not on the other users.

    Args:
        model: the agent.
        trie: the catalogue's codes, on the histories' device.
        histories: U users.
        n: S, sessions per user; they may be equal.
        session_length: K.
        generator: the only source of randomness.
        sampling: temperature, top-k, top-p, candidates.
        candidates: those of each user; retrieved as ``sampling`` says if left out.
    """
    steps = session_length * trie.num_levels
    noise_USN = torch.rand(len(histories), n, steps, generator=generator, device=generator.device)
    return draw_sessions(model, trie, histories, noise_USN, sampling, candidates)


@torch.no_grad()
def draw_sessions(
    model: GenerativeAgent,
    trie: Trie,
    histories: EventBatch,
    noise_USN: Tensor,
    sampling: SamplingConfig,
    candidates: Candidates | None = None,
) -> SessionBatch:
    """Sessions drawn from given random numbers: uniform in [0, 1), one for each of the K·L codes of each session."""
    among = sampling.candidates if candidates is None else candidates
    n, session_length = noise_USN.shape[1], noise_USN.shape[2] // trie.num_levels

    def chooser(rows: slice) -> Choose:
        noise_NUS = noise_USN[rows].permute(2, 0, 1).contiguous().to(histories.item_ids_UT.device)

        def choose(step: int, legal_USW: Tensor, logp_US: Tensor, options: Options) -> Choice:
            num_users, num_rows, _ = legal_USW.shape
            # By the inverse of the cumulated weights instead of torch.multinomial. So the draw depends only on the
            # given random numbers, and on no other row of the batch.
            weights_USW = sampling.weights(legal_USW)
            cdf = weights_USW.cumsum(-1)
            total = cdf[..., -1:]
            draws = noise_NUS[step].view(num_users, weights_USW.shape[1], -1) * total
            # Rounding may reach the total, after which there is no code.
            draws = torch.minimum(draws, torch.nextafter(total, torch.zeros_like(total)))
            place_US = torch.searchsorted(cdf, draws, right=True).view(num_users, n)
            chosen_US = weights_USW.expand(-1, n, -1).gather(2, place_US[..., None]).squeeze(2)
            return (None if num_rows == n else torch.zeros_like(place_US)), place_US, chosen_US.log()

        return choose

    return _generate(model, trie, histories, n, session_length, sampling.block_seen, chooser, among)


@torch.no_grad()
def beam_sessions(
    model: GenerativeAgent,
    trie: Trie,
    histories: EventBatch,
    num_beams: int,
    session_length: int,
    block_seen: bool = True,
    candidates: Candidates = 0,
) -> SessionBatch:
    """The sessions of a beam search, best first; fewer than ``num_beams`` if some user's catalogue has no more."""

    def choose(step: int, legal_USW: Tensor, logp_US: Tensor, options: Options) -> Choice:
        num_places = legal_USW.shape[-1]
        scores = (logp_US[..., None] + legal_USW).flatten(1)
        # The width must not depend on the other users: users with fewer prefixes get rows of probability 0.
        score_US, best_US = scores.topk(min(num_beams, scores.shape[1]), dim=-1)
        return best_US // num_places, torch.where(score_US > -torch.inf, best_US % num_places, -1), None

    sessions = _generate(model, trie, histories, num_beams, session_length, block_seen, lambda rows: choose, candidates)
    return _first(sessions, int((sessions.logp_US > -torch.inf).sum(1).min()))


@torch.no_grad()
def score_sessions(
    model: GenerativeAgent,
    trie: Trie,
    histories: EventBatch,
    item_ids_USK: Tensor,
    block_seen: bool = True,
    candidates: Candidates = 0,
) -> SessionBatch:
    """Adds to given sessions the log-probabilities they would have if ``model`` had sampled them.

    Args:
        model: the agent.
        trie: the catalogue's codes, on the histories' device.
        histories: U users.
        item_ids_USK: int64, S sessions for each of them. A session that cannot be drawn (with an item twice, a blocked
            or an absent one) gets a ``logp_allowed_US`` of +inf. So ``logp_US - logp_allowed_US`` is -inf. With an item
            that is no candidate, ``logp_US`` itself is -inf.
        block_seen: treat items of the history as forbidden.
        candidates: those that the sessions would have been drawn among.
    """
    nodes_USN = trie.path_IL[item_ids_USK, 1:].flatten(2)

    def chooser(rows: slice) -> Choose:
        def choose(step: int, legal_USW: Tensor, logp_US: Tensor, options: Options) -> Choice:
            place_US = options.places(nodes_USN[rows, :, step])
            return (None if step else torch.zeros_like(place_US)), place_US, None

        return choose

    num_samples, session_length = item_ids_USK.shape[1:]
    scored = _generate(model, trie, histories, num_samples, session_length, block_seen, chooser, candidates)
    # The decoder follows given codes whether they are allowed or not. So sessions that sampling cannot reach are
    # detected from the items: twice in a session, blocked, or absent at the request.
    blocked_UJ = _blocked(trie, histories, session_length, block_seen)
    barred_USK = (item_ids_USK[..., None] == item_ids_USK[..., None, :]).triu(1).any(3)
    barred_USK |= (item_ids_USK[..., None] == blocked_UJ[:, None, None]).any(3)
    if (time_s_U := _request_times(trie, histories)) is not None:
        barred_USK |= ~trie.exists(time_s_U[:, None, None], item_ids_USK)
    assert scored.logp_allowed_US is not None
    return replace(scored, logp_allowed_US=scored.logp_allowed_US.masked_fill(barred_USK.any(2), torch.inf))


@torch.no_grad()
def item_log_probs(
    model: GenerativeAgent,
    trie: Trie,
    histories: EventBatch,
    item_ids_USK: Tensor,
    sampling: SamplingConfig = SamplingConfig(),
) -> Tensor:
    """Log-probability of each item of given sessions, given those above it, had they been drawn with ``sampling``.

    Args:
        model: the agent.
        trie: the catalogue's codes, on the histories' device.
        histories: U users.
        item_ids_USK: int64, S sessions for each of them.
        sampling: how the agent draws.

    Returns:
        float32 [U, S, K], -inf where the item cannot be drawn there, and at all places below such a one.
    """
    nodes_USN = trie.path_IL[item_ids_USK, 1:].flatten(2)
    num_samples, session_length = item_ids_USK.shape[1:]
    blocks: list[list[Tensor]] = []

    def chooser(rows: slice) -> Choose:
        logp_NUS: list[Tensor] = []
        blocks.append(logp_NUS)

        def choose(step: int, legal_USW: Tensor, logp_US: Tensor, options: Options) -> Choice:
            place_US = options.places(nodes_USN[rows, :, step])
            chance_USW = sampling.weights(legal_USW).expand(-1, num_samples, -1)
            logp_NUS.append(chance_USW.gather(2, place_US[..., None]).squeeze(2).log())
            return (None if step else torch.zeros_like(place_US)), place_US, None

        return choose

    _generate(model, trie, histories, num_samples, session_length, sampling.block_seen, chooser, sampling.candidates)
    logp_USN = torch.cat([torch.stack(steps, dim=2) for steps in blocks])
    logp_USK = logp_USN.unflatten(2, (session_length, trie.num_levels)).sum(3)
    # If no code is allowed at all, the probabilities are 0 / 0: after an item that cannot be drawn.
    impossible_USK = (~logp_USK.isfinite()).cumsum(2) > 0
    return logp_USK.masked_fill(impossible_USK, -torch.inf)


@torch.no_grad()
def candidate_items(
    model: Any, trie: Trie, histories: EventBatch, num: int, session_length: int, block_seen: bool = True
) -> Tensor:
    """The candidates that a model retrieves for each user, int64 [U, C] items, the likeliest first; -1 after the last.

    Args:
        model: the agent.
        trie: the catalogue's codes, on the histories' device.
        histories: U users.
        num: C, or all items if there are fewer.
        session_length: K; so many items stay, even if all have been seen.
        block_seen: leave out items of the history.
    """
    check_candidates(model, trie, num, session_length)
    blocked_UJ, blocks = _blocked(trie, histories, session_length, block_seen), []
    with _evaluating(model):
        for low in range(0, len(histories), USERS_WITH_CANDIDATES):
            rows = slice(low, low + USERS_WITH_CANDIDATES)
            part = histories.rows(rows)
            bos_U11 = torch.full((len(part), 1, 1), Vocabulary.bos_id, device=part.item_ids_UT.device)
            query_UD = model.query(bos_U11, model.start(part, 2 * session_length))[:, 0]
            blocks.append(retrieved(model, trie, query_UD, num, blocked_UJ[rows], _request_times(trie, part)))
    return torch.cat(blocks)


def _first(sessions: SessionBatch, num: int) -> SessionBatch:
    """The first ``num`` sessions of each user."""
    columns: dict[str, Any] = {name: None if v is None else v[:, :num] for name, v in vars(sessions).items()}
    return SessionBatch(**columns)


def _generate(
    model: GenerativeAgent,
    trie: Trie,
    histories: EventBatch,
    rows_per_user: int,
    session_length: int,
    block_seen: bool,
    chooser: Callable[[slice], Choose],
    candidates: Candidates,
) -> SessionBatch:
    """Decode users in blocks, so that memory stays bounded, without dropout."""
    num = candidates.shape[1] if isinstance(candidates, Tensor) else min(candidates, trie.num_items)
    if num:
        check_candidates(model, trie, num, session_length)
    if session_length > trie.num_items:
        raise ValueError(
            f"session_length={session_length} exceeds the {trie.num_items} items of the catalogue, but a session "
            "holds no item twice; ask for shorter sessions."
        )
    users_per_block = max(1, ROWS_PER_BLOCK // rows_per_user)
    if (time_s_U := _request_times(trie, histories)) is not None:
        if (existing := int(trie.num_existing(time_s_U).min())) < session_length:
            raise too_few(session_length, existing)
        if num == 0:
            users_per_block = max(1, min(users_per_block, SUPPLY_CELLS // len(trie.num_items_X)))
    if num:
        users_per_block = max(1, min(users_per_block, USERS_WITH_CANDIDATES, CANDIDATE_CELLS // num))
    blocked_UJ = _blocked(trie, histories, session_length, block_seen)
    with _evaluating(model):
        blocks = [slice(u, u + users_per_block) for u in range(0, len(histories), users_per_block)]
        among = [candidates[b] if isinstance(candidates, Tensor) else candidates for b in blocks]
        return SessionBatch.cat(
            [
                _block(model, trie, histories.rows(b), blocked_UJ[b], session_length, chooser(b), some)
                for b, some in zip(blocks, among, strict=True)
            ]
        )


@contextmanager
def _evaluating(model: GenerativeAgent) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)


def _blocked(trie: Trie, histories: EventBatch, session_length: int, block_seen: bool) -> Tensor:
    """Existing items [U, J] of the histories that must not be generated; enough others remain for a session."""
    if not block_seen:
        return seen_items(histories, 0)
    if (time_s_U := _request_times(trie, histories)) is None:
        return seen_items(histories, trie.num_items - session_length)
    items_UX, known_UX = seen_by(histories)
    exists_UX = trie.exists(time_s_U[:, None], items_UX.masked_fill(~known_UX, -1))
    return _newest(items_UX, exists_UX, trie.num_existing(time_s_U) - session_length)


def _request_times(trie: Trie, histories: EventBatch) -> Tensor | None:
    """Time of each request, float64 [U]; None if all items can be served, or if times are unknown."""
    return histories.time_s_U if trie.upload_s_I is not None and isinstance(histories, DatedEventBatch) else None


def seen_items(histories: EventBatch, limit: int | Tensor) -> Tensor:
    """The last ``limit`` different items that users are known to have seen, int64 [U, J], some repeated; -1 elsewhere.

    Args:
        histories: of U users.
        limit: one number for all, or [U].
    """
    return _newest(*seen_by(histories), limit)


def _newest(items_UX: Tensor, known_UX: Tensor, limit: int | Tensor) -> Tensor:
    """The ``limit`` newest different items among the known ones, oldest first; -1 elsewhere."""
    limit_U1 = torch.as_tensor(limit, device=items_UX.device).view(-1, 1)
    if (limit_U1 < 1).all():
        return items_UX.new_empty(len(items_UX), 0)
    # Blocking the newest first leaves enough for a session if a user has seen nearly the whole catalogue.
    seen_UX = items_UX.masked_fill(~known_UX, -1)
    if (limit_U1 >= seen_UX.shape[1]).all():
        return seen_UX
    again_UX = (seen_UX[:, :, None] == seen_UX[:, None]).triu(1).any(2)  # the item comes again later
    nth_newest_UX = (known_UX & ~again_UX).flip(1).cumsum(1).flip(1)
    return seen_UX.masked_fill(nth_newest_UX > limit_U1, -1)


def _block(
    model: Any,
    trie: Trie,
    histories: EventBatch,
    blocked_UJ: Tensor,
    session_length: int,
    choose: Choose,
    candidates: Candidates,
) -> SessionBatch:
    """Sessions of a few users; ``choose`` draws or selects the codes at each of the K·L steps."""
    vocabulary, num_levels = Vocabulary(trie.num_codes), trie.num_levels
    time_s_U, shortlist, supply_UX = _request_times(trie, histories), None, None
    state = model.start(histories, session_length * (num_levels + 1))
    rows = _UnfinishedSessions.start(len(histories), histories.item_ids_UT.device)
    tokens_USM = torch.full_like(rows.nodes_US, vocabulary.bos_id)[..., None]
    if isinstance(candidates, Tensor) or candidates:
        if isinstance(candidates, int):
            query_UD = model.query(tokens_USM, state)[:, 0]
            candidates = retrieved(model, trie, query_UD, candidates, blocked_UJ, time_s_U)
        shortlist = Shortlist.of(model, trie, candidates)
    elif time_s_U is not None:
        supply_UX = trie.supply(time_s_U)
    prefixes = _Prefixes(rows.nodes_US)
    for step in range(session_length * num_levels):
        level = step % num_levels
        feed = model.step if shortlist is None else model.query
        output_US = prefixes.of_sessions(feed(prefixes.of_rows(tokens_USM), state))
        if shortlist is None:
            options = _options(trie, output_US, rows, level, supply_UX, blocked_UJ)
        else:
            options = shortlist.options(output_US, rows.items_USK)
        legal_US = _only(options.logp_USW, options.exists_USW).logsumexp(-1)
        free_USW = _only(options.logp_USW, options.free_USW)
        allowed_US = legal_US if options.free_USW is options.exists_USW else free_USW.logsumexp(-1)
        parent_US, place_US, drawn_US = choose(step, free_USW, rows.logp_US, options)
        # All rows of a user start equal and diverge at the first choice; a beam search reorders them at every step.
        row_US = torch.arange(legal_US.shape[1], device=legal_US.device) if parent_US is None else parent_US
        logp_US = options.logp_USW.flatten(1)
        logp_US = logp_US.gather(1, row_US * options.logp_USW.shape[2] + place_US.clamp_min(0))
        nodes_US = options.nodes(place_US, parent_US)
        if parent_US is not None:
            rows = rows.select(parent_US)
            legal_US, allowed_US = (v.gather(1, parent_US) for v in (legal_US, allowed_US))
        rows = rows.advance(nodes_US, logp_US, legal_US, allowed_US, drawn_US)
        prefixes.follow(parent_US, nodes_US, len(trie.num_items_X), state)
        # A beam without a session must read some token too.
        tokens_USM = (trie.code_X[nodes_US] + vocabulary.level_offset(level))[..., None]
        if level == num_levels - 1:
            rows = rows.with_item(trie)
            tokens_USM = torch.nn.functional.pad(tokens_USM, (0, 1), value=vocabulary.bos_id)
    return SessionBatch(
        item_ids_USK=rows.items_USK,
        logp_US=rows.logp_US,
        logp_legal_US=rows.logp_legal_US,
        logp_allowed_US=rows.logp_allowed_US,
        logp_drawn_US=rows.logp_drawn_US,
    )


def _options(
    trie: Trie,
    logits_USV: Tensor,
    rows: _UnfinishedSessions,
    level: int,
    supply_UX: Tensor | None,
    blocked_UJ: Tensor,
) -> Options:
    """The children of each row's node in the trie."""
    offset, shape = Vocabulary(trie.num_codes).level_offset(level), rows.nodes_US.shape
    # The trie takes flat rows of users and samples. A row must not repeat its own items, nor write blocked ones.
    written_RK = rows.items_USK.flatten(0, 1)
    children = trie.children(rows.nodes_US.flatten(), level, written_RK, supply_UX, blocked_UJ)
    # Over the whole vocabulary, as in training. The mass on existing codes, and on codes that may be chosen, is kept
    # separately: the log-probability among these is a difference.
    logits_RW = children.of(logits_USV.flatten(0, 1)[:, offset : offset + trie.num_codes[level]])
    exists_USW = children.exists_RW.view(*shape, -1)
    all_free = children.free_RW is children.exists_RW
    return Options(
        logp_USW=logits_RW.view(*shape, -1) - logits_USV.logsumexp(-1, keepdim=True),
        exists_USW=exists_USW,
        free_USW=exists_USW if all_free else children.free_RW.view(*shape, -1),
        first_US=children.first_R1.view(shape),
    )


class _Prefixes:
    """The different beginnings of each user's sessions: the model computes each of them once.

    Of 128 sessions a quarter have different first codes, and nearly all differ after two items. Each session has its
    own row where there are few to share. So it does on devices other than CPUs, which would have to wait for their
    number.

    Attributes:
        first_UW: a session of each beginning; some repeated where a user has fewer.
        row_US: which of these beginnings a session has; None once each session has a row of its own.
    """

    def __init__(self, start_US: Tensor) -> None:
        self.first_UW = torch.zeros_like(start_US)
        self.row_US: Tensor | None = torch.zeros_like(start_US)

    def of_rows(self, values_USM: Tensor) -> Tensor:
        """Values of the sessions for the model's rows."""
        if self.row_US is None:
            return values_USM
        return values_USM.gather(1, self.first_UW[..., None].expand(-1, -1, values_USM.shape[2]))

    def of_sessions(self, values_UWV: Tensor) -> Tensor:
        """Values of the model's rows for the sessions."""
        if self.row_US is None or self.row_US.shape[1] == 1:
            return values_UWV
        return values_UWV.gather(1, self.row_US[..., None].expand(-1, -1, values_UWV.shape[2]))

    def follow(self, parent_US: Tensor | None, nodes_US: Tensor, num_nodes: int, state: DecodingState) -> None:
        """Let the model's rows go on to the nodes that were chosen for the sessions, children of the old ones.

        Args:
            parent_US: which of the old sessions each one continues; None: itself.
            nodes_US: the nodes.
            num_nodes: of the trie.
            state: gets the new rows.
        """
        if self.row_US is None:
            if parent_US is not None:
                state.select(parent_US)
            return
        old_US = self.row_US if parent_US is None else self.row_US.gather(1, parent_US)
        if old_US.device.type != "cpu":
            self.row_US = None
            state.select(old_US)
            return
        ranked = (old_US * num_nodes + nodes_US.clamp_min(0)).sort(dim=1, stable=True)
        place_US = (ranked.values[:, 1:] != ranked.values[:, :-1]).long().cumsum(1)
        place_US = torch.nn.functional.pad(place_US, (1, 0))
        num, num_sessions = int(place_US.max()) + 1, nodes_US.shape[1]
        if num > SHARED * num_sessions:
            self.row_US = None
            state.select(old_US)
            return
        self.row_US = torch.empty_like(place_US).scatter_(1, ranked.indices, place_US)
        first_UW = place_US.new_full((len(place_US), num), num_sessions)
        first_UW.scatter_reduce_(1, place_US, ranked.indices, "amin")
        self.first_UW = first_UW.masked_fill(first_UW == num_sessions, 0)
        state.select(old_US.gather(1, self.first_UW))


def _only(logp_USW: Tensor, mask_USW: Tensor) -> Tensor:
    """The log-probabilities where a mask is true, elsewhere -inf."""
    return logp_USW.masked_fill(~mask_USW, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class _UnfinishedSessions:
    """State of the U·S sessions being written.

    Attributes:
        nodes_US: node of each session in the trie.
        items_USK: the items written so far.
        logp_US: log-probability of the codes so far.
        logp_legal_US: log of the mass on existing codes along the way.
        logp_allowed_US: log of the mass on codes that could be chosen.
        logp_drawn_US: log-probability with which they were drawn; NaN if they were not drawn.
    """

    nodes_US: Tensor
    items_USK: Tensor
    logp_US: Tensor
    logp_legal_US: Tensor
    logp_allowed_US: Tensor
    logp_drawn_US: Tensor

    @classmethod
    def start(cls, num_users: int, device: torch.device) -> _UnfinishedSessions:
        nodes_US = torch.zeros(num_users, 1, dtype=torch.long, device=device)
        zeros = torch.zeros(num_users, 1, device=device)
        return cls(
            nodes_US=nodes_US,
            items_USK=nodes_US.new_empty(num_users, 1, 0),
            logp_US=zeros,
            logp_legal_US=zeros,
            logp_allowed_US=zeros,
            logp_drawn_US=zeros,
        )

    def select(self, parent_US: Tensor) -> _UnfinishedSessions:
        """Rows that are copies of the rows at ``parent_US``."""
        parent_USK = parent_US[..., None].expand(-1, -1, self.items_USK.shape[2])
        flat = {name: value.gather(1, parent_US) for name, value in vars(self).items() if value.ndim == 2}
        return _UnfinishedSessions(items_USK=self.items_USK.gather(1, parent_USK), **flat)

    def advance(
        self, nodes_US: Tensor, logp_US: Tensor, legal_US: Tensor, allowed_US: Tensor, drawn_US: Tensor | None
    ) -> _UnfinishedSessions:
        """Add one code, which leads to the nodes; -1 gives probability 0."""
        return replace(
            self,
            nodes_US=nodes_US,
            logp_US=self.logp_US + logp_US.masked_fill(nodes_US < 0, -torch.inf),
            logp_legal_US=self.logp_legal_US + legal_US,
            logp_allowed_US=self.logp_allowed_US + allowed_US,
            logp_drawn_US=torch.full_like(logp_US, torch.nan) if drawn_US is None else self.logp_drawn_US + drawn_US,
        )

    def with_item(self, trie: Trie) -> _UnfinishedSessions:
        """Write the item whose last code was chosen, and begin the next one."""
        items_USK = torch.cat([self.items_USK, trie.item(self.nodes_US)[..., None]], dim=2)
        return replace(self, items_USK=items_USK, nodes_US=torch.zeros_like(self.nodes_US))


class GenerativeRecommender:
    """A generative agent as a Recommender.

    Args:
        model: the agent.
        trie: the catalogue's codes; a CodeTokenizer's ``trie()``.
        session_length: K.
        sampling: how :meth:`sample` draws.
        num_beams: width of the beam search in :meth:`recommend`. 1 is greedy. 0 draws one session as :meth:`sample`
            does, with random numbers keyed by the request.
        device: device to move the model to and run on. If left out, the model stays where it is, so that a model in
            training is not moved.
        catalog: with dated histories, serve only items that exist by the catalogue's times.
    """

    def __init__(
        self,
        model: Any,
        trie: Trie,
        session_length: int,
        sampling: SamplingConfig | None = None,
        num_beams: int = 8,
        device: torch.device | str | None = None,
        *,
        catalog: Catalog | None = None,
    ) -> None:
        if num_beams < 0:
            raise ValueError(f"num_beams={num_beams} must be 0 (draw a session), 1 (greedy) or more.")
        self.device = next(model.parameters()).device if device is None else torch.device(device)
        trie = trie if catalog is None else trie.dated(catalog)
        self.model, self.trie = model.to(self.device), trie.to(self.device)
        self.session_length, self.num_beams = session_length, num_beams
        self.sampling = sampling or SamplingConfig()
        if self.sampling.candidates:
            check_candidates(self.model, self.trie, self.sampling.candidates, session_length)

    def to(self, device: torch.device | str) -> Self:
        """The agent with its model and codes on another device; the model itself is moved."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved.model, moved.trie = self.model.to(moved.device), self.trie.to(moved.device)
        return moved

    def candidates(self, histories: EventBatch) -> Candidates:
        """Each user's candidates, on the histories' device; 0 if sessions are written among all items."""
        if not (num := self.sampling.candidates):
            return 0
        those = (histories.to(self.device), num, self.session_length, self.sampling.block_seen)
        return candidate_items(self.model, self.trie, *those).to(histories.item_ids_UT.device)

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sampled sessions per user, with log-probabilities, on the histories' device."""
        sessions = sample_sessions(
            self.model, self.trie, histories.to(self.device), n, self.session_length, generator, self.sampling
        )
        return sessions.to(histories.item_ids_UT.device)

    def beams(self, histories: EventBatch, num_beams: int) -> SessionBatch:
        """The ``num_beams`` sessions that a beam search finds for each user, best first."""
        asked = (self.model, self.trie, histories.to(self.device), num_beams, self.session_length)
        sessions = beam_sessions(*asked, self.sampling.block_seen, self.sampling.candidates)
        return sessions.to(histories.item_ids_UT.device)

    def drawn(self, histories: EventBatch, n: int) -> SessionBatch:
        """``n`` sampled sessions per user, with random numbers keyed by the request: the same for the same request."""
        steps = self.session_length * self.trie.num_levels
        noise_USN = request_noise(histories, n * steps).view(-1, n, steps)
        sessions = draw_sessions(self.model, self.trie, histories.to(self.device), noise_USN, self.sampling)
        return sessions.to(histories.item_ids_UT.device)

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """One session per user (S = 1): the best of the beam search, or a drawn one if ``num_beams`` is 0."""
        sessions = self.beams(histories, self.num_beams) if self.num_beams else self.drawn(histories, 1)
        return _first(sessions, 1)
