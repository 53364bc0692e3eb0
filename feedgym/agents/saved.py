"""Reading back what ``save_pretrained`` of a model of ours has written, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils import logging as hf_logging

hf_logging.disable_progress_bar()  # loading and saving take milliseconds; the project draws its own bars

ADAPTER = "adapter_config.json"
"""By this file transformers finds another model's weights and code to load, where the library for it is installed."""

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def load_saved(kind: type[ModelT], folder: Path | str) -> ModelT:
    """The model of class ``kind`` saved in ``folder``.

    Raises:
        ValueError: a file is missing or damaged, or weights and configuration disagree.
    """
    folder = Path(folder)
    try:
        if not (folder / CONFIG_NAME).is_file():  # transformers would make one up or ask the internet
            raise FileNotFoundError(f"it has no {CONFIG_NAME}")
        # The model's own settings alone: by others transformers loads kernels, quantizers or code from elsewhere.
        settings: Any = kind.config_class
        own, given = settings().to_dict(), json.loads((folder / CONFIG_NAME).read_text())
        config = settings.from_dict({name: value for name, value in given.items() if name in own})
        if (folder / ADAPTER).exists():
            raise ValueError(f"it has an {ADAPTER}, and no {kind.__name__} has adapters")
        # Left alone, transformers puts random weights where it finds none, and a table where an error should be.
        loaded: Any = kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
        )
        model, found = loaded
        sizes = (name for name, *_ in found["mismatched_keys"])
        if astray := sorted({*found["missing_keys"], *found["unexpected_keys"], *sizes}):
            raise ValueError(f"weights and {CONFIG_NAME} disagree on {astray[0]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Cannot read the model in {folder} ({reason}); restore it or train again.") from error
    return model
