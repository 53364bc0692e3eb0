"""A whole round of IPA against its bare optimiser steps: what the round adds in CPU seconds.

``python benchmarks/bench_dpo_round.py [--save FILE.json]``

OneRec of the demo's sizes, 256 users with up to 40 events, 16 sampled sessions each with random scores. The round is
:class:`feedgym.agents.alignment.dpo.IPA`: it chooses pairs, checks the log-probabilities from sampling, trains with
TRL, and looks at all pairs again at the end. The bare steps are a plain loop over the same pairs in batches of the same
size: forward, loss, backward, clipping, AdamW. Both sides take turns, on one thread.
"""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from bench_sampling import histories_of, tokenizer_of
from saved import machine, save

from feedgym.agents.alignment.contrasts import Contrasts
from feedgym.agents.alignment.dpo import IPA, IPAConfig
from feedgym.agents.generation import sample_sessions
from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.data.batches import EventBatch, ScoredSessions
from feedgym.tokenizers.vocabulary import Vocabulary

USERS, ITEMS, EVENTS, SESSIONS, LENGTH = 256, 2000, 40, 16, 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    repeats: int = 3
    """Times that each side runs; medians count."""
    save: Path | None = None
    """File for the figures, as JSON."""


def sampled() -> tuple[Any, EventBatch, ScoredSessions, torch.Tensor]:
    """A model, histories, the sessions it drew, and logged sessions."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of((32, 128), ITEMS)
    model = OneRec.from_tokenizer(
        tokenizer, OneRecConfig(session_length=LENGTH, history_length=EVENTS, profile_sizes=(2, 2))
    ).eval()
    histories = histories_of(USERS, EVENTS, ITEMS, full=False)
    drawn = sample_sessions(model, tokenizer.trie(), histories, SESSIONS, LENGTH, torch.Generator().manual_seed(1))
    scored = ScoredSessions(
        item_ids_USK=drawn.item_ids_USK,
        score_US=torch.rand(USERS, SESSIONS),
        logp_US=drawn.logp_US,
        logp_allowed_US=drawn.logp_allowed_US,
        logp_drawn_US=drawn.logp_drawn_US,
    )
    return model, histories, scored, torch.randint(ITEMS, (USERS, LENGTH))


def whole_round(model: Any, histories: EventBatch, scored: ScoredSessions, logged_UK: torch.Tensor) -> None:
    """The method's update."""
    with tempfile.TemporaryDirectory() as work:
        IPA(IPAConfig()).update(copy.deepcopy(model), histories, scored, logged_UK, Path(work))


def bare_steps(model: Any, histories: EventBatch, scored: ScoredSessions, logged_UK: torch.Tensor) -> None:
    """The same loss on the same pairs, in a plain loop."""
    config, model = IPAConfig(), copy.deepcopy(model).train()
    ends_U2 = torch.stack([scored.score_US.argmax(1), scored.score_US.argmin(1)], dim=1)
    rows_U1 = torch.arange(USERS)[:, None]
    contrasts = Contrasts(model, histories, scored.item_ids_USK[rows_U1, ends_U2], logged_UK)
    reference_2U = scored.logp_US[rows_U1, ends_U2].T
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    for _ in range(config.epochs):
        for row_P in torch.randperm(USERS).split(config.batch_size):
            batch = contrasts.batch(row_P)
            logged_PM = model.session_tokens(logged_UK[row_P])
            tokens_RM = torch.cat([batch.pop("input_ids"), logged_PM])
            counted_RM = torch.cat([batch.pop("completion_mask").bool(), logged_PM > Vocabulary.bos_id])
            batch["attention_mask"] = (tokens_RM != Vocabulary.pad_id).long()
            output = model(input_ids=tokens_RM, **batch)
            logp_RM = output.logits[:, :-1].log_softmax(-1).gather(2, tokens_RM[:, 1:, None]).squeeze(2)
            logp_3P = (logp_RM * counted_RM[:, 1:]).sum(1).view(3, -1)
            gain_2P = logp_3P[:2] - reference_2U[:, row_P]
            loss = -F.logsigmoid(config.beta * (gain_2P[0] - gain_2P[1])).mean()
            loss = loss - config.ntp_weight * logp_3P[2].mean() / (2 * LENGTH) + 0.01 * output.aux_loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def main(options: Options) -> None:
    """Print the seconds of both sides and their ratio."""
    torch.set_num_threads(1)
    parts = sampled()
    sides = {"round": whole_round, "bare steps": bare_steps}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(options.repeats + 1):
        for name, do in sides.items():
            begin = time.process_time()
            do(*parts)
            if repeat:  # the first time imports TRL
                times[name].append(time.process_time() - begin)
    second = {name: median(of_side) for name, of_side in times.items()}
    told = ", ".join(f"{name} {value:.2f} CPU s" for name, value in second.items())
    print(f"{told}; ratio {second['round'] / second['bare steps']:.2f}")
    if options.save is not None:
        pace = {f"IPA, {USERS} pairs": {name: USERS / value for name, value in second.items()}}
        command = f"python benchmarks/bench_dpo_round.py --repeats {options.repeats}"
        save(options.save, command, "pairs per CPU second", "round", pace, machine("torch", "trl"))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
