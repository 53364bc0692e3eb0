"""``feedgym watch``: users' visits under an agent, as text in the terminal and as pictures in files."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.data.batches import EventBatch
from feedgym.data.events import Event, EventLog
from feedgym.data.parquet import replacing
from feedgym.envs.feed import FeedVectorEnv, event_batch
from feedgym.envs.logging import collect_log
from feedgym.envs.truth import oracle_sessions
from feedgym.protocols import Recommender, UserSimulator, load, make

REFERENCES = ("random", "popular", "oracle")
SHORT_VIDEO = "feedgym/ShortVideo-v1"
TERMINAL_DELAY_S = 1.5
"""Default seconds between two visits in a terminal."""
LOG_USERS, LOG_VISITS = 200, 5
"""Size of the log for popularity, or for an agent that asks for a log, if there is no run."""

STYLES = {
    r"^user \S+.*$": "bold",
    r"█[^ ░]*|[▏▎▍▌▋▊▉](?=░)": "blue",
    r"░+|^ .*not reached.*$|skipped": "dim",
    r"\b(like|follow|comment|forward)\b": "bold green",
    r"\bhate\b|<< left here|never comes back": "bold red",
    r"^  (left|saw) .*$": "bold",
    r"^  true interests.*$": "italic cyan",
}
"""Styles of a visit's text in a terminal; later patterns win."""

Make = Callable[[str], FeedVectorEnv]
"""Makes the environment for a render mode."""
Choose = Callable[[EventBatch, Any], NDArray[np.int64]]
"""Chooses sessions [U, K] given histories and, only for the oracle, the users' true state."""


@dataclass(frozen=True, kw_only=True)
class WatchedAgent:
    """An agent to watch, and a function that makes its environment with one slot."""

    title: str
    make: Make
    choose: Choose


def show_of(
    agent: str,
    *,
    which: str | None = None,
    env: str | None = None,
    simulator: str | None = None,
    session_length: int | None = None,
    visits: int = 8,
    trust: bool = False,
) -> WatchedAgent:
    """Find the agent and its environment.

    Args:
        agent: "random", "popular", "oracle", a run's folder, or the import path of a Recommender.
        which: for a run: "aligned" (if None), "base" or a reference.
        env: Gymnasium id of a feed; ShortVideo if neither this nor ``simulator`` is given.
        simulator: import path of a user simulator.
        session_length: K; the agent's or the environment's own if None.
        visits: horizon of episodes without one of their own.
        trust: whether to trust the folders; as for :func:`feedgym.experiments.align.agents.agents_of`.

    Raises:
        ValueError: there is no such agent or environment, or the arguments contradict each other.
    """
    if agent not in REFERENCES and ":" not in agent and not Path(agent).is_dir():
        raise ValueError(
            f"There is no agent {agent!r}; give {', '.join(REFERENCES)}, the folder of a finished run, or the import "
            "path of a Recommender (package.module:Name)."
        )
    if env is not None and simulator is not None:
        raise ValueError("Give either --env or --simulator, not both.")
    if visits < 1:
        raise ValueError(f"--visits {visits} is below 1; give 1 or more.")
    if agent not in REFERENCES and ":" not in agent:
        if env is not None or simulator is not None or session_length is not None:
            raise ValueError("A run's agents are watched in the run's own world; leave --env, --simulator and -K out.")
        return _run_show(Path(agent), which or "aligned", visits, trust)
    if which is not None:
        raise ValueError(f"--agent {which} names an agent of a run, but {agent!r} is not a run's folder; leave it out.")
    return _show(agent, env, simulator, session_length, visits, trust)


