"""Buckets of time differences, for biases by time (arXiv:2402.17152, §3; widths as in Meta's code)."""

from __future__ import annotations

from torch import Tensor

NUM_TIME_BUCKETS = 129
BUCKET_WIDTH = 0.301
"""Width of a bucket in ln(seconds): log10(2), so about 2.3 buckets double the time."""


def time_buckets(delta_s: Tensor) -> Tensor:
    """Buckets of differences in seconds: floor(ln(max(|Δt|, 1)) / 0.301), at most 128; int32."""
    bucket = delta_s.float().abs().clamp_min_(1).log_().div_(BUCKET_WIDTH).floor_()
    return bucket.clamp_max_(NUM_TIME_BUCKETS - 1).int()
