"""RQ-VAE: TIGER's tokenizer (arXiv:2305.05065, §3.1).

An autoencoder of the items' content whose latents are quantized level by level. An item's codes are the codewords
nearest to the residual after the levels before. Network and loss are in :mod:`feedgym.tokenizers.rqvae_network`.

Deviations from the paper:
    * The encoder's hidden layers have 2/3, 1/3 and 1/6 of the content's width, but at least that of the latents. At the
      paper's 768 these are its 512, 256 and 128; ``hidden_widths`` sets others.
    * The content is centred and divided by one number, its overall standard deviation, so that the losses' weights do
      not depend on its scale.
    * Codebooks start from residual k-means of the whole catalogue's latents, not of the first batch's. A batch is too
      small to start hundreds of codes.
    * Codewords that no batch used for a while restart at random residuals of the batch; ``codebook="ema"`` learns them
      as moving averages instead of by gradient. The paper mentions neither.
    * Adam with 5,000 steps. ``optimizer`` offers the paper's Adagrad; ``steps`` replaces its 20,000 epochs.
    * One more level counts items with the same codes, always as in the paper. With ``collisions="sinkhorn"`` they are
      first spread over the last level, and counted only if some still collide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedgym.data.whole import last_whole_checkpoint, new_checkpoint
from feedgym.ranges import BelowOne, Count, CountOrZero, LearningRate, NonNegative, Passes, Ranged, Seed, Steps, Width
from feedgym.tokenizers.assignment import sinkhorn_apart
from feedgym.tokenizers.codes import (
    CodeTokenizer,
    append_counter,
    check_no_code_empty,
    check_num_codes,
    checked_content,
    with_num_codes,
)
from feedgym.tokenizers.rqvae_network import RQVAENetwork

Progress = Callable[[int, int, Mapping[str, float]], None]
"""``progress(done, total, metrics)``, called after each step."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
CHECKPOINT = "rqvae-training.safetensors"
_ENCODED_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class RQVAEConfig(Ranged):
    """Sizes and training of an RQ-VAE."""

    hidden_widths: tuple[Width, ...] | None = None
    """Widths of the encoder's hidden layers, reversed for the decoder; chosen by the content's width if left out."""
    latent_width: Width = 32
    """Width of the latents and codewords."""
    beta: NonNegative = 0.25
    """Weight of the commitment loss of latents to their codewords."""
    codebook: Literal["gradient", "ema"] = "gradient"
    """Update of the codewords: by gradient, or as moving averages of the latents they quantize."""
    ema_decay: BelowOne = 0.99
    """Decay of the moving averages."""
    revive_steps: CountOrZero = 100
    """Steps without use after which a codeword restarts at a random residual of the batch; 0 for never."""
    collisions: Literal["counter", "sinkhorn"] = "counter"
    """Treatment of items with the same codes. counter counts them by one more level. sinkhorn spreads them over the
    last level, and counts those that still collide."""
    optimizer: Literal["adam", "adagrad"] = "adam"
    """Optimiser of the network."""
    lr: LearningRate = 1e-3
    """Constant learning rate."""
    batch_size: Count = 1024
    """Items per step."""
    steps: Steps = 5000
    """Training steps."""
    kmeans_iterations: Passes = 30
    """Most passes of the k-means that starts each codebook."""
    checkpoint_steps: Count = 1000
    """Steps between checkpoints, if a folder for them is given."""

    num_codes: tuple[Width, ...] | None = None
    """Codes of each level, one number per level; chosen by the number of items if left out. A level that counts
    colliding items comes after them."""
    seed: Seed = 0
    """Seed for the initial weights, k-means, the order of the items and revived codewords."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}.")
        check_num_codes(self.num_codes)

    def widths(self, content_width: int) -> tuple[int, ...]:
        """Widths of the encoder's layers, from the content to the latents."""
        hidden = self.hidden_widths
        if hidden is None:
            hidden = tuple(max(round(content_width * share / 6), self.latent_width) for share in (4, 2, 1))
        return (content_width, *hidden, self.latent_width)


