"""The network of an RQ-VAE: encoder, residual quantizer, decoder, and their loss (TIGER, arXiv:2305.05065, §3.1).

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` rows of content, ``E`` its width, ``D`` latent width.

Three details that are easy to get wrong, and how they are done here:
    * A level's residual is the latent minus the *detached* codewords before it, and the straight-through estimate is
      made once, over the sum of all codewords. Subtracting a straight-through codeword instead gives residuals without
      gradient. Then the commitment of all levels except the first never reaches the encoder.
    * All squared errors, of the reconstruction and of the codes, are summed over dimensions and averaged over rows. A
      mean in one and a sum in the other would change their relative weight by the width, and codebooks collapse.
    * The state records that the codebooks have been initialised, so that a loaded network is not initialised again.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from feedgym.tokenizers.residual_kmeans import fit_centroids


class QuantizedLatents(NamedTuple):
    """Latents [N, D] after quantization.

    Attributes:
        codes_NL: int64 nearest codeword of each level.
        vectors_ND: the sum of the codewords; its gradient is the latents' (straight through).
        loss_N: sum over levels of |sg[r] - e|^2 + beta |r - sg[e]|^2, each summed over D.
        residuals_LND: input of each level, without gradient.
    """

    codes_NL: Tensor
    vectors_ND: Tensor
    loss_N: Tensor
    residuals_LND: Tensor


class Losses(NamedTuple):
    """Scalar losses; ``total`` is the sum of the others, each summed over dimensions and averaged over rows."""

    total: Tensor
    reconstruction: Tensor
    quantization: Tensor


class Codebook(nn.Module):
    """The C codewords of one level, learned by gradient or as moving averages of the vectors they quantize.

    Args:
        num_codes: C.
        width: D.
        ema_decay: decay of the moving averages; None for learning by gradient.
    """

    idle_steps_C: Tensor
    mean_count_C: Tensor
    mean_sum_CD: Tensor

    def __init__(self, num_codes: int, width: int, ema_decay: float | None) -> None:
        super().__init__()
        self.ema_decay = ema_decay
        self.weight = nn.Parameter(torch.zeros(num_codes, width), requires_grad=ema_decay is None)
        self.register_buffer("idle_steps_C", torch.zeros(num_codes, dtype=torch.int64))
        if ema_decay is not None:
            self.register_buffer("mean_count_C", torch.zeros(num_codes))
            self.register_buffer("mean_sum_CD", torch.zeros(num_codes, width))

    def nearest(self, residual_ND: Tensor) -> Tensor:
        """int64 [N] the nearest codeword of each row."""
        with torch.no_grad():
            distance_NC = self.weight.square().sum(1) - 2 * residual_ND @ self.weight.T
            return distance_NC.argmin(dim=1)

    @torch.no_grad()
    def place(self, codes: Tensor, vectors: Tensor, count: Tensor | float = 1.0) -> None:
        """Set codewords, as averages of ``count`` rows."""
        self.weight[codes] = vectors
        self.idle_steps_C[codes] = 0
        if self.ema_decay is not None:
            self.mean_count_C[codes] = torch.as_tensor(count, dtype=self.weight.dtype, device=self.weight.device)
            self.mean_sum_CD[codes] = vectors * self.mean_count_C[codes][:, None]

    @torch.no_grad()
    def follow(self, residual_ND: Tensor, code_N: Tensor) -> None:
        """Record which codewords were used and, with moving averages, update them (arXiv:1711.00937, app. A.1)."""
        count_C = code_N.bincount(minlength=len(self.weight)).to(self.weight.dtype)
        self.idle_steps_C += 1
        self.idle_steps_C[count_C > 0] = 0
        if self.ema_decay is not None:
            # Counts and sums are averaged separately, so that their quotient weights each row equally whatever the
            # batch size. Unused codewords stay where they are, as both would shrink by the same factor.
            sum_CD = torch.zeros_like(self.weight).index_add_(0, code_N, residual_ND)
            self.mean_count_C.lerp_(count_C, 1 - self.ema_decay)
            self.mean_sum_CD.lerp_(sum_CD, 1 - self.ema_decay)
            used_C = count_C > 0
            self.weight[used_C] = self.mean_sum_CD[used_C] / self.mean_count_C[used_C][:, None]

    def revive(self, residual_ND: Tensor, after_steps: int, rng: np.random.Generator) -> int:
        """Restart codewords unused for ``after_steps`` steps at random rows; returns their number."""
        # A codeword that is nearest to nothing gets no gradient and never recovers by itself. Placed on a residual of
        # the batch, it is nearest to that one at once. The rows differ, since of two equal codewords only one is ever
        # used.
        dead = (self.idle_steps_C >= after_steps).nonzero().flatten()
        if len(dead):
            rows = torch.from_numpy(rng.permutation(len(residual_ND))[: len(dead)]).to(dead.device)
            self.place(dead[: len(rows)], residual_ND[rows])
        return len(dead)


class ResidualQuantizer(nn.Module):
    """L codebooks, each quantizing the residual of those before it.

    Args:
        num_codes: codes of each level.
        width: D.
        beta: weight of the commitment.
        ema_decay: see :class:`Codebook`.
    """

    initialised: Tensor

    def __init__(self, num_codes: tuple[int, ...], width: int, beta: float, ema_decay: float | None) -> None:
        super().__init__()
        self.beta = beta
        self.books = nn.ModuleList(Codebook(size, width, ema_decay) for size in num_codes)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    @property
    def levels(self) -> list[Codebook]:
        """The codebooks of the L levels."""
        return cast(list[Codebook], list(self.books))

    def forward(self, latent_ND: Tensor) -> QuantizedLatents:
        """Quantize without changing the module."""
        residual_ND, sum_ND = latent_ND, torch.zeros_like(latent_ND)
        loss_N = latent_ND.new_zeros(len(latent_ND))
        codes, residuals = [], []
        for book in self.levels:
            code_N = book.nearest(residual_ND)
            word_ND = book.weight[code_N]
            codebook_N = (residual_ND.detach() - word_ND).square().sum(1)
            commitment_N = (residual_ND - word_ND.detach()).square().sum(1)
            loss_N = loss_N + codebook_N + self.beta * commitment_N
            codes.append(code_N)
            residuals.append(residual_ND.detach())
            residual_ND = residual_ND - word_ND.detach()
            sum_ND = sum_ND + word_ND.detach()
        straight_ND = latent_ND + (sum_ND - latent_ND).detach()
        return QuantizedLatents(torch.stack(codes, dim=1), straight_ND, loss_N, torch.stack(residuals))

    def words(self, codes: Tensor) -> Tensor:
        """The sum of the codewords [..., D] of codes [..., L or more]; levels without a codebook are ignored."""
        return torch.stack([book.weight[codes[..., level]] for level, book in enumerate(self.levels)]).sum(dim=0)

    @torch.no_grad()
    def initialise(self, latent_ND: Tensor, iterations: int, rng: np.random.Generator) -> None:
        """Initialise codebooks by residual k-means of the latents, only the first time."""
        if self.initialised:
            return
        residual_ND = latent_ND
        for book in self.levels:
            points = residual_ND.double().cpu().numpy()
            centroids = torch.from_numpy(fit_centroids(points, len(book.weight), "nearest", iterations, rng))
            book.place(torch.arange(len(centroids), device=latent_ND.device), centroids.to(latent_ND))
            residual_ND = residual_ND - book.weight[book.nearest(residual_ND)]
        self.initialised.fill_(True)

    def follow(self, quantized: QuantizedLatents, revive_after_steps: int, rng: np.random.Generator) -> None:
        """Apply a step's changes besides gradients: moving averages, and revival of unused codewords (0: none)."""
        for level, book in enumerate(self.levels):
            book.follow(quantized.residuals_LND[level], quantized.codes_NL[:, level])
            if revive_after_steps:
                book.revive(quantized.residuals_LND[level], revive_after_steps, rng)


