"""What a folder names is imported only if it is feedgym's own, or the user says so."""

import inspect
import json
import pickle
import re
import sys
from dataclasses import fields, replace

import pytest

from feedgym.agents.ranker import Ranker
from feedgym.agents.rllib.checkpoints import TENSORS, read_checkpoint
from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.cli import check_code, main
from feedgym.data.whole import new_checkpoint
from feedgym.envs.feed import make_simulator
from feedgym.envs.learned import LearnedSimulator
from feedgym.envs.registration import ENVIRONMENTS
from feedgym.envs.truth import RewardWeights
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.presets import CONFIGS
from feedgym.experiments.rl.presets import smoke as rl_smoke
from feedgym.experiments.run import Plan, Run
from feedgym.experiments.simulator.presets import learned_simulator_smoke
from feedgym.plugins import BUILT_IN
from feedgym.protocols import load, make
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.trust import OTHERS, check_config, check_named

EVIL = "evil_lab:Mine"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The current folder has a module that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    (tmp_path / "evil_lab.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Mine: pass\n")
    yield tmp_path
    sys.modules.pop("evil_lab", None)
    assert not (tmp_path / "mark").exists() and str(tmp_path) not in sys.path


def written(folder, config):
    Run(folder, config, Plan(), tracker="none").close()
    (folder / "summary.json").write_text("{}")
    return str(folder)


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    return said


# ---------------------------------------------------------------- what is free


def test_feedgyms_own_are_what_it_offers():
    own = {kind: {name: load(path) for name, path in names.items()} for kind, names in BUILT_IN.items()}
    assert all(issubclass(ranker, Ranker) for ranker in own["ranker"].values())
    assert set(BUILT_IN["simulator"].values()) == {simulator for _, simulator, _ in ENVIRONMENTS.values()}
    assert all(callable(simulator.respond) for simulator in own["simulator"].values())
    assert all(issubclass(tokenizer, CodeTokenizer) for tokenizer in own["tokenizer"].values())
    assert all(callable(model.build) and callable(model.step) for model in own["model"].values())
    assert all(callable(method.update) for method in own["method"].values())
    configured = [
        made for kind in ("simulator", "tokenizer", "model", "method", "ranker") for made in own[kind].values()
    ]
    assert all(made.Config.__dataclass_params__.frozen for made in configured)
    given = (defaults.get("reward") for _, _, defaults in ENVIRONMENTS.values())
    assert OTHERS["weights"] == {reward for reward in given if reward}
    assert all(isinstance(load(path), RewardWeights) for path in OTHERS["weights"])
    catalog = make_simulator(num_items=9).catalog
    model = type("Model", (), {"with_weights": lambda self, weights: print, "__call__": print, "opinions": print})()
    assert all(callable(make(reward, catalog=catalog, reward_model=model)) for reward in own["reward"].values())


@pytest.mark.parametrize("kind", CONFIGS.values(), ids=CONFIGS)
def test_every_field_that_names_code_is_asked_about(kind):
    own = [field for field in fields(kind) if field.name not in ("env", "env_options")]  # written NAME=VALUE or as ids
    source = "\n".join(inspect.getsource(part) for part in kind.__mro__[:-1])
    told = {field.name: re.search(rf'\n    {field.name}: [^"]*?"""(.*?)"""', source, re.DOTALL) for field in own}
    naming = {name for name, text in told.items() if text and re.search(r"mport\s+path|Ray\s+cluster", text[1])}
    needed = {"preset": next(iter(kind.presets))} if hasattr(kind, "presets") else {}  # a sweep is one of a preset
    asked = {name for name, _ in kind(**needed).code()} if hasattr(kind, "code") else set()
    assert naming <= asked


def test_nothing_in_feedgym_passes_that_is_no_simulator_ranker_or_reward():
    for what, name in {"ranker": "feedgym.envs.short_video:ShortVideo", "reward": "feedgym.cli:main"}.items():
        with pytest.raises(ValueError, match=name):
            check_named(what, name, "config.json")


