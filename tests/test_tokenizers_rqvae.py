import numpy as np
import pytest
import torch
from torch import nn

from feedgym.tokenizers import RQVAE, RQVAEConfig, check_tokenizer
from feedgym.tokenizers.rqvae_network import RQVAENetwork

SMALL = {"num_codes": (8, 6), "hidden_widths": (10,), "latent_width": 4, "batch_size": 32, "steps": 40}


def content(num_items=90, width=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(7, width))
    return torch.from_numpy(centres[rng.integers(7, size=num_items)] + 0.3 * rng.normal(size=(num_items, width)))


def network(ema_decay=None, num_codes=(5, 4, 3), beta=0.25):
    """A small network in float64 whose codewords are drawn at random."""
    torch.manual_seed(0)
    made = RQVAENetwork((6, 8, 4), num_codes, beta, ema_decay).double()
    for book in made.quantizer.levels:
        nn.init.normal_(book.weight, std=0.3)
    return made


def plain_loss(net, x, beta):
    """TIGER §3.1 for one row: the codewords of each level found by a loop, sg[] written as detach()."""
    z = net.encoder(x)
    residual, words, quantization = z, [], 0.0
    for book in net.quantizer.levels:
        distances = [((residual - word) ** 2).sum().item() for word in book.weight]
        e = book.weight[int(np.argmin(distances))]
        quantization += ((residual.detach() - e) ** 2).sum() + beta * ((residual - e.detach()) ** 2).sum()
        residual = residual - e.detach()
        words.append(e.detach())
    z_hat = z + (sum(words) - z).detach()
    return ((net.decoder(z_hat) - x) ** 2).sum(), quantization


def test_losses_and_gradients_equal_the_plain_loop():
    net, x_NE = network(beta=0.4), content(11)
    losses, _ = net.losses(x_NE)
    ours = torch.autograd.grad(losses.total, list(net.parameters()))
    rows = [plain_loss(net, x, 0.4) for x in x_NE]
    reconstruction, quantization = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    plain = torch.autograd.grad(reconstruction + quantization, list(net.parameters()))
    torch.testing.assert_close(losses.reconstruction, reconstruction)
    torch.testing.assert_close(losses.quantization, quantization)
    for (name, _), a, b in zip(net.named_parameters(), ours, plain, strict=True):
        torch.testing.assert_close(a, b, msg=name)
        assert a.abs().max() > 0, name


