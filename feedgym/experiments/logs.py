"""Gets an experiment's log from simulated users or recorded data, with its codec and its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from feedgym.data import parquet
from feedgym.data.parts import load_log, save_log
from feedgym.data.readers import column_pair, find_data
from feedgym.data.requests import LogAndItems
from feedgym.data.whole import check_product, digest_of, product_of
from feedgym.envs.feed import make_simulator
from feedgym.envs.learned.simulator import ranker_named
from feedgym.envs.logging import collect_log
from feedgym.experiments.configs import LogConfig, LogSource, UsersConfig
from feedgym.experiments.progress import progress, say
from feedgym.experiments.run import Codec, Plan
from feedgym.plugins import is_built_in, is_folder, key_of, made, with_seed
from feedgym.protocols import UserSimulator


def _save_log(data: LogAndItems, folder: Path) -> None:
    save_log(data[0], folder)
    parquet.write_catalog(data[1], folder / "catalog.parquet")


def _load_log(folder: Path) -> LogAndItems:
    catalog = parquet.read_catalog(folder / "catalog.parquet")
    return load_log(folder, catalog), catalog


LOG: Codec[LogAndItems] = Codec(_save_log, _load_log)
"""Codec of the log stage: two parquet files, which ``--data`` can read too."""


def simulated_log(simulator: UserSimulator, log: LogConfig, session_length: int, seed: int) -> LogAndItems:
    """Make the log of fresh users under the production system, with the simulator's items."""
    with progress("Logging simulated users") as step:
        events = collect_log(
            simulator,
            num_users=log.users,
            num_visits=log.visits,
            session_length=session_length,
            seed=seed,
            until_s=log.until_s,
            progress=step,
        )
    return events, simulator.catalog


def recorded_log(source: LogSource) -> LogAndItems:
    """Read a real log by :func:`feedgym.data.readers.load_data`, and report the parts that are not read."""
    path = data_path(source)
    check_product(path)
    columns = dict(column_pair(text) for text in source.columns)
    reading = find_data(path, columns or None, source.items)
    with progress(f"Reading {path.name}") as step:
        data = reading.read(source.read)
        step(1, 1)
    say(escape(f"{path.name}: {'; '.join((reading.name, *reading.says))}"))
    for line in reading.warns:
        say(f"[bold yellow]{escape(line)}[/]")
    return data


def recorded_key(source: LogSource) -> Any:
    """Key of a real log: its files by name and content, and the options for reading them."""
    path = data_path(source)
    digests = _digests(path) + (_digests(Path(source.items)) if source.items else [])
    return [str(path), source.columns, source.items, source.read, digests]


def simulator_key(simulator: str) -> Any:
    """Key of a simulator: its import path; or its folder, the files in it, and the user's own ranker code."""
    if not is_folder("simulator", simulator):
        return simulator
    path = Path(simulator)
    ranker = ranker_named(product_of(path))
    return [simulator, _digests(path), *([ranker] if ranker is not None and not is_built_in("ranker", ranker) else [])]


def simulator_of(config: UsersConfig, seed: int, trust: bool = False) -> UserSimulator:
    """Make the experiment's users; ``trust`` as for :func:`feedgym.envs.feed.make_simulator`."""
    target, options = made("simulator", config.simulator), _seeded_options(config, seed)
    return make_simulator(target if options is None else target(options), trust=trust)


def users_key(config: UsersConfig, seed: int) -> Any:
    """Key of an experiment's users: the simulator's code or folder, and its options."""
    return [key_of("simulator", config.simulator), simulator_key(config.simulator), _seeded_options(config, seed)]


def _seeded_options(config: UsersConfig, seed: int) -> Any:
    """The simulator's options; the experiment's seed is added to that of its catalogue."""
    return with_seed(config.simulator_options, seed, "catalog_seed")


def _digests(path: Path) -> list[tuple[str, str]]:
    """Files with the hashes of their contents, so that copied or newly mounted data count as the same."""
    path = product_of(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(str(p), digest_of(p)) for p in files if p.exists()]


def plan_log(plan: Plan, config: LogSource, simulated: Any, *users: str) -> str:
    """Plan the stage of the log, with the settings that decide it: the files and how to read them, or the simulation.

    Args:
        plan: the plan to extend.
        config: the source of the log.
        simulated: the settings that decide a simulated log.
        users: the fields that decide the simulated users.
    """
    if config.data is not None:
        plan.leave_out(*users, "log", because="a recorded log has no simulated users")
        return plan.stage("log", recorded_key(config))
    plan.leave_out("columns", "items", "read", because="no data are given to be read")
    return plan.stage("log", simulated)


def data_path(source: LogSource) -> Path:
    """Path of the real log."""
    assert source.data is not None
    return Path(source.data)
