"""README's example runs, and its links lead somewhere."""

import re
from dataclasses import replace
from pathlib import Path

import feedgym
from feedgym.experiments.presets import PRESETS

ROOT = Path(feedgym.__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_trains_and_judges(tmp_path, monkeypatch, capsys):
    without_ray = replace(PRESETS["onerec-ipa-smoke"](), ray="off")  # its start takes longer than the work
    monkeypatch.setitem(PRESETS, "onerec-ipa-smoke", lambda: without_ray)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.split("\n")) <= 12
    exec(example, {"__name__": "readme"})
    said = capsys.readouterr().out
    assert re.search(r"^aligned +true reward per visit \d", said, re.MULTILINE)


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) > 15
    assert not [target for target in targets if not (ROOT / target).exists()]