def test_the_gradient_passes_straight_through_the_sum_of_codewords():
    net = network()
    latent = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    quantized = net.quantizer(latent)
    wanted = torch.randn(9, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((quantized.vectors_ND * wanted).sum(), latent)
    torch.testing.assert_close(gradient, wanted)
    torch.testing.assert_close(quantized.vectors_ND, net.quantizer.words(quantized.codes_NL))


def test_the_commitment_of_every_level_reaches_the_latents():
    # d/dz of beta * sum over levels of |r_l - sg[e_l]|^2 is 2 beta * sum over levels of (r_l - e_l); were residuals
    # made with straight-through codewords, only the first level's term would be left
    net = network()
    latent = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    quantized = net.quantizer(latent)
    (gradient,) = torch.autograd.grad(quantized.loss_N.sum(), latent)
    words = [book.weight[code_N] for book, code_N in zip(net.quantizer.levels, quantized.codes_NL.T, strict=True)]
    left = [r - e for r, e in zip(quantized.residuals_LND, words, strict=True)]
    torch.testing.assert_close(gradient, 2 * 0.25 * sum(left))
    assert (left[1] + left[2]).abs().max() > 0.01


def test_both_losses_are_sums_over_dimensions_and_means_over_rows():
    net, x_NE = network(), content(12)
    once, twice = net.losses(x_NE)[0], net.losses(torch.cat([x_NE, x_NE]))[0]
    torch.testing.assert_close(once.total, twice.total)
    torch.testing.assert_close(net.losses(x_NE)[1].loss_N.mean(), once.quantization)


def test_kmeans_init_uses_every_code_of_every_level_and_happens_once():
    net, latent = network(num_codes=(8, 8, 8)), torch.randn(300, 4, dtype=torch.float64)
    net.quantizer.initialise(latent, 20, np.random.default_rng(0))
    codes = net.quantizer(latent).codes_NL
    assert [len(code.unique()) for code in codes.T] == [8, 8, 8]
    energy = [float(r.square().sum()) for r in net.quantizer(latent).residuals_LND]
    assert energy[1] < 0.5 * energy[0] and energy[2] < 0.7 * energy[1]
    again = RQVAENetwork((6, 8, 4), (8, 8, 8), 0.25, None).double()
    again.load_state_dict(net.state_dict())  # a network read back knows that it was initialised
    again.quantizer.initialise(torch.randn(300, 4, dtype=torch.float64), 20, np.random.default_rng(1))
    assert torch.equal(again.quantizer(latent).codes_NL, codes)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_dead_codewords_start_again_at_residuals_of_the_batch(ema_decay):
    net, latent = network(ema_decay, num_codes=(6, 6)), torch.randn(50, 4, dtype=torch.float64)
    for book in net.quantizer.levels:
        book.place(torch.arange(3, 6), torch.full((3, 4), 100.0, dtype=torch.float64))  # nothing is near them
    rng = np.random.default_rng(0)
    for step in range(5):
        quantized = net.quantizer(latent)
        dead = [set(range(6)) - set(code.tolist()) for code in quantized.codes_NL.T]
        assert dead[0] >= {3, 4, 5} and dead[1] >= {3, 4, 5}, step
        net.quantizer.follow(quantized, 5, rng)
    for level, book in enumerate(net.quantizer.levels):
        for code in (3, 4, 5):
            assert (quantized.residuals_LND[level] == book.weight[code]).all(dim=1).any()
    assert len(net.quantizer(latent).codes_NL[:, 0].unique()) > 3


def test_codewords_are_left_alone_without_revival():
    net, latent = network(), torch.randn(50, 4, dtype=torch.float64)
    before = [book.weight.clone() for book in net.quantizer.levels]
    for _ in range(5):
        net.quantizer.follow(net.quantizer(latent), 0, np.random.default_rng(0))
    assert all(torch.equal(b, book.weight) for b, book in zip(before, net.quantizer.levels, strict=True))


def test_moving_averages_equal_the_plain_loop():
    net = network(0.8, num_codes=(4,))
    book = net.quantizer.levels[0]
    book.place(torch.arange(4), book.weight.clone())
    count, total = np.ones(4), book.weight.detach().numpy().copy()
    rng = np.random.default_rng(0)
    for _ in range(6):
        latent = torch.from_numpy(rng.normal(size=(20, 4)))
        quantized = net.quantizer(latent)
        net.quantizer.follow(quantized, 0, rng)
        for code in range(4):
            mine = latent.numpy()[quantized.codes_NL[:, 0].numpy() == code]
            count[code] = 0.8 * count[code] + 0.2 * len(mine)
            total[code] = 0.8 * total[code] + 0.2 * mine.sum(axis=0)
            if len(mine):
                np.testing.assert_allclose(book.weight[code].numpy(), total[code] / count[code])
    assert not book.weight.requires_grad


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_training_lowers_the_loss_and_the_codes_tell_the_content(codebook):
    points, log = content(200), []
    config = RQVAEConfig(**SMALL | {"steps": 300, "lr": 5e-3, "codebook": codebook})
    tokenizer = RQVAE(config).fit(points, progress=lambda done, total, metrics: log.append((done, total, metrics)))
    assert [done for done, _, _ in log] == list(range(1, 301)) and log[0][1] == 300
    assert all(m["total"] == pytest.approx(m["reconstruction"] + m["quantization"], rel=1e-5) for _, _, m in log)
    error = (tokenizer.reconstruct(tokenizer.codes_IL) - points).square().mean() / points.var(dim=0).mean()
    assert error < 0.35  # 6 of the 7 clusters of the content are easily told apart
    assert torch.equal(tokenizer.quantize(points), tokenizer.codes_IL[:, : tokenizer.num_content_levels])


@pytest.mark.parametrize("collisions", ["counter", "sinkhorn"])
def test_every_promise_of_a_tokenizer_is_kept(collisions):
    check_tokenizer(RQVAE(RQVAEConfig(**SMALL, collisions=collisions)), content())


def test_the_counter_level_counts_items_of_the_same_codes():
    tokenizer = RQVAE(RQVAEConfig(**SMALL)).fit(content())
    assert tokenizer.num_content_levels == 2 and tokenizer.num_levels == 3
    groups = {}
    for *codes, number in tokenizer.codes_IL.tolist():
        assert number == groups.setdefault(tuple(codes), 0)
        groups[tuple(codes)] += 1
    assert tokenizer.num_codes == (8, 6, max(groups.values()))
    assert [tuple(book.shape) for book in tokenizer.codebooks] == [(8, 4), (6, 4)]


def test_the_sinkhorn_repair_leaves_fewer_collisions_and_the_first_levels_alone():
    points = content(40)
    free = RQVAE(RQVAEConfig(**SMALL)).fit(points)
    repaired = RQVAE(RQVAEConfig(**SMALL, collisions="sinkhorn")).fit(points)
    assert torch.equal(free.codes_IL[:, 0], repaired.codes_IL[:, 0])
    assert len(repaired.codes_IL[:, :2].unique(dim=0)) > len(free.codes_IL[:, :2].unique(dim=0))


def test_saving_keeps_codes_hash_and_network_and_trains_nothing(tmp_path, monkeypatch):
    points = content()
    tokenizer = RQVAE(RQVAEConfig(**SMALL)).fit(points)
    tokenizer.save(tmp_path)
    monkeypatch.setattr("feedgym.tokenizers.rqvae._train", None)
    loaded = RQVAE.load(tmp_path)
    assert (loaded.hash, loaded.config, loaded.num_content_levels) == (tokenizer.hash, tokenizer.config, 2)
    assert torch.equal(loaded.codes_IL, tokenizer.codes_IL)
    assert torch.equal(loaded.reconstruct(loaded.codes_IL), tokenizer.reconstruct(tokenizer.codes_IL))
    assert torch.equal(loaded.quantize(points), tokenizer.codes_IL[:, :2])
    assert bool(loaded.network().quantizer.initialised)


class Killed(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"codebook": "ema"}, {"optimizer": "adagrad"}])
def test_a_killed_training_goes_on_to_the_same_codes_and_weights(tmp_path, changes):
    points, config = content(), RQVAEConfig(**SMALL, checkpoint_steps=10, revive_steps=4, **changes)
    whole = RQVAE(config).fit(points)

    def kill(done, total, metrics):
        if done == 27:
            raise Killed

    with pytest.raises(Killed):
        RQVAE(config).fit(points, work=tmp_path, progress=kill)
    steps = []
    resumed = RQVAE(config).fit(points, work=tmp_path, progress=lambda done, total, metrics: steps.append(done))
    assert steps == list(range(21, 41))
    assert resumed.hash == whole.hash
    assert resumed.learned.keys() == whole.learned.keys()
    assert all(torch.equal(resumed.learned[name], whole.learned[name]) for name in whole.learned)
    with pytest.raises(ValueError, match="another configuration or other content"):
        RQVAE(config).fit(points.flip(0), work=tmp_path)
    (tmp_path / "checkpoint-40" / "rqvae-training.safetensors").write_bytes(b"no")
    steps.clear()
    RQVAE(config).fit(points, work=tmp_path, progress=lambda done, total, metrics: steps.append(done))
    assert steps == list(range(31, 41)), "a damaged checkpoint is passed over for the one before"


