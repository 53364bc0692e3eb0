"""Agents with a million items: time and peak memory of sampling, training and ranking.

``python benchmarks/bench_million_agents.py [onerec|hstu|candidates|all_items] [ITEMS]``; each part in a
process of its own, on one thread.

    - onerec: OneRec of the demo's sizes draws 128 sessions of 5 items for each of 64 users with 40 events. Items have
      random different codes, since sampling costs the same whoever fitted them.
    - hstu: HSTU of MovieLens-1M's sizes learns from batches of 32 users with 200 events by a sampled softmax, and then
      ranks all items for 64 users.
    - candidates: HSTU of the same sizes draws 128 sessions of 5 items for each of 64 users with 40 events, among 1,000
      candidates per user. It then learns from batches of 64 such sessions by a sampled softmax.
    - all_items: the same HSTU draws 128 sessions for one user, among all items.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import torch
from bench_sampling import histories_of, tokenizer_of
from memory import peak_gb

from feedgym.agents.generation import SamplingConfig, sample_sessions
from feedgym.agents.hstu import HSTU, HSTUConfig, HSTURecommender
from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.tokenizers.codes import codes_for

USERS, SAMPLES, BATCH, STEPS, CANDIDATES = 64, 128, 32, 5, 1000


def onerec(num_items: int) -> None:
    """Sample sessions."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(codes_for(num_items), num_items)
    config = OneRecConfig(session_length=5, history_length=40, profile_sizes=(2, 2))
    model = OneRec.from_tokenizer(tokenizer, config).eval()
    trie, histories = tokenizer.trie(), histories_of(USERS, 40, num_items, full=True)
    before, begin = peak_gb(), time.process_time()
    for rows in range(0, USERS, 16):  # blocks as in a round
        part = histories.rows(torch.arange(rows, rows + 16))
        sample_sessions(model, trie, part, SAMPLES, 5, torch.Generator().manual_seed(rows))
    seconds = time.process_time() - begin
    print(f"OneRec, {num_items:,} items, codes {tokenizer.num_codes}: {USERS * SAMPLES:,} sessions ", end="")
    print(f"in {seconds:.1f} CPU s; peak {peak_gb():.2f} GB, {before:.2f} GB of it before")


def hstu(num_items: int) -> None:
    """Train and rank."""
    torch.manual_seed(0)
    model = HSTU(HSTUConfig(num_items=num_items, history_length=200, use_time=False))
    before = peak_gb()
    seconds = steps(model, model.sequence_batch(histories_of(BATCH, 200, num_items, full=True)))
    print(f"HSTU, {num_items:,} items: a training step of {BATCH} users in {seconds:.2f} CPU s; ", end="")
    print(f"peak {peak_gb():.2f} GB, {before:.2f} GB of it before")
    begin = time.process_time()
    for _ in range(USERS // 16):
        model.scores(histories_of(16, 200, num_items, full=True)).topk(200)
    print(f"ranked for {USERS} users in {time.process_time() - begin:.1f} CPU s; peak {peak_gb():.2f} GB")


def steps(model: HSTU, batch: dict[str, torch.Tensor]) -> float:
    """Median CPU seconds of a training step."""
    optimizer, seconds = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(STEPS):
        begin = time.process_time()
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - begin)
    return median(seconds)


def candidates(num_items: int) -> None:
    """Sample sessions among candidates, and learn sessions."""
    torch.manual_seed(0)
    model = HSTU(HSTUConfig(num_items=num_items, history_length=40, session_length=5, use_time=False))
    histories, before = histories_of(USERS, 40, num_items, full=True), peak_gb()
    begin = time.process_time()
    agent = HSTURecommender(model, sampling=SamplingConfig(candidates=CANDIDATES))
    for rows in range(0, USERS, 16):  # blocks as in a round
        part = histories.rows(torch.arange(rows, rows + 16))
        agent.sample(part, SAMPLES, torch.Generator().manual_seed(rows))
    print(f"HSTU, {num_items:,} items: {USERS * SAMPLES:,} sessions among {CANDIDATES:,} candidates per user ", end="")
    print(f"in {time.process_time() - begin:.1f} CPU s; peak {peak_gb():.2f} GB, {before:.2f} GB of it before")
    batch = model.training_batch(histories, torch.randint(num_items, (USERS, 5)))
    seconds = steps(model.train(), batch)
    print(f"a training step of {USERS} sessions in {seconds:.2f} CPU s; peak {peak_gb():.2f} GB")


def all_items(num_items: int) -> None:
    """Sample one user's sessions without candidates."""
    torch.manual_seed(0)
    model = HSTU(HSTUConfig(num_items=num_items, history_length=40, session_length=5, use_time=False))
    agent, history = HSTURecommender(model), histories_of(1, 40, num_items, full=True)
    before, begin = peak_gb(), time.process_time()
    agent.sample(history, SAMPLES, torch.Generator().manual_seed(0))
    print(f"HSTU, {num_items:,} items: {SAMPLES} sessions among all items ", end="")
    print(f"in {time.process_time() - begin:.1f} CPU s; peak {peak_gb():.2f} GB, {before:.2f} GB of it before")


def main() -> None:
    """Run the part that is named, or each in a process of its own."""
    parts = {"onerec": onerec, "hstu": hstu, "candidates": candidates, "all_items": all_items}
    name, *sizes = sys.argv[1:] or [""]
    if name:
        torch.set_num_threads(1)
        return parts[name](int(sizes[0]) if sizes else 1_000_000)
    for name in parts:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
