"""Plug-ins by kind and name: the single place that turns a name into a class, function or object.

A name is one of :data:`BUILT_IN`, an import path ``package.module:Name``, or the name of an object from a Python
program (:func:`named`). A class has its own frozen dataclass ``Config``, whose fields are the options of the command
line; without one it has no options.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import uuid
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from feedgym.protocols import load

BUILT_IN: dict[str, dict[str, str]] = {
    "simulator": {
        "short_video": "feedgym.envs.short_video:ShortVideo",
        "short_video_calibrated": "feedgym.envs.short_video:ShortVideoCalibrated",
        "interest_evolution": "feedgym.envs.recsim:InterestEvolution",
        "interest_exploration": "feedgym.envs.recsim:InterestExploration",
        "long_term_satisfaction": "feedgym.envs.recsim:LongTermSatisfaction",
    },
    "tokenizer": {
        "residual_kmeans": "feedgym.tokenizers.residual_kmeans:ResidualKMeans",
        "rqvae": "feedgym.tokenizers.rqvae:RQVAE",
        "item_id": "feedgym.tokenizers.item_id:ItemId",
        "lsh": "feedgym.tokenizers.lsh:LSH",
        "random": "feedgym.tokenizers.item_id:RandomCodes",
        "index": "feedgym.tokenizers.index:Index",
    },
    "model": {
        "onerec": "feedgym.agents.onerec:OneRec",
        "tiger": "feedgym.agents.tiger:Tiger",
        "hstu": "feedgym.agents.hstu:HSTU",
    },
    "reward": {
        "reward_model": "feedgym.rewards.compose:reward_model",
        "cautious": "feedgym.rewards.compose:Cautious",
        "mixed": "feedgym.rewards.compose:Mixed",
        "worst_case": "feedgym.rewards.compose:WorstCase",
        "clicks": "feedgym.rewards.compose:clicks",
        "diverse": "feedgym.rewards.compose:diverse",
        "diversity": "feedgym.rewards.compose:Diversity",
    },
    "method": {
        "ipa": "feedgym.agents.alignment.dpo:IPA",
        "dpo": "feedgym.agents.alignment.dpo:DPO",
        "ipo": "feedgym.agents.alignment.paired:IPO",
        "cdpo": "feedgym.agents.alignment.paired:CDPO",
        "rdpo": "feedgym.agents.alignment.paired:RDPO",
        "apo": "feedgym.agents.alignment.paired:APO",
        "sppo": "feedgym.agents.alignment.sppo:SPPO",
        "cpo": "feedgym.agents.alignment.reference_free:CPO",
        "simpo": "feedgym.agents.alignment.reference_free:SimPO",
        "orpo": "feedgym.agents.alignment.reference_free:ORPO",
        "s_dpo": "feedgym.agents.alignment.s_dpo:SDPO",
        "kto": "feedgym.agents.alignment.kto:KTO",
        "grpo": "feedgym.agents.alignment.grpo:GRPO",
        "dr_grpo": "feedgym.agents.alignment.grpo:DrGRPO",
        "rloo": "feedgym.agents.alignment.grpo:RLOO",
        "ecpo": "feedgym.agents.alignment.ecpo:ECPO",
        "gbpo": "feedgym.agents.alignment.ecpo:GBPO",
        "rsft": "feedgym.agents.alignment.imitation:RSFT",
        "exp_rsft": "feedgym.agents.alignment.imitation:ExpRSFT",
    },
    "stop": {
        "never": "feedgym.experiments.align.stopping:Never",
        "disagreement": "feedgym.experiments.align.stopping:Disagreement",
        "held_out": "feedgym.experiments.align.stopping:HeldOut",
        "kl": "feedgym.experiments.align.stopping:KLBudget",
        "diversity": "feedgym.experiments.align.stopping:Diversity",
        "correlation": "feedgym.experiments.align.stopping:Correlation",
    },
    "retriever": {
        "sasrec": "feedgym.agents.sasrec:SASRec",
        "hstu": "feedgym.agents.hstu:HSTU",
        "tiger": "feedgym.agents.tiger:Tiger",
    },
    "ranker": {
        "genrank": "feedgym.agents.genrank:GenRank",
        "hstu-rank": "feedgym.agents.hstu_rank:HSTURanker",
        "mtgr": "feedgym.agents.mtgr:MTGR",
    },
}
"""Import paths by kind and name: THE registry."""

OBJECT = "object "
"""Prefix of the names of objects from a Python program."""
UNTOLD = "unlike any other"
"""Part of the name of an object that cannot be identified."""
_objects: dict[str, Any] = {}


def is_built_in(kind: str, name: str) -> bool:
    """True if a name, or an import path, is one of feedgym's own."""
    return name in BUILT_IN[kind] or name in BUILT_IN[kind].values()


