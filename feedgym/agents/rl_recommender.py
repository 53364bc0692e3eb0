"""An agent trained with RLlib as a recommender: only its network, without Ray, RLlib or the critics.

A folder holds ``network.safetensors``, the weights and the items' features, and ``network.json``, the sizes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from feedgym.agents.plackett_luce import PlackettLuce
from feedgym.agents.requests import request_noise
from feedgym.agents.slates import NETWORKS
from feedgym.agents.slates.layers import SlateNetConfig
from feedgym.agents.slates.policy import SlateNetwork
from feedgym.agents.slates.world import SlateWorld
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.parquet import replacing

WEIGHTS, SIZES = "network.safetensors", "network.json"
ITEMS, LIVES = ("features_IF", "points_IE"), ("upload_s_I", "withdraw_s_I")
BLOCK_CELLS = 2**24
"""Scores of users, samples and items held at a time; keeps memory low."""


class RLlibRecommender:
    """Serves the sessions that a trained network chooses.

    Args:
        network: one of :mod:`feedgym.agents.slates`.
        draws: serve a session drawn with random numbers keyed by the request, instead of the best one. Use it for
            clones of a policy that draws: the likeliest session of such a clone is untypical of the policy, and never
            changes.
    """

    def __init__(self, network: SlateNetwork, draws: bool = False) -> None:
        self.network, self.draws = network.eval(), draws
        self.session_length = network.length

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user.

        They are drawn by Plackett-Luce from the policy's logits or SlateQ's scores, and place by place from the softmax
        of DQN's values. Proto-items have no log-probability.
        """
        return self._chosen(histories, n, generator)

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The network's best session, or a drawn one; the same for the same request."""
        return self._drawn(histories) if self.draws else self._chosen(histories, 1, None)

    def _drawn(self, histories: EventBatch) -> SessionBatch:
        size = max(1, BLOCK_CELLS // self.network.num_items)
        sessions = []
        for low in range(0, len(histories), size):
            block = histories.rows(slice(low, low + size))
            with torch.inference_mode():
                self.network.require_supply(block)
                slates = PlackettLuce(self.network.logits(block), self.session_length)
                gumbel_UI = -(-request_noise(block, self.network.num_items).clamp(1e-20, 1 - 1e-7).log()).log()
                items_UK = (slates.logits_UI + gumbel_UI).topk(self.session_length, dim=1).indices
                sessions.append(
                    SessionBatch(item_ids_USK=items_UK[:, None], logp_US=slates.log_prob(items_UK)[:, None])
                )
        return SessionBatch.cat(sessions)

    def _chosen(self, histories: EventBatch, n: int, generator: torch.Generator | None) -> SessionBatch:
        size = max(1, BLOCK_CELLS // (n * self.network.num_items))
        blocks = [histories.rows(slice(low, low + size)) for low in range(0, len(histories), size)]
        with torch.inference_mode():
            for block in blocks:
                self.network.require_supply(block)
            chosen = [self.network.choose(block, self.session_length, n, generator) for block in blocks]
        items_USK, logp_US = (torch.cat(part) for part in zip(*chosen, strict=True))
        return SessionBatch(item_ids_USK=items_USK, logp_US=logp_US)

    def save(self, folder: Path) -> None:
        """Write the network to a folder; each file is replaced as a whole."""
        network = self.network
        columns = ITEMS + (LIVES if network.world.dated else ())
        tensors = {f"world.{name}": torch.from_numpy(getattr(network.world, name)) for name in columns}
        tensors |= {name: value.contiguous() for name, value in network.state_dict().items()}
        sizes = {
            "kind": type(network).__name__,
            "sizes": asdict(network.sizes),
            "more": network.more,
            "draws": self.draws,
            "profile_sizes": network.world.profile_sizes,
            "session_length": network.world.session_length,
            "history_length": network.world.history_length,
        }
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary)
        with replacing(folder / SIZES) as temporary:
            Path(temporary).write_text(json.dumps(sizes, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a network from a folder.

        Raises:
            ValueError: the folder holds none, or a damaged one.
        """
        try:
            settings: dict[str, Any] = json.loads((folder / SIZES).read_text())
            tensors = load_file(folder / WEIGHTS)
            items = ITEMS + tuple(name for name in LIVES if f"world.{name}" in tensors)
            world = SlateWorld(
                **{name: tensors.pop(f"world.{name}").numpy() for name in items},
                profile_sizes=tuple(settings["profile_sizes"]),
                session_length=settings["session_length"],
                history_length=settings["history_length"],
            )
            network = NETWORKS[settings["kind"]](world, SlateNetConfig(**settings["sizes"]), **settings["more"])
            network.load_state_dict(tensors)
        except (OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no complete agent ({error}); train it again.") from error
        return cls(network, settings["draws"])