class RQVAENetwork(nn.Module):
    """Encoder, quantizer and decoder over standardised content.

    Args:
        widths: widths of the encoder's layers, from content to latents; the decoder has them in reverse.
        num_codes, beta, ema_decay: see :class:`ResidualQuantizer`.
    """

    def __init__(
        self, widths: tuple[int, ...], num_codes: tuple[int, ...], beta: float, ema_decay: float | None
    ) -> None:
        super().__init__()
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.quantizer = ResidualQuantizer(num_codes, widths[-1], beta, ema_decay)

    def forward(self, content_NE: Tensor) -> tuple[Tensor, QuantizedLatents]:
        """The content reconstructed from the codes, [N, E], and the codes."""
        quantized = self.quantizer(self.encoder(content_NE))
        return self.decoder(quantized.vectors_ND), quantized

    def losses(self, content_NE: Tensor) -> tuple[Losses, QuantizedLatents]:
        """TIGER §3.1: |x - x'|^2 + sum over levels of |sg[r] - e|^2 + beta |r - sg[e]|^2."""
        rebuilt_NE, quantized = self(content_NE)
        reconstruction = (rebuilt_NE - content_NE).square().sum(1).mean()
        quantization = quantized.loss_N.mean()
        return Losses(reconstruction + quantization, reconstruction, quantization), quantized


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
