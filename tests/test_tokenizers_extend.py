"""Items that come after a tokenizer was fitted get codes of their own, and known ones keep theirs."""

import numpy as np
import pytest
import torch

from feedgym.agents.onerec import OneRec
from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig, check_tokenizer
from feedgym.tokenizers.extension import codes_of_new

CONTENT = torch.from_numpy(np.random.default_rng(0).normal(size=(90, 5)))


def fitted(num_items=60, **config):
    return ResidualKMeans(ResidualKMeansConfig(**{"num_codes": (6, 6, 6), **config})).fit(CONTENT[:num_items])


@pytest.mark.parametrize("config", [{}, {"collisions": "counter", "num_codes": (4, 4)}, {"assignment": "nearest"}])
def test_known_items_keep_their_codes_and_new_ones_have_their_own(config, tmp_path):
    before = fitted(**config)
    codes = before.codes_IL.clone()
    after = before.extend(CONTENT[60:70]).extend(CONTENT[70:75])
    assert torch.equal(before.codes_IL, codes) and torch.equal(after.codes_IL[:60], codes)
    assert after.num_items == 75 == len(after.codes_IL.unique(dim=0)) and after.num_codes == before.num_codes
    assert torch.equal(after.decode(after.codes_IL[60:]), torch.arange(60, 75))
    after.save(tmp_path)
    loaded = ResidualKMeans.load(tmp_path)
    assert loaded.hashes == after.hashes == {before.hash, before.extend(CONTENT[60:70]).hash, after.hash}


def test_a_new_item_takes_the_nearest_codes_level_by_level():
    before = fitted(num_codes=(6, 30))
    first, last = (book.double() for book in before.codebooks)
    taken = set(map(tuple, before.codes_IL.tolist()))
    for item, codes in zip(CONTENT[60:], before.extend(CONTENT[60:62]).codes_IL[60:], strict=False):
        a = int(((first - item) ** 2).sum(1).argmin())
        ranked = ((last - (item - first[a])) ** 2).sum(1).argsort().tolist()
        b = next(code for code in ranked if (a, code) not in taken)
        assert codes.tolist() == [a, b]
        taken.add((a, b))


def test_an_item_like_a_known_one_becomes_its_neighbour():
    before = fitted()
    codes = before.extend(before.reconstruct(before.codes_IL[:5])).codes_IL
    assert torch.equal(codes[60:, :2], codes[:5, :2]) and (codes[60:, 2] != codes[:5, 2]).all()


def test_every_last_tuple_is_given_and_then_no_more():
    before = ResidualKMeans(ResidualKMeansConfig(num_codes=(2, 3))).fit(CONTENT[:4])
    full = before.extend(CONTENT[4:6])
    assert len(full.codes_IL.unique(dim=0)) == 6
    with pytest.raises(ValueError, match="No free tuple is left"):
        full.extend(CONTENT[6:7])
    one_level = ResidualKMeans(ResidualKMeansConfig(num_codes=(3,), collisions="counter")).fit(CONTENT[:3])
    with pytest.raises(ValueError, match="No free tuple is left"):
        one_level.extend(CONTENT[3:9])


def test_blocks_do_not_change_the_codes(monkeypatch):
    from feedgym.tokenizers import extension

    before = fitted()
    whole = before.extend(CONTENT[60:])
    monkeypatch.setattr(extension, "_BLOCK", 7)
    parts = before.extend(CONTENT[60:])
    assert len(parts.codes_IL.unique(dim=0)) == 90 and torch.equal(whole.codes_IL[:67], parts.codes_IL[:67])


def test_content_of_another_width_and_too_many_tuples_are_refused():
    with pytest.raises(ValueError, match="has width 3"):
        fitted().extend(CONTENT[60:, :3])
    with pytest.raises(ValueError, match="64 bits"):
        codes_of_new(np.zeros((1, 2)), [], np.zeros((1, 8), dtype=np.int64), (2**9,) * 8)


def test_a_model_of_the_known_items_serves_the_new_ones_too(tmp_path):
    before = fitted()
    sizes = {"d_model": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "d_ff": 16}
    model = OneRec.build(OneRec.Config(**sizes), before, session_length=2, history_length=4, profile_sizes=())
    model.save_pretrained(tmp_path)
    after = before.extend(CONTENT[60:])
    loaded = OneRec.load(tmp_path, after)
    assert loaded.config.num_items == 90 and loaded.config.tokenizer_hash == after.hash
    tokens = loaded.session_tokens(torch.tensor([[3, 88]]))
    assert torch.equal(tokens.reshape(2, 4)[:, 1:], loaded.vocabulary.token_ids(after.codes_IL[[3, 88]]))
    with pytest.raises(ValueError, match="pretrain again"):
        OneRec.load(tmp_path, fitted(70))


def test_an_extended_tokenizer_passes_the_checks_of_any_other():
    class Extended(ResidualKMeans):
        def fit(self, content_IE):
            known = ResidualKMeans(self.config).fit(content_IE[:87]).extend(content_IE[87:])
            return self.freeze(known.codes_IL, known.num_codes, **known.learned)

    check_tokenizer(Extended(), CONTENT)
