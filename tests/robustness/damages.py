"""Damages files of run folders, goes on with the runs, and looks for other figures and for tracebacks.

    python tests/robustness/damages.py --count 400

A damage must be refused in one line with exit code 2, or change nothing. The last line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from forked import CONFIGS, figures, finish, in_fork, resume, weigh

UNREAD = ("metrics.jsonl", "summary.json", "report.html", "run.lock")
"""Files that nothing of a run is read from."""


def flip(data, rng):
    """Another value of one bit."""
    place = rng.randrange(8 * len(data)) if data else 0
    changed = bytearray(data or b"\0")
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def cut(data, rng):
    """Only the beginning."""
    return data[: rng.randrange(len(data))] if data else b"x"


def zeros(data, rng):
    """A block of zeros, as a disk that failed leaves it."""
    low = rng.randrange(len(data)) if data else 0
    size = min(512, len(data) - low)
    return data[:low] + bytes(size) + data[low + size :]


def more(data, rng):
    """Something at the end."""
    return data + rng.randbytes(7)


def other_json(data, rng):
    """JSON of another kind."""
    return rng.choice((b"[]", b"{}", b"null", b'"text"', b"1e999", b'{"version": 2}', b"[[[[1]]]]"))


def like_json(data, rng):
    """The same JSON with a field removed, renamed, or of another value."""
    try:
        value = json.loads(data)
    except ValueError:
        return flip(data, rng)
    inside = value
    while isinstance(inside, dict | list) and inside:
        key = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if not (isinstance(inside[key], dict | list) and inside[key] and rng.random() < 0.8):
            break
        inside = inside[key]
    else:
        return b"{}"
    how, old = rng.choice(("remove", "rename", "change")), inside[key]
    if how == "change":
        numbers = {bool: lambda: not old, int: lambda: old + 1, float: lambda: old * 2 + 1}
        inside[key] = numbers.get(type(old), lambda: "other")()
    else:
        del inside[key]
        if how == "rename" and isinstance(inside, dict):
            inside[f"{key}_"] = old
    return json.dumps(value, indent=1).encode()


DAMAGES = (flip, flip, flip, cut, zeros, more, other_json, like_json, like_json)


def damage(folder, rng):
    """Damage one file of a folder; what was done."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in UNREAD]
    json_files = [path for path in files if path.suffix == ".json"]
    path = rng.choice(json_files if rng.random() < 0.5 else files)
    told = path.relative_to(folder).as_posix()
    if rng.random() < 0.08:
        path.unlink()
        return f"{told} removed"
    if rng.random() < 0.08:
        twin = rng.choice([file for file in files if file.suffix == path.suffix])
        shutil.copy(twin, path) if twin != path else None
        return f"{told} replaced by {twin.relative_to(folder).as_posix()}"
    how = rng.choice(DAMAGES if path.suffix == ".json" else DAMAGES[:6])
    path.write_bytes(how(path.read_bytes(), rng))
    return f"{told} {how.__name__}"


def killed_run(config, folder):
    """A run that was killed amid a training, with checkpoints in the work folder."""

    def work():
        def hook(event, arguments):
            if event == "os.rename" and str(arguments[1]).endswith("checkpoint-6/whole.json"):
                signal.raise_signal(signal.SIGKILL)

        sys.addaudithook(hook)
        finish(config, folder)

    assert in_fork(work, folder.with_suffix(".log")) == -signal.SIGKILL, folder.with_suffix(".log").read_text()


def outcome(work, folder, expected):
    """``same``, ``refused``, ``silent`` or ``traceback``, and the words."""
    log = folder.with_suffix(".log")
    code = in_fork(lambda: work(folder), log)
    said = log.read_text(errors="replace")
    told = [line for line in said.splitlines() if line.startswith("feedgym: ")]
    if code == 0:
        return ("same" if expected(folder, said) else "silent"), said
    return ("refused" if code == 2 and len(told) == 1 and "Traceback" not in said else "traceback"), said


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    home = Path(tempfile.mkdtemp(prefix="damages-"))
    whole = {}
    for name, make in CONFIGS.items():
        config = make()
        for kind in ("finished", "killed"):
            folder = home / f"{name}-{kind}"
            if kind == "killed":
                killed_run(config, folder)
            else:
                assert in_fork(lambda c=config, f=folder: finish(c, f), folder.with_suffix(".log")) == 0
            whole[folder] = figures(home / f"{name}-finished")
    log = home / "weights.log"
    assert in_fork(lambda: weigh(home / "aligned-finished"), log) == 0
    weights = [line for line in log.read_text().splitlines() if line.startswith("weights ")]

    def compared(source):
        return lambda folder, said: figures(folder) == whole[source]

    for source in whole:  # what is not damaged is gone on with
        folder = Path(shutil.copytree(source, home / f"sound-{source.name}"))
        (folder / "summary.json").unlink(missing_ok=True)
        found, said = outcome(resume, folder, compared(source))
        assert found == "same", said
    counts = dict.fromkeys(("same", "refused", "silent", "traceback"), 0)
    for number in range(options.count):
        source = rng.choice(list(whole))
        folder = Path(shutil.copytree(source, home / f"damaged-{number}"))
        (folder / "summary.json").unlink(missing_ok=True)
        done = damage(folder, rng)
        if source.name == "aligned-finished" and rng.random() < 0.5:
            found, said = outcome(weigh, folder, lambda folder, said: weights[0] in said)
        else:
            found, said = outcome(resume, folder, compared(source))
        counts[found] += 1
        if found in ("silent", "traceback"):
            print(found, source.name, done, said[-1500:], flush=True)
        shutil.rmtree(folder)
        folder.with_suffix(".log").unlink()
        if number % 50 == 49:
            print(counts, flush=True)
    print(json.dumps({"damages": options.count, **counts}))
    shutil.rmtree(home)
    os.sync()
    sys.exit(bool(counts["silent"] or counts["traceback"]))


if __name__ == "__main__":
    main()
