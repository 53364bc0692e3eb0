"""Every option is used: something reads it, besides its own checks, the keys of stages and estimates of memory.

The sources are parsed and never run. The class of an expression follows from the annotations in them; a read of an
attribute counts for the classes that its receiver may be of, and for none where they do not say. A configuration that
is unpacked into another (``Other(**vars(config))``) is used where the other's field of the same name is.
"""

import ast
import functools
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import feedgym
from feedgym import cli
from feedgym.experiments.presets import CONFIGS

UNKNOWN = "?"
"""Beside the classes that an expression may be of: it may be of any."""

NO_USE = {"__post_init__", "plan", "code", "plan_log", "recorded_key", "check_config", "check_ranges", "check_memory"}
"""Functions that check options or list them for the keys of stages, and do nothing with them."""
NO_USE_IN = {"feedgym.experiments.memory", "feedgym.ranges", "feedgym.trust"}
"""Modules of such functions."""

UNPACKED = {
    "feedgym.agents.fit:FitConfig": ("feedgym.agents.pretrain:PretrainConfig",),
}
"""Configurations that are unpacked where the sources do not say into which."""

OPEN = {
    "feedgym.cli:_inspect.options": ["feedgym.cli:InspectArguments"],
    "feedgym.agents.session_model:from_tokenizer.config": [
        "feedgym.agents.onerec:OneRecConfig",
        "feedgym.agents.tiger:TigerConfig",
    ],
}
"""Classes of parameters that are annotated as Any."""

NOT_READ = {
    "feedgym.agents.tiger:TigerConfig.initializer_range": "transformers' _init_weights reads it",
}
"""Options that are used and not read as attributes, each with its use."""


@dataclass
class Class:
    """A class of the sources."""

    key: str
    module: str
    node: ast.ClassDef
    bases: list[str] = field(default_factory=list)
    fields: dict[str, ast.expr] = field(default_factory=dict)
    """Annotated names of the body."""
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)

    def assigned(self, *names):
        """What the body gives the attributes of such names: those of classes, without their modules."""
        for node in self.node.body:
            if isinstance(node, ast.Assign) and node.targets[0].id in names:
                yield _last(node.value)


