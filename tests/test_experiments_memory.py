"""What cannot fit into memory is refused before any work, and every preset fits."""

from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from feedgym.cli import MISTAKE, main
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.memory import check_memory, needs
from feedgym.experiments.presets import COMPARISONS, PRESETS


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 32 GiB."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * 2**30))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=0))


@pytest.mark.parametrize("name", [*PRESETS, *COMPARISONS])
def test_every_preset_fits_and_is_looked_at(name):
    config = {**PRESETS, **COMPARISONS}[name]()
    check_memory(config)
    assert max(need.num_bytes for need in needs(config)) > 0
    assert any(need.what == "training the model" for need in needs(config)) or name.startswith(("rllib", "ope"))


@pytest.mark.parametrize(
    ("part", "sizes", "what"),
    [
        ("log", {"users": 10**9}, "the log"),
        ("log", {"users": 10**6, "visits": 10**5}, "the log"),
        ("judge", {"users": 10**9}, "the judging users' visits"),
        ("judge", {"beams": 10**9}, "the sessions sampled at a time"),
        ("probe", {"users": 10**9}, "a probe"),
        ("rounds", {"serve": 10**9}, "the sessions that rounds serve"),
        ("rounds", {"truth_replicas": 10**9}, "a session's responses"),
        ("model_options", {"d_model": 65_536}, "training the model"),
        ("model_options", {"d_ff": 65_536, "num_experts": 1024}, "training the model"),
        ("simulator_options", {"num_items": 10**9}, "the catalogue"),
        ("simulator_options", {"memory_items": 10**9}, "the memory of 512 users"),
        ("reward_model", {"width": 65_536}, "training the reward model"),
        ("rollouts", {"num_actors": 1024}, "the actors"),
    ],
)
def test_what_is_too_large_is_named_with_the_options_and_both_sizes(part, sizes, what):
    config = replace(smoke(), **{part: replace(getattr(smoke(), part), **sizes)})
    with pytest.raises(ValueError, match=rf"{what} would take [\d,.]+ GiB or more, and this machine has 32.0") as error:
        check_memory(config)
    assert f"{part}.{next(iter(sizes))}=" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["--session-length", "--history-length"])
def test_the_command_line_refuses_it_and_leaves_nothing(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "onerec-ipa-smoke", option, "1000000", "--run", str(tmp_path / "run")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == MISTAKE and "lower one of them" in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["simulate", "--out", "out"], ["realism", "random:a", "random:b", "--out", "out"]])
def test_simulated_logs_are_refused_before_the_simulator_is_made(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([*command, "--users", "1000000000"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == MISTAKE and "users=1000000000" in line and "lower one of them" in line
    assert not list(tmp_path.iterdir())
