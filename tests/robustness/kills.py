"""Kills runs at random moments and before changes of the disk, and compares the figures they end in with a calm run's.

    python tests/robustness/kills.py --count 200

A third of the runs is killed once more while it goes on. The last line is JSON; a lost run keeps its folder.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from forked import CONFIGS, figures, finish, in_fork

CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
"""Audit events of changes of the disk, besides opening a file to write."""


def on_change(act):
    """Call ``act`` before every change of the disk by this process."""

    def hook(event, arguments):
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            act()

    sys.addaudithook(hook)


def calm_run(config, folder):
    """An undisturbed run: its changes of the disk and its seconds of computing; the figures lie in the folder."""
    tally = folder.with_suffix(".changes")

    def work():
        stream = os.open(tally, os.O_WRONLY | os.O_CREAT)
        on_change(lambda: os.write(stream, b"."))
        finish(config, folder)
        used = resource.getrusage(resource.RUSAGE_SELF)
        folder.with_suffix(".seconds").write_text(str(used.ru_utime + used.ru_stime))

    code = in_fork(work, folder.with_suffix(".log"))
    assert code == 0, folder.with_suffix(".log").read_text()
    return tally.stat().st_size, float(folder.with_suffix(".seconds").read_text())


def killed(config, folder, rng, changes, seconds):
    """Run, or go on, until a kill; True if it was killed before it was through."""

    def before_a_change():
        left = [rng.randrange(1, changes + 1)]

        def act():
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        on_change(act)
        finish(config, folder)

    def after_a_while():
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process at once, as a kill does
        signal.setitimer(signal.ITIMER_PROF, rng.uniform(0.01, seconds))
        finish(config, folder)

    return in_fork(rng.choice((before_a_change, after_a_while)), folder.with_suffix(".log")) < 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    configs = {name: make() for name, make in CONFIGS.items()}
    calm = {name: calm_run(config, home / name) for name, config in configs.items()}
    kills, runs, lost = 0, 0, []
    while kills < options.count:
        name, runs = rng.choice(list(configs)), runs + 1
        folder = home / f"{name}-{runs}"
        for _ in range(rng.choice((1, 1, 2))):
            rng.seed(f"{options.seed} {runs} {kills}")  # a fork's draws do not come back
            kills += killed(configs[name], folder, rng, *calm[name])
        code = in_fork(lambda name=name, folder=folder: finish(configs[name], folder), folder.with_suffix(".log"))
        if code != 0 or figures(folder) != figures(home / name):
            lost.append(str(folder))
            print("lost", folder, folder.with_suffix(".log").read_text()[-2000:], flush=True)
        else:
            shutil.rmtree(folder)
        if runs % 20 == 0:
            print(f"{kills} kills of {runs} runs, {len(lost)} lost", flush=True)
    print(json.dumps({"kills": kills, "runs": runs, "lost": len(lost)}))
    if not lost:
        shutil.rmtree(home)
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
