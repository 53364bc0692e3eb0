"""Conformance of generative models: a sound one passes, and each broken one is told what to change."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from my_lab.model import Recurrent, State
from toy_agents import toy_histories

from feedgym.agents.check_model import check_model
from feedgym.agents.onerec import OneRec, OneRecSizes

CONTENT = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
HISTORIES = toy_histories(5, num_items=40)
PROFILE = (3, 2)


@dataclass(frozen=True, kw_only=True)
class Small(OneRecSizes):
    d_model: int = 16
    num_heads: int = 2
    dropout: float = 0.3


class SmallOneRec(OneRec):
    Config = Small


@pytest.mark.parametrize("kind", [Recurrent, SmallOneRec])
def test_sound_models_pass_and_leave_the_histories_and_chance_alone(kind):
    kept = {name: column.clone() for name, column in vars(HISTORIES).items() if column is not None}
    torch.manual_seed(7)
    check_model(kind, HISTORIES, CONTENT, PROFILE)
    assert all(torch.equal(getattr(HISTORIES, name), column) for name, column in kept.items())
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), after)


@dataclass
class LooseConfig:
    width: int = 16


class Loose(Recurrent):
    Config = LooseConfig


@dataclass(frozen=True, kw_only=True)
class NeedyConfig:
    width: int


class Needy(Recurrent):
    Config = NeedyConfig


class WithoutConfig(Recurrent):
    Config = None


class Picky(Recurrent):
    @classmethod
    def build(cls, config, tokenizer, **lengths):
        raise ValueError("I want three levels")


class Positional(Recurrent):
    @classmethod
    def build(cls, config, tokenizer):
        return super().build(config, tokenizer, session_length=4, history_length=6, profile_sizes=())


class Unseeded(Recurrent):
    draws = torch.Generator().manual_seed(0)

    def __init__(self, *args, **facts):
        super().__init__(*args, **facts)
        self.first.weight.data += torch.randn(self.first.weight.shape, generator=self.draws)


class NoPadding(Recurrent):
    def session_tokens(self, item_ids_NK):
        return super().session_tokens(item_ids_NK.clamp_min(0))


class NoLoss(Recurrent):
    def training_batch(self, histories, item_ids_NK):
        return {k: v for k, v in super().training_batch(histories, item_ids_NK).items() if k != "labels"}


class Detached(Recurrent):
    def forward(self, *args, **batch):
        output = super().forward(*args, **batch)
        output.loss = None if output.loss is None else output.loss.detach()
        return output


class Greedy(Recurrent):
    """Takes the events for its own."""

    def forward(self, *args, **batch):
        batch["watch_fraction_UT"].add_(1)
        return super().forward(*args, **batch)


class Dicey(Recurrent):
    def forward(self, *args, **batch):
        output = super().forward(*args, **batch)
        output.logits = torch.nn.functional.dropout(output.logits, 0.5)
        return output


class Mean(Recurrent):
    """What one user liked reaches all others."""

    def _first(self, histories):
        first_UD = super()._first(histories)
        return first_UD + first_UD.mean(0)


class Interleaved(Recurrent):
    """Row r continues history r // S."""

    def forward(self, input_ids, labels=None, **batch):
        users, rows = len(batch["mask_UT"]), len(input_ids)
        place = torch.arange(rows).view(-1, users)
        output = super().forward(input_ids.view(users, -1, input_ids.shape[1]).transpose(0, 1).flatten(0, 1), **batch)
        output.logits = output.logits[place.T.flatten()]
        if labels is not None:
            output.loss = super().forward(input_ids, labels=labels, **batch).loss
        return output


class Padded(Recurrent):
    def _first(self, histories):
        return super()._first(histories) + histories.watch_fraction_UT.sum(1, keepdim=True)


class Hasty(Recurrent):
    """Forgets the session when it writes: only the newest token counts."""

    def step(self, tokens_USM, state):
        return super().step(tokens_USM[..., -1:], state)


