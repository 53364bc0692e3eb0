"""SASRec's two blocks against loops written from the code they follow."""

import math
from dataclasses import replace

import pytest
import torch
from toy_agents import toy_histories

from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import Sequences

NUM_ITEMS = 9


def toy(block, heads=1):
    torch.manual_seed(2)
    config = SASRecConfig(
        d_model=4, d_ff=3, num_heads=heads, num_items=NUM_ITEMS, history_length=6, session_length=3, dropout=0.0,
        block=block,
    )  # fmt: skip
    model = SASRec(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model.eval()


def linear(layer, v):
    rows, bias = layer.weight.tolist(), layer.bias.tolist()
    return [sum(a * b for a, b in zip(row, v, strict=True)) + c for row, c in zip(rows, bias, strict=True)]


def norm(layer, v):
    mean = sum(v) / len(v)
    var = sum((a - mean) ** 2 for a in v) / len(v)
    normed = [(a - mean) / math.sqrt(var + 1e-8) for a in v]
    if layer.weight is None:
        return normed
    return [a * b + c for a, b, c in zip(normed, layer.weight.tolist(), layer.bias.tolist(), strict=True)]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("block", ["meta", "original"])
def test_the_model_is_the_loop(block, heads):
    model, histories = toy(block, heads), toy_histories(4, num_items=NUM_ITEMS)
    sequences = Sequences.of(histories, model.config, 6).rows(slice(3, 4))
    length, width = int(sequences.length_U), 4
    table, positions = model.items.weight.tolist(), model.positions.weight.tolist()
    x = [
        [math.sqrt(width) * a + b for a, b in zip(table[int(item)], positions[p], strict=True)]
        for p, item in enumerate(sequences.item_ids_UZ[0, :length])
    ]
    for layer in model.blocks:
        queries = [norm(layer.norm_attention, row) for row in x]
        q = [linear(layer.q, row) for row in queries]
        k, v = ([linear(part, row) for row in x] for part in (layer.k, layer.v))  # keys and values: not normalised
        after = []
        for i in range(length):
            mixed = []
            for h in range(heads):
                part = slice(h * width // heads, (h + 1) * width // heads)
                score = [
                    sum(a * b for a, b in zip(q[i][part], k[j][part], strict=True)) / math.sqrt(width / heads)
                    for j in range(i + 1)
                ]
                weight = [math.exp(s) for s in score]
                for c in range(*part.indices(width)):
                    mixed.append(sum(w * v[j][c] for j, w in enumerate(weight)) / sum(weight))
            mixed = linear(layer.out, mixed) if block == "meta" else mixed
            y = norm(layer.norm_ff, [a + b for a, b in zip(queries[i], mixed, strict=True)])
            inner = linear(layer.down, [max(a, 0) for a in linear(layer.up, y)])
            after.append([a + b for a, b in zip(y, inner, strict=True)])
        x = after
    if block == "original":
        x = [norm(model.norm, row) for row in x]
    got = model.encode(sequences)[0, :length]
    assert length > 4
    torch.testing.assert_close(got, torch.tensor(x, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("block", ["meta", "original"])
def test_the_future_padding_and_other_users_change_nothing(block):
    model, histories = toy(block), toy_histories(6, num_items=NUM_ITEMS)
    sequences = Sequences.of(histories, model.config, 6)
    hidden = model.encode(sequences)
    later = torch.arange(hidden.shape[1]) >= 4
    changed = torch.where(later, (sequences.item_ids_UZ + 1) % NUM_ITEMS, sequences.item_ids_UZ)
    after = model.encode(replace(sequences, item_ids_UZ=changed))
    assert torch.equal(after[:, :4], hidden[:, :4]) and not torch.allclose(after[-1, 4:], hidden[-1, 4:])
    scribbled = replace(sequences, item_ids_UZ=sequences.item_ids_UZ.masked_fill(~sequences.mask_UZ, 3))
    assert torch.equal(model.encode(scribbled)[sequences.mask_UZ], hidden[sequences.mask_UZ])
    alone = torch.cat([model.encode(sequences.rows(slice(u, u + 1))) for u in range(6)])
    torch.testing.assert_close(alone, hidden, atol=1e-12, rtol=0)


def test_new_weights_have_the_sizes_that_are_told_and_files_keep_them(tmp_path):
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(d_model=64, num_items=500, history_length=90, session_length=10)).eval()
    assert float(model.items.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.positions.weight.std()) == pytest.approx(64**-0.5, rel=0.1)
    model.save_pretrained(tmp_path)
    histories = toy_histories(3, num_items=500)
    assert torch.equal(SASRec.load(tmp_path).scores(histories), model.scores(histories))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="train again"):
        SASRec.load(tmp_path)
