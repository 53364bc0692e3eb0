"""Item tokenizers: how an item becomes a short tuple of codes."""

from feedgym.tokenizers.check import check_tokenizer
from feedgym.tokenizers.codes import CodeTokenizer, codes_hash
from feedgym.tokenizers.quality import quality_report
from feedgym.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from feedgym.tokenizers.trie import Trie
from feedgym.tokenizers.vocabulary import Vocabulary

__all__ = [
    "CodeTokenizer",
    "ResidualKMeans",
    "ResidualKMeansConfig",
    "Trie",
    "Vocabulary",
    "check_tokenizer",
    "codes_hash",
    "quality_report",
]
