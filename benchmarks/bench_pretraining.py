"""Tokens pretrained per CPU second: feedgym's OneRec and TIGER, and transformers' T5 of the same shape, in turn.

``python benchmarks/bench_pretraining.py [--save FILE]``. Each side trains in a process of its own, on one thread; all
sides take turns of ten steps in one run, and a ratio compares medians.

A step is all that a user's training does: histories read from the log, forward, backward, clipping and AdamW, by
:func:`feedgym.agents.pretrain.pretrain` there and by transformers' ``Trainer`` here. Both have batches of 32, the same
histories and sessions as tokens, and the same rate of dropout. They are those of simulated users, filtered as in the
demo: 30 events of 4 codes, then 7 items of BOS and 4 codes. Width 128, 4 heads, 4 + 4 layers; 10,000 items.

    - full: histories of 30 events and whole sessions only.
    - varied: histories of any length. feedgym makes batches of like length, as in the demo. T5 pads a batch to its
      longest row: of batches drawn at random, which is the Trainer's default, and of batches of like length.

Feed-forward layers have width 512, but OneRec's encoder has 256 and its decoder 2 of 4 experts of 256; its T5 has 256
in the encoder. Padding counts as no token. OneRec also reads 3 tokens of profile and time, TIGER one of the user; these
count as none either.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from saved import machine, save

MODELS, LENGTHS = ("OneRec", "TIGER"), ("full", "varied")
BATCH, ROWS, ITEMS, EVENTS, SESSION, LEVELS, CODES = 32, 320, 10_000, 30, 7, 4, 32
HEADS, WIDTH, LAYERS = 4, 128, 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    turns: int = 3
    """Turns of each side, after one to warm up."""
    steps: int = ROWS // BATCH
    """Steps per turn; by default a pass over the rows."""
    models: tuple[str, ...] = MODELS
    """Which models: OneRec, TIGER."""
    lengths: tuple[str, ...] = LENGTHS
    """Which histories: full, varied."""
    save: Path | None = None
    """File for the figures, as JSON."""
    side: str = ""
    """Used by the benchmark itself: the side, model and lengths that this process times, a turn per line of input."""


def requests(lengths: str) -> Any:
    """Sessions worth imitating, with their histories."""
    import numpy as np

    from feedgym.data.requests import Requests
    from feedgym.data.sessions import logged_sessions, quality_filter
    from feedgym.envs.logging import collect_log
    from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
    from feedgym.experiments.align.presets import small

    simulator = ShortVideo(ShortVideoConfig(num_items=ITEMS))
    log = collect_log(simulator, num_users=200, num_visits=14, session_length=SESSION, seed=0)
    every = Requests.of((log, simulator.catalog), logged_sessions(log, SESSION), EVENTS)
    kept_N = quality_filter(every.sessions, small().sessions)
    if lengths == "full":
        kept_N &= (every.histories.lengths_N == EVENTS).numpy() & (every.targets_NK >= 0).all(1).numpy()  # type: ignore[attr-defined]
    return every.rows(np.random.default_rng(0).permutation(np.flatnonzero(kept_N))[:ROWS])


def tokenizer() -> Any:
    """Random different codes."""
    import torch

    from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig

    num_codes = (CODES,) * LEVELS
    flat_I = torch.randperm(CODES**LEVELS, generator=torch.Generator().manual_seed(0))[:ITEMS]
    codes_IL = torch.stack([flat_I // CODES**level % CODES for level in range(LEVELS)], dim=1)
    return ResidualKMeans(ResidualKMeansConfig(num_codes=num_codes)).freeze(codes_IL, num_codes)


def model_of(name: str) -> Any:
    """An untrained model."""
    from feedgym.agents.onerec import OneRec, OneRecConfig
    from feedgym.agents.tiger import Tiger, TigerConfig

    sizes: dict[str, Any] = {"d_model": WIDTH, "num_heads": HEADS, "encoder_layers": LAYERS, "decoder_layers": LAYERS}
    sizes |= {"session_length": SESSION, "history_length": EVENTS}
    if name == "OneRec":
        return OneRec.from_tokenizer(tokenizer(), OneRecConfig(**sizes, d_ff=256, profile_sizes=(8, 8)))
    config = TigerConfig(**sizes, head_width=WIDTH // HEADS, d_ff=512, only_positives=False)
    return Tiger.from_tokenizer(tokenizer(), config)


def t5_of(model: Any) -> Any:
    """Transformers' T5 of a model's shape, with its rate of dropout."""
    from transformers import T5Config, T5ForConditionalGeneration
    from transformers.models.t5.modeling_t5 import T5Stack

    sizes: dict[str, Any] = {"d_model": WIDTH, "d_kv": WIDTH // HEADS, "num_heads": HEADS, "num_layers": LAYERS}
    sizes |= {"num_decoder_layers": LAYERS, "dropout_rate": model.config.dropout, "vocab_size": model.config.vocab_size}
    config = T5Config(**sizes, d_ff=512, decoder_start_token_id=0, pad_token_id=0, use_cache=False)
    t5 = T5ForConditionalGeneration(config)
    t5.encoder = T5Stack(T5Config(**sizes, d_ff=model.config.d_ff, use_cache=False))
    t5.set_input_embeddings(t5.shared)
    return t5


def train(side: str, name: str, lengths: str, options: Options) -> None:
    """Train, and print the tokens per CPU second of every turn."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from feedgym.agents.pretrain import PretrainConfig, SessionDataset, pretrain
    from feedgym.tokenizers.vocabulary import Vocabulary

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, model, num_steps = requests(lengths), model_of(name), options.steps * (options.turns + 1)
    num_tokens = 0

    class Turns(TrainerCallback):
        """Prints the pace after a turn, and waits for the next one."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begin_s = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal num_tokens
            if state.global_step % options.steps == 0:
                print(num_tokens / (time.process_time() - self.begin_s), flush=True)
                sys.stdin.readline()
                num_tokens, self.begin_s = 0, time.process_time()

    def count(_: Any, __: Any, batch: dict[str, Any]) -> None:
        nonlocal num_tokens
        if side == "feedgym":
            num_tokens += int(LEVELS * batch["mask_UT"].sum() + batch["attention_mask"].sum())
        else:
            num_tokens += int(batch["attention_mask"].sum() + (batch["labels"] >= 0).sum())

    with TemporaryDirectory() as folder:
        if side == "feedgym":
            model.register_forward_pre_hook(count, with_kwargs=True)
            config = PretrainConfig(steps=num_steps, batch_size=BATCH, group_by_length=lengths == "varied")
            dataset = SessionDataset(histories=data.histories, item_ids_NK=data.targets_NK)
            pretrain(model, dataset, config, folder, callbacks=[Turns()])
            return
        item_tokens_IL, histories = model.model.item_tokens_IL, data.histories.rows(slice(None))
        sessions = zip(model.session_tokens(data.targets_NK), histories.item_ids_UT, histories.mask_UT, strict=True)
        rows = [
            {"input_ids": item_tokens_IL[items[mask]].flatten(), "labels": tokens[tokens != Vocabulary.pad_id]}
            for tokens, items, mask in sessions
            if mask.any()
        ]

        def padded(batch: list[dict[str, Any]]) -> dict[str, Any]:
            ids, labels = (
                torch.nn.utils.rnn.pad_sequence([row[column] for row in batch], True, fill)
                for column, fill in (("input_ids", Vocabulary.pad_id), ("labels", -100))
            )
            return {"input_ids": ids, "attention_mask": (ids != Vocabulary.pad_id).long(), "labels": labels}

        t5 = t5_of(model)
        t5.register_forward_pre_hook(count, with_kwargs=True)
        alike = "group_by_length" if "length" in side else "random"
        args = TrainingArguments(
            folder, max_steps=num_steps, per_device_train_batch_size=BATCH, train_sampling_strategy=alike,
            use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
            logging_strategy="no",
        )  # fmt: skip
        Trainer(model=t5, args=args, train_dataset=rows, data_collator=padded, callbacks=[Turns()]).train()  # type: ignore[arg-type]


class Side:
    """A process that trains one side."""

    def __init__(self, name: str, model: str, lengths: str, options: Options) -> None:
        here = Path(__file__).resolve()
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1]), "HF_HUB_OFFLINE": "1"}
        turns = [f"--turns={options.turns}", f"--steps={options.steps}"]
        self.command = [sys.executable, str(here), f"--side={name}/{model}/{lengths}", *turns]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self.command, env=env, stderr=subprocess.DEVNULL, **pipes)
        self.paces: list[float] = []
        self.answer()  # the turn that warms up

    def answer(self) -> float:
        """The pace of the turn that ends now."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"A side stopped; run {' '.join(self.command)} to see why.")
        return float(line)

    def turn(self) -> None:
        """Train for a turn."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.paces.append(self.answer())


def time_model(model: str, lengths: str, options: Options) -> dict[str, float]:
    """Median tokens per CPU second of each side."""
    names = ["feedgym", "T5", *(["T5, like lengths"] if lengths == "varied" else [])]
    sides = {name: Side(name, model, lengths, options) for name in names}
    for _ in range(options.turns):
        for side in sides.values():
            side.turn()
    for side in sides.values():
        side.process.communicate()
    return {name: median(side.paces) for name, side in sides.items()}


def main(options: Options) -> None:
    """Print a line per model and kind of history, and save them if asked to."""
    if options.side:
        train(*options.side.split("/"), options)
        return
    found = {}
    for model in options.models:
        for lengths in options.lengths:
            paces = found[f"{model}, {lengths} histories"] = time_model(model, lengths, options)
            ratios = " ".join(f"{paces['feedgym'] / pace:.2f}" for name, pace in paces.items() if name != "feedgym")
            cells = " ".join(f"{name} {pace:,.0f}" for name, pace in paces.items())
            print(f"{model:<8}{lengths:<8}{cells}  ratios {ratios}", flush=True)
    if options.save is not None:
        command = f"python benchmarks/bench_pretraining.py --turns {options.turns}"
        save(options.save, command, "tokens per CPU second", "feedgym", found, machine("torch", "transformers"))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