def test_fitting_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    RQVAE(RQVAEConfig(**SMALL | {"steps": 2})).fit(content())
    assert torch.equal(torch.rand(1), expected)


def test_widths_are_the_papers_at_its_width_and_never_below_the_latents():
    assert RQVAEConfig().widths(768) == (768, 512, 256, 128, 32)
    assert RQVAEConfig().widths(64) == (64, 43, 32, 32, 32)
    assert RQVAEConfig(hidden_widths=(5,), latent_width=3).widths(9) == (9, 5, 3)


def test_content_without_any_difference_can_be_fitted():
    tokenizer = RQVAE(RQVAEConfig(**SMALL | {"steps": 3})).fit(torch.ones(20, 6))
    assert tokenizer.num_codes[-1] == 20
    torch.testing.assert_close(tokenizer.reconstruct(tokenizer.codes_IL).mean(), torch.tensor(1.0), atol=0.5, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_codes": ()}, "at least one level"),
        ({"steps": 0}, "steps=0 must be 1 or more"),
        ({"beta": -1.0}, r"beta=-1.0 must be 0 or more"),
        ({"hidden_widths": (3, 0)}, "hidden_widths\\[1\\]=0 must be 1 or more"),
        ({"ema_decay": 1.0}, r"must be below 1"),
        ({"codebook": "best"}, "codebook='best' is unknown; choose one of"),
    ],
)
def test_wrong_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RQVAEConfig(**wrong)


def test_wrong_content_is_refused():
    with pytest.raises(ValueError, match="a level of 8 codes, but there are only 7 items"):
        RQVAE(RQVAEConfig(**SMALL)).fit(content(7))
    with pytest.raises(ValueError, match=r"call fit\(\) or load\(\) first"):
        RQVAE(RQVAEConfig(**SMALL)).reconstruct(torch.zeros(1, 3, dtype=torch.int64))
