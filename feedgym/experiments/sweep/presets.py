"""Configurations of sweeps: what is varied, by what it is judged, and how many trials run at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import tyro
from annotated_types import Interval

from feedgym.experiments.align.presets import ALIGN_PRESETS
from feedgym.experiments.methods.presets import check_list
from feedgym.experiments.options import pairs_of, with_options
from feedgym.experiments.retrieval.presets import RETRIEVAL_PRESETS
from feedgym.experiments.sweep.space import Domain, spaces_of
from feedgym.plugins import completed
from feedgym.ranges import Count, Few, Passes, Ranged, Seed, check_choices

DECIDED = {"seed": "--seeds", "ray": "--ray"}
"""Options of an experiment that a sweep sets itself, with the replacement."""
WATCHERS = 2
"""Reward models that judge the trials, if the options do not say how many."""
Objective = Literal["held_out", "proxy", "truth"]


@dataclass(frozen=True, kw_only=True)
class SweepRun(Ranged):
    """Options of all sweeps."""

    presets: ClassVar[Mapping[str, Callable[[], Any]]]
    """The presets of which options may vary."""

    preset: Annotated[str, tyro.conf.Suppress]
    """The preset of `feedgym run` of which options vary."""
    space: tuple[str, ...] = ()
    """NAME=SPEC options that vary: a name of `feedgym run`, and a function of Ray Tune. For example
    method.beta=loguniform(0.05,1) rounds.num=choice(2,4,6) method=choice(dpo,ipa). Others are uniform, quniform,
    qloguniform, randint, qrandint, lograndint and qlograndint. Put each in quotes for the shell."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """NAME=VALUE options of all trials: --set log.users=1000 data=my_log.parquet."""
    num_samples: Passes = 16
    """Number of configurations to draw."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds of the experiment; each drawn configuration has a trial per seed, and the mean over them counts."""
    seed: Seed = 0
    """Seed of the draws."""
    grace: Count = 1
    """Rounds (epochs of a retrieval model) that every trial may run before ASHA may stop it. With as many as a trial
    has, none is stopped."""
    reduction: Annotated[int, Interval(ge=2, le=1000)] = 3
    """ASHA's reduction factor: of the trials that reach one of its rounds, one in so many goes on. The next such round
    comes after so many times as many rounds."""
    workers: Few = 2
    """Number of trials to run at a time, one core each. With more than one, timing decides which trials ASHA
    compares, and so which it stops. The figures of a trial do not depend on it."""
    ray: str = "local"
    """Place to run trials: local (processes on this machine), or the address of a Ray cluster that sees the same
    folders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in self.presets:
            known = ", ".join(self.presets)
            raise ValueError(f"preset={self.preset!r} is none that this sweep knows; choose one of {known}.")
        if self.ray == "off":
            raise ValueError("ray='off' runs nothing: Ray Tune runs the trials; leave it local.")
        check_list(self, "seeds")
        for what, names in (("space", self.domains()), ("set", pairs_of(self.options, "set"))):
            for name in names:
                if name in DECIDED:
                    raise ValueError(f"{what} has {name}, which a sweep decides itself, by {DECIDED[name]}; drop it.")
        if twice := [name for name in pairs_of(self.options, "set") if name in self.domains()]:
            raise ValueError(f"set has {twice[0]}, which the space varies; give it once.")
        for draw in self._draws():
            with_options(self._fixed(), draw)  # reports options that do not exist; code of others is not imported

    def domains(self) -> dict[str, Domain]:
        """The space, by the option's dotted name."""
        return spaces_of(self.space)

    def base(self) -> Any:
        """The preset with the options of all trials."""
        return completed(self._fixed())

    def _fixed(self) -> Any:
        return with_options(self.presets[self.preset](), pairs_of(self.options, "set"))

    def drawn(self, draw: Mapping[str, Any]) -> Any:
        """The configuration of a draw: options by their dotted names, seed included."""
        return completed(with_options(self.base(), draw))

    def examples(self) -> Iterator[Any]:
        """Configurations that together have values of every domain from end to end."""
        yield from map(self.drawn, self._draws())

    def _draws(self) -> Iterator[dict[str, Any]]:
        values = {name: domain.examples() for name, domain in self.domains().items()}
        for at in range(max(map(len, values.values()), default=0)):
            yield {name: some[at % len(some)] for name, some in values.items()}

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        kinds = getattr(self.presets[self.preset](), "PLUGINS", ())
        given = {name: [value] for name, value in pairs_of(self.options, "set").items()}
        given |= {name: list(domain.arguments) for name, domain in self.domains().items()}
        named = [(kind, str(value)) for kind in kinds for value in given.get(kind, ())]
        return [*named, ("ray", self.ray)]

    @property
    def judged_by(self) -> str:
        """The figure that is maximised, for people."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AlignSweep(SweepRun):
    """Searches the options of an alignment with Ray Tune: random draws, and ASHA, which stops weak trials early.

    A trial is an alignment without its last part: nobody is served. It is judged by the sessions that its agent writes
    for the probed users, who are in no training and are not the judging users. Trials share a store, so log, tokenizer,
    base and reward model are made once. A sweep that was stopped continues with --resume FOLDER.
    """

    presets: ClassVar = ALIGN_PRESETS
    objective: Objective = "held_out"
    """Figure to maximise, a mean over sessions of the probed users: held_out, proxy or truth. held_out is the score of
    reward models that are not optimised (--set probe.watchers=2). proxy is the optimised reward itself, which favours
    over-optimisation. The truth is FOR STUDY ONLY: no platform has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, objective=Objective)

    def base(self) -> Any:
        """The preset with the options of all trials, with watchers, and with probed users who are not judging users."""
        config = super().base()
        if self.objective == "truth" and config.data is not None:
            raise ValueError("objective='truth' needs simulated users; a recorded log does not hold the truth.")
        probe = config.probe if config.data is None else replace(config.probe, apart=True)
        if self.objective == "held_out" and not probe.watchers:
            probe = replace(probe, watchers=WATCHERS)
        return replace(config, probe=probe)

    @property
    def judged_by(self) -> str:
        """The figure that is maximised, for people."""
        return {
            "held_out": "the mean score of reward models that no trial optimises",
            "proxy": "the mean score of the optimised reward",
            "truth": "the true reward (study only)",
        }[self.objective]


@dataclass(frozen=True, kw_only=True)
class RetrievalSweep(SweepRun):
    """Searches the options of a next-item model with Ray Tune: random draws, and ASHA, which stops weak trials.

    A trial trains one model. It is judged by NDCG@10 on the validation targets: each user's last item but one. The test
    targets are not looked at. Trials share a store, so the log is made once. A sweep that was stopped continues with
    --resume FOLDER.
    """

    presets: ClassVar = RETRIEVAL_PRESETS

    @property
    def judged_by(self) -> str:
        """The figure that is maximised, for people."""
        return "NDCG@10 on validation targets"


SWEEPS: dict[str, Callable[[], SweepRun]] = {
    **{name: partial(AlignSweep, preset=name) for name in ALIGN_PRESETS},
    **{name: partial(RetrievalSweep, preset=name) for name in RETRIEVAL_PRESETS},
}
"""The sweeps of `feedgym sweep`, by preset."""
