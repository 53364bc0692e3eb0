"""Model cards: what the folder of a saved model says of itself."""

import re

import yaml
from toy_agents import toy_model, toy_tokenizer

from feedgym.agents.card import CARD
from feedgym.agents.onerec import OneRec
from feedgym.agents.sasrec import SASRec, SASRecConfig


def card_in(model, folder):
    model.save_pretrained(folder)
    _, front, text = (folder / CARD).read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_card_tells_the_paper_the_sizes_and_how_to_load_it(tmp_path):
    model = toy_model()
    front, text = card_in(model, tmp_path)
    assert front["library_name"] == "feedgym" and "onerec" in front["tags"]
    assert "arXiv:2502.18965" in text and f"{model.num_parameters():,} parameters" in text
    settings = dict(re.findall(r"^\| (\w+) \| (.*) \|$", text, re.M))
    assert settings["d_model"] == str(model.config.d_model) and "torch_dtype" not in settings
    assert 'OneRec.load("FOLDER", tokenizer)' in text
    loaded = OneRec.load(tmp_path, toy_tokenizer())
    assert loaded.config.d_model == model.config.d_model


def test_a_model_without_tokens_is_loaded_from_its_folder_alone(tmp_path):
    front, text = card_in(SASRec(SASRecConfig(num_items=7)), tmp_path)
    assert "sasrec" in front["tags"] and 'SASRec.load("FOLDER")' in text
    assert "| num_items | 7 |" in text