class Sources:
    """Modules by name, and what their names mean."""

    def __init__(self, modules):
        self.trees = {name: ast.parse(text) for name, text in modules.items()}
        self.names = {name: {} for name in modules}
        self.classes, self.functions = {}, {}
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module:
                    self.names[module] |= {a.asname or a.name: f"{node.module}:{a.name}" for a in node.names}
                elif isinstance(node, ast.ClassDef):
                    self.names[module][node.name] = f"{module}:{node.name}"
                    self.classes[f"{module}:{node.name}"] = self._class(module, node)
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self.names[module][node.name] = f"{module}:{node.name}"
                    self.functions.setdefault(f"{module}:{node.name}", node)
                elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                        if isinstance(target, ast.Name):
                            self.names[module].setdefault(target.id, node)
        for known in self.classes.values():
            known.bases = [str(self.resolve(known.module, b) or f"?:{b}") for b in map(_last, known.node.bases)]
        self.mro = {key: self._mro(key) for key in self.classes}
        self.related = {
            key: set(self.mro[key]) | {other for other in self.classes if key in self.mro[other]}
            for key in self.classes
        }
        self._attributes, self._busy = {}, set()

    def _class(self, module, node):
        body = {n.target.id: n.annotation for n in node.body if isinstance(n, ast.AnnAssign)}
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        return Class(f"{module}:{node.name}", module, node, fields=body, methods=methods)

    def _mro(self, key):
        bases = self.classes[key].bases if key in self.classes else []
        return list(dict.fromkeys([key, *(above for base in bases for above in self._mro(base))]))

    def resolve(self, module, name):
        """What a name of a module means: a key of a class or function, a node, or None."""
        found = self.names.get(module, {}).get(name)
        if isinstance(found, str) and found not in self.classes and found not in self.functions:
            origin, _, its_name = found.partition(":")
            return self.resolve(origin, its_name) or found
        return found

    # ------------------------------------------------------------ configurations

    def is_config(self, key):
        """Whether a class holds options."""
        above = self.mro[key]
        ends = tuple(base.rpartition(":")[2] for base in above)
        named = ends[0].endswith(("Config", "Run", "Options", "Arguments", "Size", "Sizes", "Weights", "Filter"))
        decorated = any("kw_only=True" in ast.unparse(d) for d in self.classes[key].node.decorator_list)
        return ("Ranged" in ends[1:]) or "PreTrainedConfig" in ends or (named and decorated)

    def options(self, key):
        """Names of the fields of a configuration, inherited ones included."""
        found = {}
        for above in reversed(self.mro[key]):
            if above in self.classes:
                found |= self.classes[above].fields
        found |= {name: ast.Constant(None) for sizes in self.sizes(key) for name in self.options(sizes)}
        return [name for name, hint in found.items() if "ClassVar" not in ast.unparse(hint)]

    def sizes(self, key):
        """The configurations whose fields are fields of a model's, too (SizedConfig)."""
        known = self.classes[key]
        found = {f"{self.resolve(known.module, name)}" for name in known.assigned("sizes")}
        return found & set(self.classes)

    # ------------------------------------------------------------ types

    def annotation(self, module, node):
        """Classes that an annotation names."""
        if node is None:
            return {UNKNOWN}
        if isinstance(node, ast.Constant):
            return (
                self.annotation(module, ast.parse(node.value, mode="eval").body)
                if isinstance(node.value, str)
                else set()
            )
        if isinstance(node, ast.BinOp):
            return self.annotation(module, node.left) | self.annotation(module, node.right)
        if isinstance(node, ast.Subscript):
            what = _last(node.value)
            if what == "type":
                return {f"type {key}" for key in self.annotation(module, node.slice)}
            if what in ("Literal", "ClassVar", "NDArray"):
                return set()
            args = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            args = args[-1:] if what == "Callable" else args
            return set().union(*(self.annotation(module, a) for a in args))
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = _last(node)
            found = self.resolve(module, name)
            if isinstance(found, (ast.Assign, ast.AnnAssign)):  # an alias, or a TypeVar
                return {UNKNOWN} if "TypeVar" in ast.unparse(found.value) else self.annotation(module, found.value)
            if found in self.classes:
                return {found}
            return {UNKNOWN} if name in ("Any", "Self", "object") else set()
        return set()

    def attribute(self, key, name):
        """Classes of an attribute of a class."""
        if (key, name) not in self._attributes:
            if (key, name) in self._busy:
                return set()
            self._busy.add((key, name))
            self._attributes[key, name] = self._attribute(key, name)
            self._busy.discard((key, name))
        return self._attributes[key, name]

    def _attribute(self, key, name):
        if name == "config":  # a base class's is that of its subclasses
            related = [self.classes[other] for other in self.related[key] if other in self.classes]
            found = {
                f"{self.resolve(known.module, name)}"
                for known in related
                for name in known.assigned("config_class", "Config")
            }
            if found & set(self.classes):
                return found & set(self.classes)
        for above in self.mro[key]:
            known = self.classes.get(above)
            if known is None:
                continue
            if name in known.methods:
                return self.returned(known.module, known.methods[name], key)
            if name in known.fields:
                return self.annotation(known.module, known.fields[name])
            for method in known.methods.values():
                for node in ast.walk(method):
                    for target, value in _assigned(node):
                        if isinstance(target, ast.Attribute) and target.attr == name and _is_self(target.value):
                            if isinstance(node, ast.AnnAssign) and "Any" not in ast.unparse(node.annotation):
                                return self.annotation(known.module, node.annotation)
                            return Scope(self, known.module, method, known.key).type_of(value)
        return {UNKNOWN}

    def returned(self, module, function, owner=None):
        """Classes that a function's annotation promises."""
        if function.returns is not None and ast.unparse(function.returns) == "Self" and owner:
            return {owner}
        return self.annotation(module, function.returns)


