import numpy as np
import pytest
import torch

from feedgym.protocols import ItemTokenizer
from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig, check_tokenizer

CONTENT = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)))
CONFIG = ResidualKMeansConfig(num_codes=(5, 20))


def test_residual_kmeans_passes_and_is_left_as_it_was():
    tokenizer = ResidualKMeans(CONFIG)
    assert isinstance(tokenizer, ItemTokenizer)
    check_tokenizer(tokenizer, CONTENT)
    with pytest.raises(ValueError, match="no codes yet"):
        tokenizer.encode(torch.tensor([0]))


class Int32(ResidualKMeans):
    def encode(self, item_ids):
        return super().encode(item_ids).int()


class Forgetful(ResidualKMeans):
    def fit(self, content_IE):
        super().fit(content_IE)


class Scaling(ResidualKMeans):
    def fit(self, content_IE):
        content_IE /= 2
        return super().fit(content_IE)


class Careless(ResidualKMeans):
    def decode(self, codes):
        return super().decode(codes).clamp(min=0)


class Reversed(ResidualKMeans):
    def decode(self, codes):
        return self.num_items - 1 - super().decode(codes)


class Colliding(ResidualKMeans):
    def encode(self, item_ids):
        return super().encode(item_ids) * torch.tensor([1, 0])


class Flat(ResidualKMeans):
    def encode(self, item_ids):
        return super().encode(item_ids).reshape(-1, 2)


class Larger(ResidualKMeans):
    def encode(self, item_ids):
        return super().encode(item_ids) + torch.tensor([1, 0])


class Moody(ResidualKMeans):
    def fit(self, content_IE):
        return super().fit(torch.as_tensor(content_IE) + torch.randn(4))

    def __deepcopy__(self, memo):
        Moody.copies = getattr(Moody, "copies", 0) + 1
        return type(self)(ResidualKMeansConfig(num_codes=(5, 20), seed=Moody.copies))


class Unsure(ResidualKMeans):
    num_codes = None


class Refitting(ResidualKMeans):
    @classmethod
    def load(cls, path):
        return cls(CONFIG).fit(CONTENT.flip(0))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Int32, "gave torch.int32; return an int64 tensor"),
        (Forgetful, "end it with `return self`"),
        (Scaling, "work on a copy"),
        (Careless, r"decode\(\[.*\) gave an item although none has these codes; return -1"),
        (Reversed, r"decode\(encode\(items\)\) is not the items for 50 of 50"),
        (Colliding, "gave 50 items only 5 different tuples"),
        (Flat, "keep the leading axes"),
        (Larger, r"outside num_codes=\(5, 20\)"),
        (Moody, "Two fits of Moody"),
        (Unsure, "num_codes is None; set it to a tuple"),
        (Refitting, r"load\(\) gave codes or a hash that differ"),
    ],
)
def test_a_broken_tokenizer_is_told_what_to_change(broken, message):
    with pytest.raises(ValueError, match=message):
        check_tokenizer(broken(CONFIG), CONTENT)


def test_an_object_without_the_methods_is_told_so():
    with pytest.raises(ValueError, match=r"has no fit\(\)"):
        check_tokenizer(object(), CONTENT)
