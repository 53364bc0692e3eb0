"""A OneRec over six items, small enough to enumerate every session, and histories for it, for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.data.batches import DatedEventBatch, EventBatch
from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig

# Code 2 of level 0 is never used, and of two prefixes one has three items below it, one a single item.
CODES = torch.tensor([[0, 0], [3, 1], [0, 2], [1, 0], [0, 1], [1, 2]])
NUM_CODES = (4, 3)
NUM_ITEMS, K, T = len(CODES), 3, 6


def toy_tokenizer(codes_IL=CODES, num_codes=NUM_CODES):
    """A tokenizer with given codes and no centroids."""
    return ResidualKMeans(ResidualKMeansConfig(num_codes=num_codes)).freeze(codes_IL, num_codes)


def toy_model(seed=0, tokenizer=None, **sizes):
    """An untrained model whose every weight matters; its sessions differ a lot in probability."""
    torch.manual_seed(seed)
    config = dict(
        d_model=8,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        d_ff=12,
        initializer_range=0.6,
        session_length=K,
        history_length=T,
        profile_sizes=(3, 2),
    )
    model = OneRec.from_tokenizer(tokenizer or toy_tokenizer(), OneRecConfig(**config | sizes))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def toy_histories(num, seed=0, num_items=NUM_ITEMS, length=T):
    """Random histories of 0 to ``length`` events; the first user is new, the last one's history is full."""
    rng = torch.Generator().manual_seed(seed)
    length_U = torch.randint(0, length + 1, (num,), generator=rng)
    length_U[0], length_U[-1] = 0, length
    mask_UT = torch.arange(length) < length_U[:, None]
    return EventBatch(
        item_ids_UT=torch.randint(num_items, (num, length), generator=rng) * mask_UT,
        behaviours_UTB=torch.rand(num, length, 7, generator=rng).round() * mask_UT[..., None],
        watch_fraction_UT=torch.rand(num, length, generator=rng) * mask_UT,
        gap_s_UT=torch.rand(num, length, generator=rng) * 1e5 * mask_UT,
        mask_UT=mask_UT,
        profile_UF=torch.stack([torch.randint(n, (num,), generator=rng) for n in (3, 2)], dim=1),
        time_of_day_U=torch.rand(num, generator=rng) * 24,
    )


def dated(histories, time_s_U):
    """The same histories at known times."""
    return DatedEventBatch(**vars(histories), time_s_U=time_s_U)


def scribbled(histories):
    """The same histories with nonsense where they are padded."""
    pad_UT = ~histories.mask_UT
    return replace(
        histories,
        item_ids_UT=histories.item_ids_UT.masked_fill(pad_UT, 10**6),
        behaviours_UTB=histories.behaviours_UTB.masked_fill(pad_UT[..., None], torch.nan),
        watch_fraction_UT=histories.watch_fraction_UT.masked_fill(pad_UT, torch.nan),
        gap_s_UT=histories.gap_s_UT.masked_fill(pad_UT, torch.inf),
    )


def allowed(trie, nodes_R, level, used_items_RJ=None, supply_UX=None, blocked_UJ=None):
    """Mask [R, C] of the codes that may come next, from a trie's children."""
    children = trie.children(nodes_R, level, used_items_RJ, supply_UX, blocked_UJ)
    code_RW = children.code_RW.expand(len(nodes_R), -1).masked_fill(~children.exists_RW, trie.num_codes[level])
    mask_RC = torch.zeros(len(nodes_R), trie.num_codes[level] + 1, dtype=torch.bool)
    return mask_RC.scatter_(1, code_RW, children.free_RW)[:, :-1]