def is_named(kind: str, text: str) -> bool:
    """True if a text is a name of the registry or has the form of an import path."""
    return text in BUILT_IN[kind] or ":" in text


def is_folder(kind: str, name: str) -> bool:
    """True if a simulator is named by its folder, which holds everything it needs."""
    return kind == "simulator" and Path(name).is_dir()


def resolve(kind: str, name: str) -> Any:
    """The class, function or object of a name.

    Raises:
        ValueError: there is none.
    """
    if name.startswith(OBJECT):
        if name not in _objects:
            raise ValueError(
                f"The {kind} {name.removeprefix(OBJECT)} was an object of a Python program; continue from a program "
                "that gives it again."
            )
        return _objects[name]
    if name not in BUILT_IN[kind] and ":" not in name:
        raise ValueError(
            f"{kind}={name!r} is unknown; give one of {', '.join(BUILT_IN[kind])}, or an import path such as "
            f"my_lab.own:{kind.title()}."
        )
    return load(BUILT_IN[kind].get(name, name))


def made(kind: str, given: Any) -> Any:
    """The given object, or the object of a given name; a simulator's folder stays a name."""
    return resolve(kind, given) if isinstance(given, str) and not is_folder(kind, given) else given


def named(kind: str, given: Any) -> str:
    """The name of a given plug-in: a name unchanged, or a name for an object, class or function in this process.

    The name contains a hash of the source of its module and of its state, so stages made with another object are made
    again. If these are not available the name is new each time, and a run with such an object cannot be resumed.
    """
    if isinstance(given, str):
        return given
    described = _code_of(given)
    try:
        told = hashlib.sha256(_source_of(described).encode() + _state_of(given).encode()).hexdigest()[:12]
    except Exception:  # e.g. source in a notebook or state that cannot be hashed: pickle raises anything
        told = f"{UNTOLD} {uuid.uuid4().hex[:12]}"
    name = f"{OBJECT}{described.__module__}:{described.__qualname__} {told}"
    _objects[name] = given
    return name


def _is_code(target: Any) -> bool:
    """True for a class or a function, false for an object made from one."""
    return inspect.isclass(target) or inspect.isroutine(target)


def _code_of(target: Any) -> Any:
    """A class or function itself, or the class of an object."""
    return target if _is_code(target) else type(target)


def _source_of(described: Any) -> str:
    """The source of a class's or function's module, or its own if it was typed into an interpreter."""
    module: Any = inspect.getmodule(described)
    return inspect.getsource(module if getattr(module, "__file__", None) else described)


def _state_of(given: Any) -> str:
    """A hash of an object's state.

    The state is its ``config``, if that is a dataclass, or else all attributes; for a function, its defaults and
    closure.
    """
    import joblib  # takes a tenth of a second, which making only a simulator does not need

    if inspect.isclass(given):
        return ""
    if inspect.isroutine(given):
        closed = [cell.cell_contents for cell in getattr(given, "__closure__", None) or ()]
        return joblib.hash([getattr(given, "__defaults__", None), getattr(given, "__kwdefaults__", None), closed])
    config = getattr(given, "config", None)
    return joblib.hash(vars(config) if is_dataclass(config) else vars(given))


def title_of(kind: str, name: str) -> str:
    """Its name for people: its ``title``, or its class's name."""
    target = resolve(kind, name)
    return getattr(target, "title", _code_of(target).__name__)


def key_of(kind: str, name: str) -> Any:
    """Key of the code of a name: the name, and the source file if it is not feedgym's own."""
    module = None if is_built_in(kind, name) else sys.modules.get(name.partition(":")[0])
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return name
    from feedgym.data.whole import digest_of  # imports pyarrow

    return [name, digest_of(Path(file))]


def options_key(options: Any) -> Any:
    """Key of a plug-in's options; if they name ``files``, with the hashes of their contents.

    Raises:
        ValueError: a file is missing.
    """
    if not hasattr(options, "files"):
        return options
    from feedgym.data.whole import digest_of

    return [options, [digest_of(Path(file)) for file in options.files]]