def _last(node):
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _assigned(node):
    """Pairs of a target and its value; of a tuple one by one."""
    if isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
        return [(node.target, node.value)] if node.value else []
    pairs = []
    for target in node.targets if isinstance(node, ast.Assign) else []:
        targets = target.elts if isinstance(target, ast.Tuple) else [target]
        alike = isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(targets) > 1
        pairs += zip(targets, node.value.elts if alike else [node.value] * len(targets), strict=True)
    return pairs


class Scope:
    """The names of a function and of those around it, with the classes they may be of."""

    def __init__(self, sources, module, function, owner=None, outer=None):
        self.sources, self.module, self.owner, self.function = sources, module, owner, function
        self.names = dict(outer.names) if outer else {}
        if isinstance(function, ast.FunctionDef):
            self._parameters(function)
        for _ in range(2):  # a name may be made of one below
            self._assignments(function)

    def _parameters(self, function):
        given = function.args
        for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
            if arg is not None:
                told = OPEN.get(f"{self.module}:{function.name}.{arg.arg}")
                self.names[arg.arg] = set(told or self.sources.annotation(self.module, arg.annotation))
        if self.owner and given.args and given.args[0].arg in ("self", "cls"):
            self.names[given.args[0].arg] = {self.owner}

    def _assignments(self, function):
        fresh = {}
        for node in _naming(function):
            for target, value in _assigned(node):
                if isinstance(target, ast.Name):
                    found = self.type_of(value)
                    if isinstance(node, ast.AnnAssign) and UNKNOWN in found:
                        found = self.sources.annotation(self.module, node.annotation)
                    fresh[target.id] = fresh.get(target.id, set()) | found
            if isinstance(node, (ast.For, ast.comprehension)):
                for target in node.target.elts if isinstance(node.target, ast.Tuple) else [node.target]:
                    if isinstance(target, ast.Name):
                        fresh[target.id] = fresh.get(target.id, set()) | self.type_of(node.iter)
            if isinstance(node, ast.Call) and _last(node.func) == "isinstance" and isinstance(node.args[0], ast.Name):
                name, kinds = node.args[0].id, node.args[1]
                if UNKNOWN in self.names.get(name, ()):
                    fresh[name] = self.names[name] | self.sources.annotation(self.module, kinds)
        self.names |= fresh

    def type_of(self, node):
        """Classes that an expression may be of."""
        if isinstance(node, ast.Name):
            if node.id in self.names:
                return self.names[node.id]
            found = self.sources.resolve(self.module, node.id)
            return {f"type {found}"} if isinstance(found, str) and found in self.sources.classes else {UNKNOWN}
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BoolOp):
            return set().union(*map(self.type_of, node.values))
        if isinstance(node, ast.IfExp):
            return self.type_of(node.body) | self.type_of(node.orelse)
        if isinstance(node, (ast.NamedExpr, ast.Subscript, ast.Starred, ast.Await)):
            return self.type_of(node.value)
        if isinstance(node, (ast.Tuple, ast.List)):
            return set().union(*map(self.type_of, node.elts))
        return set()

    def _attribute(self, node):
        found = set()
        for base in self.type_of(node.value):
            found |= self.sources.attribute(base, node.attr) if base in self.sources.classes else {UNKNOWN}
        return found

    def _call(self, node):
        name = _last(node.func)
        if name in ("replace", "with_num_codes", "copy", "deepcopy", "next", "iter", "enumerate", "zip") and node.args:
            return set().union(*map(self.type_of, node.args))
        if name == "seeded" and node.args:
            return self.type_of(node.args[0])
        if name == "_parse_run":
            return {"feedgym.cli:RunOptions", UNKNOWN}
        if name == "_parse":
            return {t.removeprefix("type ") for t in self.type_of(node.args[0])}
        if isinstance(node.func, ast.Name) and node.func.id not in self.names:
            found = self.sources.resolve(self.module, name)
            if isinstance(found, str) and found in self.sources.functions:
                return self.sources.returned(found.partition(":")[0], self.sources.functions[found])
        if isinstance(node.func, ast.Attribute) and name not in ("of",):
            return {t.removeprefix("type ") for t in self._attribute(node.func)}
        made = {t.removeprefix("type ") for t in self.type_of(node.func) if t.startswith("type ")}
        return made or {UNKNOWN}


