"""The sessions of a round in shards of users, which are files: at most one is read at a time, but for its next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from feedgym.data.batches import ScoredParts, ScoredSessions, TensorRows
from feedgym.data.parquet import read_batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard(TensorRows):
    """Sessions of some users of a round, with the reward's scores, and with their true values if those are known.

    Attributes:
        row_U: int64 rows of the users' logged sessions in the pool.
        item_ids_USK: int64 sampled sessions.
        logp_US, logp_legal_US, logp_allowed_US, logp_drawn_US: float32, see :class:`feedgym.data.batches.SessionBatch`.
        score_US: float32, the scores that methods learn from: the reward's, or the true values in a study.
        truth_US: float32, the simulator's true values; None on a recorded log.
    """

    row_U: torch.Tensor
    item_ids_USK: torch.Tensor
    logp_US: torch.Tensor
    logp_legal_US: torch.Tensor
    logp_allowed_US: torch.Tensor
    logp_drawn_US: torch.Tensor
    score_US: torch.Tensor
    truth_US: torch.Tensor | None = None

    def for_method(self) -> ScoredSessions:
        """The part that an alignment method may see: everything except the truth."""
        return ScoredSessions(
            item_ids_USK=self.item_ids_USK, score_US=self.score_US, logp_US=self.logp_US,
            logp_allowed_US=self.logp_allowed_US, logp_drawn_US=self.logp_drawn_US,
        )  # fmt: skip

    def figures_by_user(self) -> dict[str, torch.Tensor]:
        """Maxima over each user's sessions, the truth of the best by the score, and the mean legality [U]."""
        figures = {"model_max": self.score_US.amax(dim=1), "legality": self.logp_legal_US.exp().mean(dim=1)}
        if self.truth_US is not None:
            best_U1 = self.score_US.argmax(dim=1, keepdim=True)
            figures["true_max"] = self.truth_US.amax(dim=1)
            figures["true_of_best"] = self.truth_US.gather(1, best_U1)[:, 0]
        return figures


class SampledRound:
    """A round's sessions in files, one a shard. Iterating reads one after the other.

    Args:
        paths: the files, in the users' order.

    Attributes:
        row_U: int64 rows of all users' logged sessions in the pool.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        rows = [_rows_of(path) for path in self.paths]
        self.row_U, self._sizes = torch.cat(rows), [len(row_U) for row_U in rows]

    def __iter__(self) -> Iterator[Shard]:
        return map(self._read, range(len(self.paths)))

    def for_method(self) -> ScoredParts:
        """The sessions as an alignment method may see them, without the truth, read a part at a time."""
        return ScoredParts(self._sizes, lambda number: self._read(number).for_method())

    def whole(self) -> Shard:
        """All users as one shard in memory."""
        return Shard.cat(list(self))

    def save(self, folder: Path) -> None:
        """Put the files into a folder."""
        for number, path in enumerate(self.paths):
            _link(path, folder / f"shard-{number:09}.safetensors")

    @classmethod
    def load(cls, folder: Path) -> SampledRound:
        """The round whose files are in a folder."""
        return cls(sorted(folder.glob("*.safetensors")))

    def _read(self, number: int) -> Shard:
        return read_batch(Shard, self.paths[number])


def _rows_of(path: Path) -> torch.Tensor:
    """The pool's rows of a shard's users; nothing else of the file is read."""
    with safe_open(path, "pt") as file:
        return file.get_tensor("row_U").clone()


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