def test_the_current_folder_is_not_searched_for_feedgyms_own(lab):
    load("feedgym.envs.short_video:ShortVideo")


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (replace(smoke(), simulator=EVIL), f"import and run {EVIL!r} (its simulator)"),
        (replace(smoke(), reward=EVIL), f"import and run {EVIL!r} (its reward)"),
        (replace(smoke(), model=EVIL), f"import and run {EVIL!r} (its model)"),
        (replace(smoke(), tokenizer=EVIL), f"import and run {EVIL!r} (its tokenizer)"),
        (replace(smoke(), method=EVIL), f"import and run {EVIL!r} (its method)"),
        (replace(smoke(), ray="evil.example:6379"), "connect to the Ray cluster 'evil.example:6379'"),
        (replace(learned_simulator_smoke(), ranker=EVIL), f"import and run {EVIL!r} (its ranker)"),
        (replace(learned_simulator_smoke(), simulator=EVIL), f"import and run {EVIL!r} (its simulator)"),
        (replace(rl_smoke(), env_options=(f"simulator={EVIL}",)), f"import and run {EVIL!r} (its simulator)"),
        (replace(rl_smoke(), env_options=(f"reward={EVIL}",)), f"import and run {EVIL!r} (its weights)"),
        (replace(rl_smoke(), env="evil_lab:evil/Mine-v0"), "import and run 'evil_lab:evil/Mine-v0' (its env)"),
    ],
)
def test_a_run_folder_that_names_code_is_refused(lab, capsys, config, says):
    folder = written(lab / "run", config)
    preset = {"AlignConfig": "onerec-ipa-smoke", "LearnedRun": "learned-simulator-smoke", "RLConfig": "rllib-smoke"}
    commands = [["stage", "log", "--run", folder], ["run", preset[type(config).__name__], "--resume", folder]]
    if hasattr(config, "judge"):
        commands.append(["evaluate", folder])
    if type(config).__name__ == "AlignConfig":
        commands += [["watch", folder], ["run", "rllib-smoke", "--against", folder, "--run", str(lab / "new")]]
        commands += [["compare", "cascade-smoke", "--against", folder, "--run", str(lab / "new")]]
        commands += [["demo", "--resume", folder]] if config.ray == "local" else []
    for command in commands:
        said = refusal(capsys, *command)
        assert f"{lab / 'run' / 'config.json'} would {says}" in said and "--trust" in said, command
        assert not (lab / "new").exists()


def test_what_the_command_names_itself_or_trusts_passes(tmp_path):
    own, folder = {"reward": "toy_users:toy_reward", "simulator": "toy_users:ToyUsers"}, tmp_path / "toy_users:ToyUsers"
    config = replace(smoke(), **own, simulator_options=None)
    for arguments in (["--reward", own["reward"]], [f"--reward={own['reward']}"]):
        check_code(replace(config, simulator="short_video"), folder, False, arguments)
        with pytest.raises(ValueError, match=own["simulator"]):  # the folder's own name is no word for it
            check_code(config, folder, False, [*arguments, "--resume", str(folder)])
    assert check_code(config, folder, True, []) == config
    learned = replace(config, reward="reward_model", simulator=str(tmp_path))
    check_config(learned, folder)  # a learned simulator's folder is data


def test_trust_itself_cannot_be_said_in_a_folder():
    with pytest.raises(ValueError, match="use --trust"):
        replace(rl_smoke(), env_options=("trust=True",))


# ---------------------------------------------------------------- simulators and models


@pytest.mark.parametrize("command", ["check", "simulate", "realism", "watch"])
def test_a_simulators_folder_that_names_code_is_refused(lab, capsys, command):
    folder = lab / "users"
    folder.mkdir()
    (folder / "simulator.json").write_text(json.dumps({"ranker": EVIL, "profile_names": [], "profile_sizes": []}))
    arguments = {
        "check": [str(folder)],
        "simulate": ["--simulator", str(folder), "--out", str(lab / "log")],
        "realism": [str(folder), str(folder)],
        "watch": ["random", "--simulator", str(folder)],
    }[command]
    said = refusal(capsys, command, *arguments)
    assert f"{folder / 'simulator.json'} would import and run {EVIL!r} (its ranker)" in said


@pytest.mark.parametrize("name", ["json:dumps", "collections:OrderedDict", "pickle:Unpickler"])
def test_a_trusted_ranker_must_be_a_ranker(tmp_path, name):
    (tmp_path / "simulator.json").write_text(json.dumps({"ranker": name, "profile_names": [], "profile_sizes": []}))
    with pytest.raises(ValueError, match=rf"names '{name}' as its ranker, which is not a class"):
        LearnedSimulator.load(tmp_path, trust=True)


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w')",)


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_map": {"AutoConfig": "evil_lab.Mine", "AutoModel": "evil_lab.Mine"}},
        {"_attn_implementation": "evil/kernels"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"fusion_config": {"evil": True}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_models_settings_are_its_own(lab, settings):
    SASRec(SASRecConfig(num_items=9, d_model=8)).save_pretrained(lab / "model")
    before = SASRec.load(lab / "model").config
    path = lab / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    after = SASRec.load(lab / "model").config
    assert vars(after) == vars(before)


def test_a_models_weights_are_safetensors(lab):
    SASRec(SASRecConfig(num_items=9, d_model=8)).save_pretrained(lab / "model")
    (lab / "model" / "model.safetensors").rename(lab / "kept")
    pickled = pickle.dumps(Payload(lab / "mark"))
    for name in ("pytorch_model.bin", "model.safetensors", "adapter_model.bin"):
        (lab / "model" / name).write_bytes(pickled)
        with pytest.raises(ValueError, match="Cannot read the model"):
            SASRec.load(lab / "model")
    (lab / "kept").rename(lab / "model" / "model.safetensors")
    SASRec.load(lab / "model")
    (lab / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/model"}))
    with pytest.raises(ValueError, match="a SASRec has no adapters"):
        SASRec.load(lab / "model")


def test_a_learners_checkpoint_is_no_pickle(lab):
    with new_checkpoint(lab, 1) as folder:
        (folder / TENSORS).write_bytes(pickle.dumps(Payload(lab / "mark")))
        (folder / "algorithm_state.pkl").write_bytes(pickle.dumps(Payload(lab / "mark")))
    assert read_checkpoint(lab) == (0, None, [])