@functools.cache
def _within(function):
    """Nodes of a function in their order, without those of the functions and classes inside of it."""
    found, stack = [], list(ast.iter_child_nodes(function))[::-1]
    while stack:
        found.append(node := stack.pop())
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            stack += list(ast.iter_child_nodes(node))[::-1]
    return found


@functools.cache
def _naming(function):
    """Those nodes that may give names their classes."""
    kinds = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension, ast.Call)
    return [node for node in _within(function) if isinstance(node, kinds)]


class Reads:
    """What the sources read of which class, and which configurations they unpack into which."""

    def __init__(self, sources):
        self.sources = sources
        self.of_class, self.unpacked = set(), set()
        for module, tree in sources.trees.items():
            if module not in NO_USE_IN:
                self._walk(module, tree, None, None)

    def _walk(self, module, function, owner, outer):
        scope = Scope(self.sources, module, function, owner, outer)
        for node in _within(function):
            if isinstance(node, ast.ClassDef):
                self._walk(module, node, f"{module}:{node.name}", scope)
            elif isinstance(node, ast.FunctionDef) and node.name not in NO_USE:
                self._walk(module, node, owner, scope)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                self._read(scope.type_of(node.value), node.attr)
            elif isinstance(node, ast.Call):
                self._getattr(scope, node)
                self._unpack(scope, node)

    def _read(self, kinds, name):
        self.of_class |= {(kind, name) for kind in kinds}

    def _getattr(self, scope, node):
        """``getattr(x, "a")``, also with the names of a loop over texts."""
        if _last(node.func) != "getattr":
            return
        kinds, name = scope.type_of(node.args[0]), node.args[1]
        if isinstance(name, ast.Constant):
            self._read(kinds, name.value)
        for loop in ast.walk(scope.function):
            if isinstance(loop, (ast.For, ast.comprehension)) and _last(loop.target) == _last(name) != "":
                for text in _texts(self.sources, scope.module, loop.iter):
                    self._read(kinds, text)

    def _unpack(self, scope, node):
        """``Other(**vars(x), ...)`` and ``Other(**{f.name: getattr(x, f.name) for f in fields(x)})``."""
        made = {t.removeprefix("type ") for t in scope.type_of(node.func) if t.startswith("type ")}
        for inner in (n for keyword in node.keywords if keyword.arg is None for n in ast.walk(keyword.value)):
            if isinstance(inner, ast.Call) and _last(inner.func) in ("vars", "getattr"):
                self.unpacked |= {(kind, other) for kind in scope.type_of(inner.args[0]) for other in made}


def _texts(sources, module, node):
    """The texts in an expression, and in the values of its names."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
        elif isinstance(part, ast.Name):
            found = sources.resolve(module, part.id)
            if isinstance(found, (ast.Assign, ast.AnnAssign)):
                yield from _texts(sources, module, found.value)


def unused(reads, unpacked):
    """Options, as ``module:Class.field``, that nothing reads."""
    sources = reads.sources
    configs = {key: sources.options(key) for key in sources.classes if sources.is_config(key)}
    into = {key: set() for key in configs}
    for kind, other in (*reads.unpacked, *((kind, other) for kind, others in unpacked.items() for other in others)):
        if kind in configs and other in configs:
            into[kind].add(other)
    for config in configs:
        for sizes in sources.sizes(config):
            into[sizes].add(config)

    def is_read(key, name, seen=()):
        """Whether a configuration's field is read, also in a class above or below, or where it is unpacked to."""
        if any((other, name) in reads.of_class for other in sources.related[key]):
            return True
        further = {other for kind in sources.related[key] for other in into.get(kind, ())} - {key, *seen}
        return any(name in configs[other] and is_read(other, name, (*seen, key)) for other in further)

    return {
        f"{key}.{name}"
        for key, names in configs.items()
        for name in names
        if not any(name in configs[sizes] for sizes in sources.sizes(key)) and not is_read(key, name)
    }