_CHOICES = {
    "codebook": ("gradient", "ema"),
    "collisions": ("counter", "sinkhorn"),
    "optimizer": tuple(OPTIMIZERS),
}


class RQVAE(CodeTokenizer):
    """Tokenizer by a residual-quantized autoencoder; ``learned`` holds the network and the content's mean and scale."""

    Config = RQVAEConfig

    def __init__(self, config: RQVAEConfig | None = None) -> None:
        super().__init__(config or RQVAEConfig())

    def fit(
        self, content_IE: Tensor | ArrayLike, *, work: Path | str | None = None, progress: Progress | None = None
    ) -> Self:
        """Train on a catalogue and fix its codes.

        Args:
            content_IE: [I, E] content embeddings; training runs on the device of a tensor.
            work: folder for a checkpoint every ``checkpoint_steps`` steps; training resumes from one found there, with
                the same codes as without an interruption.
            progress: called after each step with the loss and its parts.

        Raises:
            ValueError: the content is not a finite matrix, or a level has more codes than there are items. Or the
                checkpoint belongs to another configuration or other content.
        """
        content = checked_content(content_IE)
        self.config = with_num_codes(self.config, len(content))
        check_no_code_empty(self.config.num_codes, len(content))
        device = content_IE.device if isinstance(content_IE, Tensor) else torch.device("cpu")
        mean_E, scale = content.mean(axis=0), float(np.sqrt(content.var(axis=0).mean())) or 1.0
        x_IE = torch.from_numpy(((content - mean_E) / scale).astype(np.float32)).to(device)
        network = self._network(content.shape[1]).to(device)
        checkpoint = _Checkpoint(Path(work), self.config, x_IE) if work is not None else None
        _train(network, x_IE, self.config, checkpoint, progress or (lambda done, total, metrics: None))
        learned = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        learned["mean_E"] = torch.from_numpy(mean_E.astype(np.float32))
        learned["scale"] = torch.tensor(scale, dtype=torch.float32)
        codes_IL, residual_ID = _nearest_codes(network, x_IE)
        repaired = self.config.collisions == "sinkhorn"
        if repaired:
            codes_IL = _spread(codes_IL, residual_ID, network)
        codes_IL, num_codes = append_counter(codes_IL, self.config.num_codes, only_if_needed=repaired)
        return self.freeze(codes_IL, num_codes, num_content_levels=len(self.config.num_codes), **learned)

    def quantize(self, content_NE: Tensor | ArrayLike) -> Tensor:
        """int64 [N, num_content_levels] nearest codes of any content, including items of another catalogue."""
        network = self.network()
        content = torch.as_tensor(content_NE, dtype=torch.float32).cpu()
        return _nearest_codes(network, (content - self.learned["mean_E"]) / self.learned["scale"])[0]

    def reconstruct(self, codes: Tensor) -> Tensor:
        """float32 content [..., E] that codes [..., L] describe: the sum of their codewords, decoded."""
        network = self.network().to(codes.device)
        with torch.no_grad():
            x = network.decoder(network.quantizer.words(codes))
        return x * self.learned["scale"].to(codes.device) + self.learned["mean_E"].to(codes.device)

    @property
    def codebooks(self) -> list[Tensor]:
        """The codewords [C, D] of the levels that come from content."""
        names = (f"network.quantizer.books.{level}.weight" for level in range(len(self.config.num_codes)))
        return [self.learned[name] for name in names if name in self.learned]

    def network(self) -> RQVAENetwork:
        """A copy of the trained network, on the CPU."""
        self.trie()  # raises an error with the remedy if nothing was learned yet
        network = self._network(len(self.learned["mean_E"]))
        prefix = "network."
        state = {k.removeprefix(prefix): v for k, v in self.learned.items() if k.startswith(prefix)}
        network.load_state_dict(state)
        return network.eval()

    def _network(self, content_width: int) -> RQVAENetwork:
        config = self.config
        ema_decay = config.ema_decay if config.codebook == "ema" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return RQVAENetwork(config.widths(content_width), config.num_codes, config.beta, ema_decay)


