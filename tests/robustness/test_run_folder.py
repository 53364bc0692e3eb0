"""Runs that are killed lose nothing, and damaged folders are refused or change nothing.

FEEDGYM_KILLS and FEEDGYM_DAMAGES say how many; the counts of an audit are 200 and 400, which take an hour of one core.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def last_line(script, count):
    path = Path(__file__).parent / script
    done = subprocess.run([sys.executable, path, "--count", count], capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_kill_loses_a_run():
    found = last_line("kills.py", os.environ.get("FEEDGYM_KILLS", "6"))
    assert found["lost"] == 0 and found["kills"] > 0


def test_no_damage_is_silent_or_ends_in_a_traceback():
    found = last_line("damages.py", os.environ.get("FEEDGYM_DAMAGES", "16"))
    assert found["silent"] == found["traceback"] == 0