def _run_show(folder: Path, which: str, visits: int, trust: bool) -> WatchedAgent:
    """Find an agent of a finished run, with the run's own users."""
    from feedgym.experiments.align.agents import (
        agents_of,  # these two bring in all models, which take seconds to import
    )
    from feedgym.experiments.controls import references

    finished = agents_of(folder, trust=trust)
    config, users = finished.config, getattr(finished.world, "simulator", None)
    if users is None:
        raise ValueError(f"{folder} learned from a recorded log, whose users cannot be served; watch a simulated run.")
    agents = references(finished.log, finished.catalog, config) | finished.agents
    if which not in (names := [*agents, "oracle"]):
        raise ValueError(f"The run has no agent {which!r}; its agents are {', '.join(names)}.")

    def make_env(mode: str) -> FeedVectorEnv:
        return FeedVectorEnv(
            1,
            users,
            session_length=config.session_length,
            history_length=config.history_length,
            memory=config.memory,
            horizon=visits,
            reward=config.weights,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=mode,
        )

    choose = _oracle(users, config.session_length) if which == "oracle" else _serving(agents[which])
    return WatchedAgent(title=f"{which} of {folder}", make=make_env, choose=choose)


def _show(
    agent: str, env: str | None, simulator: str | None, session_length: int | None, visits: int, trust: bool
) -> WatchedAgent:
    """Find a reference or the user's own agent, in any environment."""

    def make_env(mode: str | None, length: int | None) -> FeedVectorEnv:
        options: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_mode": mode}
        if length is not None:
            options["session_length"] = length
        if simulator is not None:
            return FeedVectorEnv(1, simulator, horizon=visits, trust=trust, **options)
        return _registered(env or SHORT_VIDEO, options)

    plain = make_env(None, session_length)
    users, length = plain.simulator, plain.session_length
    if agent == "oracle":
        choose = _oracle(users, length)
    else:
        recommender = _reference(agent, users, length) if agent in REFERENCES else _own(agent, users, length)
        if session_length not in (None, recommender.session_length):
            raise ValueError(
                f"{agent} serves sessions of {recommender.session_length} items; leave --session-length "
                f"{session_length} out."
            )
        length, choose = recommender.session_length, _serving(recommender)
    where = env or simulator or SHORT_VIDEO
    return WatchedAgent(title=f"{agent} in {where}", make=lambda mode: make_env(mode, length), choose=choose)


def _registered(env: str, options: dict[str, Any]) -> FeedVectorEnv:
    """Make the feed of a Gymnasium id, of any task level."""
    feeds = sorted(name for name in gym.registry if name.startswith("feedgym/"))
    try:
        entry = gym.spec(env).vector_entry_point
    except gym.error.Error as error:
        raise ValueError(f"There is no environment {env!r}; the feeds are {', '.join(feeds)}.") from error
    made = load_env_creator(entry) if isinstance(entry, str) else entry
    if not (inspect.isclass(made) and issubclass(made, FeedVectorEnv)):
        raise ValueError(f"{env} is not a feed; the feeds are {', '.join(feeds)}.")
    feed = gym.make_vec(env, 1, vectorization_mode="vector_entry_point", **options).unwrapped
    assert isinstance(feed, FeedVectorEnv)
    return feed


def _reference(name: str, users: UserSimulator, length: int) -> Recommender:
    num_items = users.catalog.num_items
    if name == "random":
        return RandomRecommender(num_items, length, catalog=users.catalog)
    if hasattr(users, "popularity_I"):
        return PopularRecommender(torch.as_tensor(users.popularity_I), length, catalog=users.catalog)
    log = _small_log(users, length)
    seen = (log.event == Event.IMPRESSION) & log.examined
    count_I = torch.from_numpy(np.bincount(log.item_id[seen], minlength=num_items))
    return PopularRecommender(count_I, length, catalog=users.catalog)


def _own(path: str, users: UserSimulator, length: int) -> Recommender:
    """Make the Recommender of an import path, which may ask for the catalogue, K or a log of the users."""
    target = load(path)
    asks = inspect.signature(target).parameters if callable(target) else {}
    given: dict[str, Any] = {"catalog": users.catalog, "num_items": users.catalog.num_items, "session_length": length}
    if "log" in asks:
        given["log"] = _small_log(users, length)
    agent = make(target, **given)
    if not hasattr(agent, "recommend") or not hasattr(agent, "session_length"):
        raise ValueError(
            f"{path} is a {type(agent).__name__} and not a Recommender; it needs recommend() and session_length "
            f"(see feedgym check {path})."
        )
    return agent