def _train(
    network: RQVAENetwork, x_IE: Tensor, config: RQVAEConfig, checkpoint: _Checkpoint | None, progress: Progress
) -> None:
    """Initialise the codebooks and do the remaining steps; all randomness is a function of seed and step."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[config.optimizer](trained, lr=config.lr)
    done = checkpoint.read(network, optimizer) if checkpoint else 0
    with torch.no_grad():
        latent_ID = network.encoder(x_IE)
    network.quantizer.initialise(latent_ID, config.kmeans_iterations, np.random.default_rng([config.seed, 0]))
    for step in range(done, config.steps):
        losses, quantized = network.losses(x_IE[_batch(step, len(x_IE), config).to(x_IE.device)])
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        network.quantizer.follow(quantized, config.revive_steps, np.random.default_rng([config.seed, 1, step]))
        done = step + 1
        if checkpoint and (done % config.checkpoint_steps == 0 or done == config.steps):
            checkpoint.write(network, optimizer, done)
        progress(done, config.steps, {name: value.item() for name, value in losses._asdict().items()})


def _batch(step: int, num_items: int, config: RQVAEConfig) -> Tensor:
    """The items of a step: each epoch goes through all of them in its own order."""
    steps_an_epoch = -(-num_items // config.batch_size)
    epoch, place = divmod(step, steps_an_epoch)
    order_I = np.random.default_rng([config.seed, 2, epoch]).permutation(num_items)
    return torch.from_numpy(order_I[place * config.batch_size : (place + 1) * config.batch_size])


@torch.no_grad()
def _nearest_codes(network: RQVAENetwork, x_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, L] and the input of the last level [N, D], on the CPU."""
    parts = [network.quantizer(network.encoder(x)) for x in x_NE.split(_ENCODED_AT_ONCE)]
    codes_NL = torch.cat([part.codes_NL for part in parts])
    return codes_NL.cpu(), torch.cat([part.residuals_LND[-1] for part in parts]).cpu()


def _spread(codes_IL: Tensor, residual_ID: Tensor, network: RQVAENetwork) -> Tensor:
    """Codes with a new last level for items that collided."""
    prefix_I = codes_IL[:, :-1].unique(dim=0, return_inverse=True)[1].numpy()
    words_CD = network.quantizer.levels[-1].weight.detach().double().cpu().numpy()
    last_I = sinkhorn_apart(residual_ID.double().numpy(), words_CD, codes_IL[:, -1].numpy(), prefix_I)
    return torch.cat([codes_IL[:, :-1], torch.from_numpy(last_I)[:, None]], dim=1)


class _Checkpoint:
    """State of a training that can be resumed: network, optimizer and step, in one safetensors file."""

    def __init__(self, folder: Path, config: RQVAEConfig, x_IE: Tensor) -> None:
        self.folder = folder
        digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
        digest.update(x_IE.cpu().numpy().tobytes())
        self.belongs_to = digest.hexdigest()

    def write(self, network: RQVAENetwork, optimizer: torch.optim.Optimizer, step: int) -> None:
        tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        with new_checkpoint(self.folder, step) as folder:
            save_file(tensors, folder / CHECKPOINT, metadata={"step": str(step), "belongs_to": self.belongs_to})

    def read(self, network: RQVAENetwork, optimizer: torch.optim.Optimizer) -> int:
        """The number of steps done; 0 without a complete checkpoint."""
        if (folder := last_whole_checkpoint(self.folder)) is None:
            return 0
        with safe_open(folder / CHECKPOINT, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if metadata.get("belongs_to") != self.belongs_to:
            raise ValueError(
                f"{folder} belongs to another configuration or other content; give another folder, or delete it."
            )
        optimizer_state: dict[int, dict[str, Any]] = {}
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            _, number, key = name.split(".")
            optimizer_state.setdefault(int(number), {})[key] = tensors.pop(name)
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in tensors.items()})
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
        return int(metadata["step"])
