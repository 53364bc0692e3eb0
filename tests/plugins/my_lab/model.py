"""A small generative model: a recurrent cell that starts from the mean of the history and writes code after code."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from feedgym.agents.session_model import history_columns, next_token_loss
from feedgym.data.batches import EventBatch
from feedgym.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Its size."""

    width: int = 16
    """D."""


class State:
    """The hidden vectors of the rows being written."""

    def __init__(self, hidden_USD):
        self.hidden_USD = hidden_USD

    def select(self, parent_US):
        self.hidden_USD = self.hidden_USD.gather(1, parent_US[..., None].expand(-1, -1, self.hidden_USD.shape[2]))


class Recurrent(nn.Module):
    """The model; a plain torch module and nothing of transformers."""

    Config = RecurrentConfig

    def __init__(self, width, num_codes, codes_IL, session_length, tokenizer_hash):
        super().__init__()
        self.config = SimpleNamespace(session_length=session_length)
        self.facts = {"width": width, "num_codes": list(num_codes), "session_length": session_length,
                      "tokenizer_hash": tokenizer_hash}  # fmt: skip
        self.vocabulary = Vocabulary(tuple(num_codes))
        self.register_buffer("codes_IL", codes_IL)
        self.tokens = nn.Embedding(self.vocabulary.size, width)
        self.first = nn.Linear(width, width)
        self.cell = nn.GRUCell(width, width)
        self.out = nn.Linear(width, self.vocabulary.size)

    @classmethod
    def build(cls, config, tokenizer, *, session_length, history_length, profile_sizes):
        return cls(config.width, tokenizer.num_codes, tokenizer.codes_IL.clone(), session_length, tokenizer.hash)

    @classmethod
    def load(cls, folder, tokenizer):
        facts = json.loads((Path(folder) / "recurrent.json").read_text())
        if facts["tokenizer_hash"] != tokenizer.hash:
            raise ValueError(f"{folder} was trained with another tokenizer; load the one saved beside it.")
        model = cls(codes_IL=tokenizer.codes_IL.clone(), **facts)
        model.load_state_dict(load_file(Path(folder) / "recurrent.safetensors"))
        return model

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "recurrent.json").write_text(json.dumps(self.facts))
        save_file({name: value.contiguous() for name, value in self.state_dict().items()},
                  Path(folder) / "recurrent.safetensors")  # fmt: skip

    def session_tokens(self, item_ids_NK):
        codes_NKL = self.codes_IL[item_ids_NK.clamp_min(0).to(self.codes_IL.device)]
        return self.vocabulary.session_tokens(codes_NKL.masked_fill(item_ids_NK[..., None] < 0, -1))

    def training_batch(self, histories, item_ids_NK):
        tokens_NM = self.session_tokens(item_ids_NK)
        labels_NM = tokens_NM.masked_fill(~self.vocabulary.completion_mask(tokens_NM), -100)
        return {"input_ids": tokens_NM, "labels": labels_NM, **history_columns(histories)}

    def forward(self, input_ids, attention_mask=None, labels=None, use_cache=None, **history):
        hidden_UD = self._first(EventBatch(**history))
        hidden_RD = hidden_UD.repeat(len(input_ids) // len(hidden_UD), 1)
        hidden = []
        for token_RD in self.tokens(input_ids).unbind(1):
            hidden_RD = self.cell(token_RD, hidden_RD)
            hidden.append(hidden_RD)
        logits = self.out(torch.stack(hidden, dim=1))
        return CausalLMOutput(loss=None if labels is None else next_token_loss(logits, labels), logits=logits)

    def start(self, histories, max_tokens):
        return State(self._first(histories)[:, None])

    def step(self, tokens_USM, state):
        hidden_RD = state.hidden_USD.flatten(0, 1)
        for token_RD in self.tokens(tokens_USM.flatten(0, 1)).unbind(1):
            hidden_RD = self.cell(token_RD, hidden_RD)
        state.hidden_USD = hidden_RD.view(state.hidden_USD.shape)
        return self.out(state.hidden_USD).float()

    def _first(self, histories):
        tokens_UT = self.vocabulary.token_ids(self.codes_IL[histories.item_ids_UT.clamp_min(0)])[..., 0]
        liked_UT1 = (histories.mask_UT & histories.behaviours_UTB[..., 0].bool())[..., None].float()
        mean_UD = (self.tokens(tokens_UT) * liked_UT1).sum(1) / liked_UT1.sum(1).clamp_min(1)
        return torch.tanh(self.first(mean_UD))
