"""Codes of two levels: a bucket of the content's first coordinate, and a counter inside it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class BucketsConfig:
    """How fine they are."""

    num_buckets: int = 6
    """Codes of the first level."""


class Buckets:
    """An item tokenizer with nothing but what the protocol asks for."""

    Config = BucketsConfig

    def __init__(self, config: BucketsConfig = BucketsConfig()) -> None:
        self.config = config

    def fit(self, content_IE):
        rank_I = torch.as_tensor(content_IE)[:, 0].argsort(stable=True).argsort(stable=True)
        num_items = len(rank_I)
        size = -(-num_items // self.config.num_buckets)
        self.codes_IL = torch.stack([rank_I // size, rank_I % size], dim=1)
        self._item_of = {tuple(codes): item for item, codes in enumerate(self.codes_IL.tolist())}
        return self

    def encode(self, item_ids):
        codes = self.codes_IL.to(item_ids.device)[item_ids.clamp_min(0)]
        return codes.masked_fill(item_ids[..., None] < 0, -1)

    def decode(self, codes):
        flat = codes.reshape(-1, 2).tolist()
        items = torch.tensor([self._item_of.get(tuple(code), -1) for code in flat], dtype=torch.long)
        return items.view(codes.shape[:-1]).to(codes.device)
