import pytest
import torch

from feedgym.tokenizers import Vocabulary

VOCABULARY = Vocabulary((3, 5))


def test_blocks_follow_each_other_without_gap_or_overlap():
    tokens = [
        VOCABULARY.level_offset(level) + code
        for level in range(VOCABULARY.num_levels)
        for code in range(VOCABULARY.num_codes[level])
    ]
    assert [VOCABULARY.pad_id, VOCABULARY.bos_id, *tokens] == list(range(VOCABULARY.size))


def test_session_tokens_put_bos_before_every_item():
    codes_UKL = torch.tensor([[[0, 4], [2, 0]], [[1, 1], [-1, -1]]])
    tokens = VOCABULARY.session_tokens(codes_UKL)
    assert tokens.tolist() == [
        [1, 2, 9, 1, 4, 5],  # BOS, s1^1, s1^2, BOS, s2^1, s2^2
        [1, 3, 6, 0, 0, 0],  # a place without an item is padding, BOS included
    ]
    assert VOCABULARY.completion_mask(tokens).tolist() == [
        [False, True, True, False, True, True],
        [False, True, True, False, False, False],
    ]


def test_codes_invert_token_ids_and_refuse_other_levels():
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(5)).reshape(3, 5, 2)
    assert torch.equal(VOCABULARY.codes(VOCABULARY.token_ids(codes)), codes)
    # PAD, BOS, a code of the other level, a token past the end
    assert VOCABULARY.codes(torch.tensor([[0, 0], [1, 1], [5, 4], [10, 10]])).tolist() == [[-1, -1]] * 4
    assert VOCABULARY.codes(torch.tensor([2, 5])).tolist() == [0, 0]


def test_wrong_shapes_and_levels_are_refused():
    with pytest.raises(ValueError, match="Expected 2 codes"):
        VOCABULARY.token_ids(torch.zeros(4, 3, dtype=torch.int64))
    for num_codes in ((), (4, 0)):
        with pytest.raises(ValueError, match="at least one level"):
            Vocabulary(num_codes)
