"""Model cards: the README.md that a saved model's folder has, as Hugging Face's libraries write one."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

CARD = "README.md"


class WithCard(PreTrainedModel):
    """A model whose ``save_pretrained`` writes a card beside the weights."""

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """As in transformers, and the card (:func:`card_of`)."""
        super().save_pretrained(save_directory, *args, **options)
        (Path(save_directory) / CARD).write_text(card_of(self), encoding="utf-8")


def card_of(model: PreTrainedModel) -> str:
    """The card: what the model is, by its module's docstring, its settings, and how to load it."""
    kind = type(model)
    told = inspect.getdoc(sys.modules[kind.__module__]) or ""
    title, _, rest = told.partition("\n")
    of_all = PreTrainedConfig().to_dict()
    own = {name: value for name, value in sorted(model.config.to_dict().items()) if name not in of_all}
    rows = "\n".join(f"| {name} | {value} |" for name, value in own.items())
    return f"""---
library_name: feedgym
license: apache-2.0
tags:
- recommender-systems
- {kind.__name__.lower()}
---
# {kind.__name__}
{title}

{rest.strip()}

## Settings
{model.num_parameters():,} parameters.

| setting | value |
|---|---|
{rows}

## Use
```python
from {kind.__module__} import {kind.__name__}

model = {kind.__name__}.load({", ".join(['"FOLDER"', *_rest_of_load(kind)])})
```
The folder holds data alone: weights as safetensors, settings as JSON. What the model was trained on is in `config.json`
and `stages/` of the run that made it. The behaviour of simulated users says nothing about real ones.
"""


def _rest_of_load(kind: Any) -> list[str]:
    """The parameters of ``load`` after the folder that have no default."""
    parameters = list(inspect.signature(kind.load).parameters.values())[1:]
    return [one.name for one in parameters if one.default is inspect.Parameter.empty]