def _small_log(users: UserSimulator, length: int) -> EventLog:
    return collect_log(users, num_users=LOG_USERS, num_visits=LOG_VISITS, session_length=length, seed=0)


def _serving(agent: Recommender) -> Choose:
    def choose(histories: EventBatch, _: Any) -> NDArray[np.int64]:
        with torch.inference_mode():
            return agent.recommend(histories).item_ids_USK[:, 0].cpu().numpy()

    return choose


def _oracle(users: UserSimulator, length: int) -> Choose:
    return lambda _, state: oracle_sessions(users, state, length)


def watch(
    show: WatchedAgent,
    *,
    seed: int = 0,
    visits: int = 8,
    delay_s: float | None = None,
    png: Path | None = None,
    frames: Path | None = None,
) -> None:
    """Serve users one after another, and show every step.

    Args:
        show: the agent and its environment.
        seed: seed of the first user; the next users are derived from it.
        visits: number of steps, which are visits, or pages or requests at other levels of the environment.
        delay_s: seconds between two steps; 1.5 in a terminal and 0 elsewhere if None.
        png: file for a picture of the last step, overwritten at each step.
        frames: new or empty folder for a picture of each step.

    Raises:
        ValueError: a negative seed or delay, or a path that pictures cannot be written to.
    """
    _check_places(seed, delay_s, png, frames)
    console = Console(highlight=False)
    delay_s = delay_s if delay_s is not None else TERMINAL_DELAY_S if console.is_terminal else 0.0
    console.print(f"[bold]{escape(show.title)}[/]: users from seed {seed}\n", soft_wrap=True)
    total = 0.0
    for visit, (seen, reward) in enumerate(visits_of(show, seed, visits, "rgb_array" if png or frames else None), 1):
        if visit > 1:
            time.sleep(delay_s)
        console.print(styled(seen["ansi"]), soft_wrap=True)
        total += reward
        if frames is not None:
            save_picture(seen["rgb_array"], frames / f"visit-{visit:04}.png")
        if png is not None:
            save_picture(seen["rgb_array"], png)
    console.print(f"reward {total:.2f} in all, {total / visits:.2f} per step")


def visits_of(
    show: WatchedAgent, seed: int, visits: int, picture_mode: str | None = None
) -> Iterator[tuple[dict[str, Any], float]]:
    """Serve the steps one by one; when an episode is over, the next user's begins.

    Args:
        show: the agent and its environment.
        seed: seed of the first user.
        visits: number of steps.
        picture_mode: a render mode besides "ansi".

    Yields:
        Renderings of a step by render mode, and its reward.
    """
    # The same user with the same sessions responds the same, so each render mode has its own environment.
    envs = {mode: show.make(mode) for mode in ("ansi", picture_mode) if mode is not None}
    over = True
    for visit in range(visits):
        seen = {}
        if over:
            for env in envs.values():
                observation, _ = env.reset(seed=None if visit else seed)
        slates_UK = show.choose(event_batch(observation), env.state)
        for mode, env in envs.items():
            observation, reward_U, terminated_U, truncated_U, _ = env.step(slates_UK)
            frames = env.render()
            assert frames is not None
            seen[mode] = frames[0]
        over = bool(terminated_U[0] or truncated_U[0])
        yield seen, float(reward_U[0])


def styled(frame: str) -> Text:
    """A visit's text with colours, which rich leaves out without a terminal."""
    text = Text(frame)
    for pattern, style in STYLES.items():
        text.highlight_regex(f"(?m){pattern}", style)
    return text


def save_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a PNG completely or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def _check_places(seed: int, delay_s: float | None, png: Path | None, frames: Path | None) -> None:
    for name, value in {"--seed": seed, "--delay": delay_s or 0}.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} {value} is not possible; give 0 or more.")
    if png is not None and (png.suffix.lower() != ".png" or png.is_dir()):
        raise ValueError(f"--png {png} is not the name of a PNG file; let it end in .png.")
    if frames is not None and frames.exists() and (not frames.is_dir() or any(frames.iterdir())):
        raise ValueError(f"--frames {frames} exists and is not an empty folder; give a new one.")
