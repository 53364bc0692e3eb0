"""Item tokenizers: turn each item into a short tuple of codes."""

from feedgym.tokenizers.check import check_tokenizer
from feedgym.tokenizers.codes import CodeTokenizer, append_counter, codes_hash
from feedgym.tokenizers.index import Index, IndexConfig
from feedgym.tokenizers.item_id import ItemId, ItemIdConfig, RandomCodes, RandomCodesConfig
from feedgym.tokenizers.lsh import LSH, LSHConfig
from feedgym.tokenizers.quality import compare_tokenizers, quality_report
from feedgym.tokenizers.residual_kmeans import ResidualKMeans, ResidualKMeansConfig
from feedgym.tokenizers.rqvae import RQVAE, RQVAEConfig
from feedgym.tokenizers.trie import Trie
from feedgym.tokenizers.vocabulary import Vocabulary

__all__ = [
    "LSH",
    "RQVAE",
    "CodeTokenizer",
    "Index",
    "IndexConfig",
    "ItemId",
    "ItemIdConfig",
    "LSHConfig",
    "RQVAEConfig",
    "RandomCodes",
    "RandomCodesConfig",
    "ResidualKMeans",
    "ResidualKMeansConfig",
    "Trie",
    "Vocabulary",
    "append_counter",
    "check_tokenizer",
    "codes_hash",
    "compare_tokenizers",
    "quality_report",
]
