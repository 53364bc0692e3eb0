"""AUC and GAUC of several models on the same requests, and differences of one to the others, paired over users."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from rich.table import Table

from feedgym.experiments.statistics import resampling_counts

RESAMPLES = 500


def check_only(only: Collection[str], variants: Collection[str]) -> None:
    """Ends the program if an unknown variant is requested."""
    if unknown := sorted(set(only) - set(variants)):
        raise SystemExit(f"There is no variant {unknown[0]!r}; the variants are {', '.join(variants)}.")


def samples_of_users(num_users: int) -> np.ndarray:
    """How often each user is in each sample [1 + RESAMPLES, U]: first the users themselves, then resamplings."""
    return np.concatenate([np.ones((1, num_users)), resampling_counts(num_users, 0, RESAMPLES)])


def paired_table(found: Mapping[str, Sequence[np.ndarray]], reference: str, header: str) -> Table:
    """Figures averaged over seeds, and the reference's differences to each, with 95% intervals over users.

    Args:
        found: for each model one array [2, 1 + RESAMPLES] per seed: AUC and GAUC in each sample.
        reference: the model that the others are compared with; no differences if it was not trained.
        header: header of the differences.
    """
    table = Table("", "AUC", header, "GAUC", header)
    means = {name: np.mean(runs, axis=0) for name, runs in found.items()}
    for name, figure_2R in means.items():
        told, cells = reference in means and name != reference, []
        for value_R, reference_R in zip(figure_2R, means.get(reference, figure_2R), strict=True):
            more_R = reference_R - value_R
            low, high = np.nanquantile(more_R[1:], [0.025, 0.975])
            cells += [f"{value_R[0]:.4f}", f"{more_R[0]:+.4f} [{low:+.4f}, {high:+.4f}]" if told else ""]
        table.add_row(name, *cells)
    return table
