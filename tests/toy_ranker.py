"""A small ranker by the simulator's contract, for tests: logits from item, liking for contents, and duration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TASKS = ("click", "long_view", "like", "hate")


@dataclass
class ToyConfig:
    history_length: int = 12
    tasks: tuple[str, ...] = TASKS


@dataclass
class ToyPrediction:
    prob_UKM: torch.Tensor
    watch_fraction_UK: torch.Tensor | None


class ToyRanker:
    """Clicks follow the cosine between an item's content and the mean content of what was clicked."""

    def __init__(self, content_IE: torch.Tensor, config: ToyConfig | None = None, *, watch: bool = True) -> None:
        self.content_IE, self.config, self.watch = content_IE.float(), config or ToyConfig(), watch

    @torch.inference_mode()
    def predict(self, histories, item_ids_UK, mask_UK=None) -> ToyPrediction:
        weight_UT = histories.mask_UT.float() * histories.behaviours_UTB[:, :, 0]
        taste_UE = torch.einsum("ut,ute->ue", weight_UT, self.content_IE[histories.item_ids_UT])
        taste_UE = torch.nn.functional.normalize(taste_UE, dim=1)
        item_UKE = torch.nn.functional.normalize(self.content_IE[item_ids_UK], dim=2)
        liking_UK = 2 * torch.einsum("ue,uke->uk", taste_UE, item_UKE) + 0.3 * item_UKE.sum(2)
        offset_M = torch.tensor([-0.5, -0.8, -2.5, -3.5])[: len(self.config.tasks)]
        sign_M = torch.tensor([1.0, 1.0, 1.0, -1.0])[: len(self.config.tasks)]
        prob_UKM = torch.sigmoid(offset_M + sign_M * liking_UK[:, :, None])
        return ToyPrediction(prob_UKM, torch.sigmoid(liking_UK) if self.watch else None)

    def save_pretrained(self, folder: Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"content_IE": self.content_IE}, Path(folder) / "model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"watch": self.watch, **vars(self.config)}))

    @classmethod
    def load(cls, folder: Path) -> ToyRanker:
        facts = json.loads((Path(folder) / "config.json").read_text())
        config = ToyConfig(facts["history_length"], tuple(facts["tasks"]))
        return cls(load_file(Path(folder) / "model.safetensors")["content_IE"], config, watch=facts["watch"])
