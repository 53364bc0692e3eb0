import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from feedgym.cli import main
from feedgym.data.readers import find_data
from feedgym.experiments.align.agents import new_tokenizer
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.align.stages import plan
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.retrieval.experiment import plan as retrieval_plan
from feedgym.tokenizers import Index, IndexConfig, check_tokenizer, quality_report
from feedgym.tokenizers.own import fit_codes

# As LC-Rec publishes it: a token per level, numbered by RQ-VAE's codebooks; not all codes are in use.
CODES = {
    "0": ["<a_3>", "<b_0>", "<c_1>"],
    "1": ["<a_3>", "<b_9>", "<c_0>"],
    "2": ["<a_0>", "<b_9>", "<c_1>"],
    "7": ["<a_1>", "<b_2>", "<c_0>"],
}
CONTENT = torch.zeros(3, 2)


def index(folder, codes=CODES, **options):
    path = folder / "Arts.index.json"
    path.write_text(json.dumps(codes, indent=4))
    return Index(IndexConfig(path=str(path), **options))


def test_codes_are_those_of_the_file(tmp_path):
    fitted = index(tmp_path).fit(CONTENT)
    assert fitted.codes_IL.tolist() == [[3, 0, 1], [3, 9, 0], [0, 9, 1]]
    assert fitted.num_codes == (4, 10, 2) and fitted.num_content_levels == 3  # of the whole file, also of item 7
    chosen = index(tmp_path).fit(CONTENT[:2], raw_ids_I=np.array([7, 0]))
    assert chosen.codes_IL.tolist() == [[1, 2, 0], [3, 0, 1]] and chosen.num_codes == fitted.num_codes
    assert quality_report(fitted, torch.eye(3))["num_codes"] == [4, 10, 2]


def test_ids_may_be_words_and_codes_numbers(tmp_path):
    fitted = index(tmp_path, {"B07": [2, 5], "B08": [0, 5]}).fit(CONTENT[:2], raw_ids_I=["B08", "B07"])
    assert fitted.codes_IL.tolist() == [[0, 5], [2, 5]] and fitted.num_codes == (3, 6)


def test_items_that_collide_are_counted_or_refused(tmp_path):
    twins = CODES | {"2": CODES["0"], "9": CODES["0"]}
    fitted = index(tmp_path, twins).fit(CONTENT)  # item 9 is not in the catalogue
    assert fitted.codes_IL.tolist() == [[3, 0, 1, 0], [3, 9, 0, 0], [3, 0, 1, 1]]
    assert fitted.num_codes == (4, 10, 2, 2) and fitted.num_content_levels == 3
    message = r"2 of 3 items share their codes with another, first '0' and '2'; set collisions=counter"
    with pytest.raises(ValueError, match=message):
        index(tmp_path, twins, collisions="refuse").fit(CONTENT)
    assert index(tmp_path, collisions="refuse").fit(CONTENT).num_codes == (4, 10, 2)


@pytest.mark.parametrize("twins", [{}, {"2": CODES["0"]}], ids=["all differ", "two collide"])
def test_it_keeps_the_promises_of_a_tokenizer(tmp_path, twins):
    check_tokenizer(index(tmp_path, CODES | twins), CONTENT)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            {"0": ["<a_1>"], "7": ["<a_2>"]},
            r"has no codes for 2 of 3 items, the first of them '1'; take it and the log",
        ),
        ({"0": ["<a_1>", "<b_1>"], "1": ["<a_1>"]}, r"item '1' has the levels a, and the first item a, b; give all"),
        ({"0": ["<a_1>", "<b_1>"], "1": ["<b_1>", "<a_1>"]}, r"item '1' has the levels b, a, and the first item a, b"),
        ({"0": ["<a_1>"], "1": [4]}, r"item '1' has the levels a number, and the first item a"),
        ({"0": "<a_1>"}, r"the codes of item '0' are '<a_1>'; write \[\"<a_3>\""),
        ({"0": ["<a_x>"]}, r"the codes of item '0' are \['<a_x>'\]"),
        ({"0": []}, r"the codes of item '0' are \[\]"),
        ({"0": [-1]}, r"item '0' has the codes \[-1\]; number a level's codes 0 to 65535"),
        ({"0": ["<a_70000>"]}, r"item '0' has the codes \[70000\]"),
        ([], r"is not a JSON object"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, codes, message):
    with pytest.raises(ValueError, match=message) as error:
        index(tmp_path, codes).fit(CONTENT)
    assert "\n" not in str(error.value) and "Arts.index.json" in str(error.value)


def test_a_fitted_one_is_stored_without_its_file(tmp_path):
    fitted = index(tmp_path).fit(CONTENT)
    fitted.save(tmp_path / "kept")
    (tmp_path / "Arts.index.json").unlink()
    again = Index.load(tmp_path / "kept")
    assert again.hash == fitted.hash and again.config == fitted.config
    with pytest.raises(ValueError, match="no such file of codes; check the path"):
        Index(fitted.config).fit(CONTENT)


def test_experiments_give_it_the_ids_of_the_log(tmp_path):
    config = replace(smoke(), tokenizer="index", tokenizer_options=index(tmp_path).config)
    catalog = SimpleNamespace(content_IE=np.zeros((2, 2)), raw_ids_I=np.array([7, 1]))
    assert fit_codes(new_tokenizer(config), catalog, tmp_path).codes_IL.tolist() == [[1, 2, 0], [3, 9, 0]]


@pytest.mark.parametrize(("preset", "planned"), [("onerec-ipa-smoke", plan), ("tiger-smoke", retrieval_plan)])
def test_options_and_the_files_content_decide_the_codes(tmp_path, preset, planned):
    def keys(tokenizer):
        config = replace(PRESETS[preset](), tokenizer="index", tokenizer_options=tokenizer.config)
        return dict(planned(config))

    first = keys(index(tmp_path))
    assert keys(index(tmp_path)) == first != keys(index(tmp_path, collisions="refuse"))
    assert keys(index(tmp_path, CODES | {"8": CODES["0"]})) != first
    with pytest.raises(ValueError, match=r"needs a file of codes, and path is None; give NAME.index.json"):
        keys(Index())
    with pytest.raises(ValueError, match="collisions='keep' is unknown"):
        IndexConfig(collisions="keep")


def test_the_command_takes_it_and_inspection_names_it(tmp_path, capsys):
    path = index(tmp_path).config.path
    (tmp_path / "Arts.inter.json").write_text(json.dumps({"0": [0, 1, 2], "1": [7]}))
    told = " ".join(find_data(tmp_path).says)
    assert f"Arts.index.json holds codes; --tokenizer index --tokenizer.path {path} takes them" in told
    main(["run", "tiger-smoke", "--tokenizer", "index", "--tokenizer.path", path, "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        main(["run", "tiger-smoke", "--tokenizer", "index", "--dry-run"])
    assert stop.value.code == 2 and "path is None" in capsys.readouterr().err
