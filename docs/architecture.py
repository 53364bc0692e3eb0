"""The rooms of feedgym and who imports whom, read off the source; nothing of feedgym is imported.

A room is a package, or a file that stands beside the packages. The numbers count pairs of files, one of which imports
the other, wherever in the file (imports in functions and those for types included).

Example:
    python docs/architecture.py
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "feedgym"


def modules() -> dict[str, Path]:
    """The files of feedgym by the name that they are imported by."""
    names = {path: (ROOT.name, *path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.rglob("*.py"))}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def imported(path: Path, files: dict[str, Path]) -> set[str]:
    """The names of feedgym's files that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (
                inside if inside <= files.keys() else {node.module} | inside
            )  # a package's files, or a file's names
    return names & files.keys()


def room_of(name: str, files: dict[str, Path]) -> str:
    """The package that a file lies in; a file beside the packages is a room of its own."""
    package = name if files[name].name == "__init__.py" else name.rpartition(".")[0]
    return name if package == ROOT.name else package


def lines() -> Iterator[str]:
    """What is printed: each room with the first line of its docstring, its files, and the rooms that they import."""
    files = modules()
    rooms: dict[str, list[str]] = {}
    for name in files:
        rooms.setdefault(room_of(name, files), []).append(name)
    for room, members in rooms.items():
        docstring = ast.get_docstring(ast.parse(files[room].read_text(encoding="utf-8"))) or ""
        yield f"{room.replace('.', '/')}: {docstring.partition(chr(10))[0]}"
        inside = [name.rpartition(".")[2] for name in members if name != room]
        if inside:
            yield f"    files    {' '.join(inside)}"
        arrows = Counter(room_of(there, files) for name in members for there in imported(files[name], files))
        del arrows[room]
        if arrows:
            names = (f"{there.removeprefix('feedgym.')} {count}" for there, count in arrows.most_common())
            yield f"    imports  {', '.join(names)}"
        yield ""


if __name__ == "__main__":
    print("\n".join(lines()))