class Stays(State):
    def select(self, parent_US):
        super().select(parent_US if self.hidden_USD.shape[1] == 1 else torch.arange(3).expand_as(parent_US))


class Parentless(Recurrent):
    def start(self, histories, max_tokens):
        return Stays(self._first(histories)[:, None])


class Mixing(State):
    def select(self, parent_US):
        first = self.hidden_USD.shape[1] == 1
        super().select(parent_US)
        if first:  # rows of all users in another order than they are in
            self.hidden_USD = self.hidden_USD.transpose(0, 1).reshape(self.hidden_USD.shape)


class Mixed(Recurrent):
    def start(self, histories, max_tokens):
        return Mixing(self._first(histories)[:, None])


class Memoryless(Recurrent):
    def start(self, histories, max_tokens):
        return SimpleNamespace(hidden_USD=self._first(histories)[:, None])


class Pickled(Recurrent):
    def save_pretrained(self, folder):
        super().save_pretrained(folder)
        torch.save(self.state_dict(), folder / "weights.pt")


class Forgetful(Recurrent):
    @classmethod
    def load(cls, folder, tokenizer):
        model = super().load(folder, tokenizer)
        torch.nn.init.zeros_(model.first.weight)
        return model


class Trusting(Recurrent):
    @classmethod
    def load(cls, folder, tokenizer):
        tokenizer.hash = cls.known
        return super().load(folder, tokenizer)

    def save_pretrained(self, folder):
        type(self).known = self.facts["tokenizer_hash"]
        super().save_pretrained(folder)


class Crashing(Recurrent):
    @classmethod
    def load(cls, folder, tokenizer):
        try:
            return super().load(folder, tokenizer)
        except ValueError:
            raise KeyError("size") from None


BROKEN = [
    (Loose, r"Loose.Config \(LooseConfig\) can be changed; declare it @dataclass\(frozen=True"),
    (Needy, "has no default for width; give every option one"),
    (WithoutConfig, "Config is None; set it to a frozen dataclass"),
    (Picky, "refused every tokenizer: ResidualKMeans: I want three levels; ItemId: I want"),
    (
        Positional,
        r"build\(\) cannot be called .*; let it be a classmethod build\(config, tokenizer, \*,",
    ),
    (Unseeded, "other weights under the same torch.manual_seed"),
    (NoPadding, "BOS before every item, PAD where an item is -1"),
    (NoLoss, "has the loss a NoneType; return an output whose loss is one finite number"),
    (Detached, "loss has no gradient on any parameter"),
    (Greedy, "changed the histories or sessions it was given; work on copies"),
    (Dicey, r"after train\(False\) nothing may be random"),
    (Mean, "let no user's logits depend on the others"),
    (Interleaved, "row r of input_ids continues history r mod U"),
    (Padded, "reads events where mask_UT is false"),
    (Hasty, r"step\(\) gave log-probabilities that differ from forward\(\)'s by up to"),
    (Parentless, r"state does not follow select\(parent_US\)"),
    (Mixed, "mix no users' rows"),
    (Memoryless, r"start\(\) returned SimpleNamespace, which has no select\(parent_US\)"),
    (Pickled, r"wrote weights.pt; write only .safetensors and .json: pickles and code"),
    (Forgetful, "other logits than the saved one; save and load every weight"),
    (Trusting, "accepted another tokenizer than the model was built with; save tokenizer.hash"),
    (Crashing, r"fails for another tokenizer with KeyError \('size'\); compare tokenizer.hash"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_a_broken_model_is_told_what_to_change(broken, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_model(broken, HISTORIES, CONTENT, PROFILE)
    assert "\n" not in str(caught.value)


def test_a_class_without_the_methods_is_told_so():
    with pytest.raises(ValueError, match=r"object has no build\(\); see feedgym.protocols.GenerativeAgent"):
        check_model(object, HISTORIES, CONTENT, PROFILE)