def config_type(kind: str, name: str) -> Any:
    """The dataclass of the options of a plug-in, or None."""
    target = resolve(kind, name)
    return getattr(target, "Config", None) if _is_code(target) else None


def checked_config(target: Any) -> Any:
    """An instance of the ``Config`` of a class or function, with its defaults.

    Raises:
        ValueError: the command line or a run's folder could not handle it, or its options can be changed.
    """
    name, wanted = target.__name__, getattr(target, "Config", None)
    if not (inspect.isclass(wanted) and is_dataclass(wanted)):
        raise ValueError(f"{name}.Config is {wanted!r}; set it to a frozen dataclass with the options.")
    called = f"{name}.Config ({wanted.__name__})"
    if not wanted.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"{called} can be changed; declare it @dataclass(frozen=True, kw_only=True).")
    needed = [f.name for f in fields(wanted) if f.init and f.default is MISSING and f.default_factory is MISSING]
    if needed:
        raise ValueError(f"{called} has no default for {', '.join(needed)}; give every option one.")
    from pydantic import TypeAdapter

    config, types = wanted(), TypeAdapter(wanted)
    try:
        read = types.validate_json(types.dump_json(config, warnings=False))
    except ValueError as error:
        raise ValueError(
            f"{called} cannot be read back from a run's config.json ({' '.join(str(error).split())}); let its options "
            "be numbers, texts, truth values, and tuples or frozen dataclasses of these, each with its right type."
        ) from error
    if vars(read) != vars(config):
        raise ValueError(f"{called} comes back from a run's config.json as {read}; annotate each option with its type.")
    return config


def options_of(kind: str, name: str, options: Any = None) -> Any:
    """Options as an instance of the right dataclass: its defaults for None, checked if they are a dict.

    Raises:
        ValueError: there is no such name, or the options do not fit it.
    """
    wanted = None if is_folder(kind, name) else config_type(kind, name)
    if wanted is None:
        if options:
            raise ValueError(f"{kind} {name!r} has no options, but got {options}; give {kind}_options=None.")
        return None
    if options is None:
        return wanted()
    if isinstance(options, dict):
        if unknown := options.keys() - {field.name for field in fields(wanted)}:
            raise ValueError(f"{kind} {name!r} has no option {min(unknown)!r}; leave it out.")
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(wanted).validate_python(options)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{kind}_options: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not isinstance(options, wanted):
        raise ValueError(f"{kind}_options is a {type(options).__name__}; {kind} {name!r} takes {wanted.__name__}.")
    return options


def built(kind: str, name: str, options: Any) -> Any:
    """Make an object from a class and its options; an object from a Python program is returned as it is."""
    target = resolve(kind, name)
    if not callable(target):
        return target
    return target() if options is None else target(options)


def with_seed(options: Any, seed: int, field: str = "seed") -> Any:
    """Options with a seed added to their own seed, if they have one."""
    return replace(options, **{field: getattr(options, field) + seed}) if hasattr(options, field) else options


def fill_in(config: Any, kinds: Collection[str], *, foreign: bool = False) -> None:
    """Complete the options of a frozen configuration while it is made: None gives the defaults, a dict is checked.

    Args:
        config: has a field KIND, a name, and a field KIND_options, for each kind.
        kinds: the kinds.
        foreign: also import plug-ins that are not feedgym's own, which must be trusted before.
    """
    for kind in kinds:
        name = getattr(config, kind)
        if foreign or is_built_in(kind, name) or name in _objects or is_folder(kind, name) or ":" not in name:
            options = options_of(kind, name, getattr(config, f"{kind}_options"))
            object.__setattr__(config, f"{kind}_options", options)


def untold(config: Any) -> list[str]:
    """The kinds of plug-ins in a configuration that cannot be identified: a run with them cannot be resumed."""
    return [kind for kind in getattr(config, "PLUGINS", ()) if UNTOLD in getattr(config, kind)]


def completed(config: Any) -> Any:
    """A configuration with the options of all plug-ins; those that are not feedgym's own are imported.

    Raises:
        ValueError: a name does not exist, or options do not fit.
    """
    if kinds := getattr(config, "PLUGINS", ()):
        config = replace(config)
        fill_in(config, kinds, foreign=True)
    return config