@functools.cache
def feedgym_reads():
    root = Path(feedgym.__file__).parent
    modules = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text()
    return Reads(Sources(modules))


def test_every_option_is_used():
    assert unused(feedgym_reads(), UNPACKED) - set(NOT_READ) == set()


def test_what_is_said_beside_the_sources_is_needed():
    reads = feedgym_reads()
    assert set(NOT_READ) <= unused(reads, UNPACKED), "it is read now, or gone; take it out of NOT_READ"
    for kind in UNPACKED:
        less = {other: others for other, others in UNPACKED.items() if other != kind}
        assert unused(reads, less) > unused(reads, UNPACKED), f"take {kind} out of UNPACKED"
    parameters = {
        f"{module}:{node.name}.{arg.arg}"
        for module, tree in reads.sources.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for arg in (*node.args.args, *node.args.kwonlyargs)
        if arg.annotation is not None and ast.unparse(arg.annotation) == "Any"
    }
    assert set(OPEN) <= parameters, "its annotation says it now, or it is gone; take it out of OPEN"


def nested(hint):
    """The dataclasses in a type, and in the types of their fields."""
    if is_dataclass(hint):
        yield hint
        for inner in get_type_hints(hint).values():
            yield from nested(inner)
    for part in get_args(hint):
        yield from nested(part)


def test_all_configurations_of_experiments_and_commands_are_walked():
    sources = feedgym_reads().sources
    commands = [kind for kind in vars(cli).values() if is_dataclass(kind) and kind.__module__ == cli.__name__]
    kinds = {kind for given in (*CONFIGS.values(), *commands) for kind in nested(given)}
    assert len(kinds) > 40 and len(commands) > 6
    for kind in kinds:
        key = f"{kind.__module__}:{kind.__qualname__}"
        assert sources.is_config(key)
        assert sources.options(key) == [f.name for f in fields(kind)], key
    assert "feedgym.cli:InspectArguments" in sources.classes  # inside of a function


OPTIONS = """
@dataclass(frozen=True, kw_only=True)
class InnerConfig(Ranged):
    seed: int = 0
    width: int = 8

@dataclass(frozen=True, kw_only=True)
class OuterRun(Ranged):
    seed: int = 0
    inner: InnerConfig = InnerConfig()

    def __post_init__(self):
        assert self.seed >= 0 and self.inner.width > 0

@dataclass(frozen=True, kw_only=True)
class NetConfig(Ranged):
    seed: int = 0
    width: int = 8

def plan(config: OuterRun):
    return [config.seed, config.inner.width]
"""


@pytest.mark.parametrize(
    ("use", "left"),
    [
        ("", {"OuterRun.seed", "OuterRun.inner", "InnerConfig.seed", "InnerConfig.width"}),
        ("def run(config: OuterRun): return config.seed", {"OuterRun.inner", "InnerConfig.seed", "InnerConfig.width"}),
        ("def run(config): return config.seed, config.inner.width", {"OuterRun.seed", "OuterRun.inner"}),
        (
            "def run(config: OuterRun):\n  part = config.inner\n  return config.seed, part.seed, part.width",
            set(),
        ),
        (
            "def run(config: OuterRun):\n  return config.seed, NetConfig(**vars(config.inner))\n"
            "def net(config: NetConfig): return config.seed",
            {"InnerConfig.width"},
        ),
        (
            "class Net:\n  def __init__(self, config: OuterRun | None): self.config = config\n"
            "  def run(self):\n    return [getattr(self.config.inner, name) for name in ('seed', 'width')]",
            {"OuterRun.seed"},
        ),
    ],
)
def test_an_option_that_nothing_reads_is_found(use, left):
    found = unused(Reads(Sources({"lab": OPTIONS + use})), {})
    found = {name.removeprefix("lab:") for name in found if "NetConfig" not in name}
    if "config)" in use:  # whose class nobody says
        left = left | {"InnerConfig.seed", "InnerConfig.width"}
    assert found == left
