"""Codec of records of serving: counts as safetensors, the served sessions as an event log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from feedgym.data.parquet import read_log, write_log
from feedgym.experiments.run import Codec, write_json
from feedgym.experiments.serve import ServingRecord

NAMES, COUNTS, EVENTS, CONCENTRATION = "names.json", "counts.safetensors", "events.parquet", "concentration"


def _save(records: Mapping[str, ServingRecord], folder: Path) -> None:
    write_json(folder / NAMES, list(records))  # folders have numbers, because names may have any characters
    for number, record in enumerate(records.values()):
        place = folder / str(number)
        place.mkdir()
        counts = {**record.by_visit, CONCENTRATION: record.concentration_V}
        save_file({name: np.ascontiguousarray(values) for name, values in counts.items()}, place / COUNTS)
        assert record.log is not None
        write_log(record.log, place / EVENTS)


def _load(folder: Path) -> dict[str, ServingRecord]:
    return {name: _read(folder / str(n)) for n, name in enumerate(json.loads((folder / NAMES).read_text()))}


def _read(place: Path) -> ServingRecord:
    counts = load_file(place / COUNTS)
    concentration_V = counts.pop(CONCENTRATION)
    return ServingRecord(counts, concentration_V, read_log(place / EVENTS))


RECORDS: Codec[Mapping[str, ServingRecord]] = Codec(_save, _load)
"""Codec of records by name, in order."""
