"""Configurations of models for transformers, and checked loading of models that ``save_pretrained`` wrote."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils import logging as hf_logging

hf_logging.disable_progress_bar()  # loading and saving take milliseconds; the project has its own bars

ADAPTER = "adapter_config.json"
"""With this file transformers would load another model's weights and code, if the library for it is installed."""


class SizedConfig(PreTrainedConfig):
    """Configuration of a model for transformers: its sizes, declared by a frozen dataclass, and facts about the data.

    A subclass names the dataclass in ``sizes``. Its fields become fields here, with the same defaults and checks, so
    that they are declared only once.
    """

    sizes: ClassVar[Any] = None

    if TYPE_CHECKING:  # including the fields of ``sizes``

        def __init__(self, **kwargs: Any) -> None: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if cls.sizes is not None:
            hints = get_type_hints(cls.sizes, include_extras=True)
            for field in fields(cls.sizes):
                cls.__annotations__[field.name] = hints[field.name]
                setattr(cls, field.name, field.default)
        super().__init_subclass__(**kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        for field in fields(self.sizes):
            if isinstance(value := getattr(self, field.name), list):
                setattr(self, field.name, tuple(value))  # JSON turns tuples into lists
        self.sizes(**{field.name: getattr(self, field.name) for field in fields(self.sizes)})
        super().__post_init__(**kwargs)


ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def load_saved(kind: type[ModelT], folder: Path | str) -> ModelT:
    """Load the model of class ``kind`` saved in ``folder``.

    Raises:
        ValueError: a file is missing or damaged, or weights and configuration disagree.
    """
    folder = Path(folder)
    try:
        if not (folder / CONFIG_NAME).is_file():  # transformers would invent one or look online
            raise FileNotFoundError(f"it has no {CONFIG_NAME}")
        # Only the model's own settings: others make transformers load kernels, quantizers or code from elsewhere.
        settings: Any = kind.config_class
        own, given = settings().to_dict(), json.loads((folder / CONFIG_NAME).read_text())
        config = settings.from_dict({name: value for name, value in given.items() if name in own})
        if (folder / ADAPTER).exists():
            raise ValueError(f"it has an {ADAPTER}, but a {kind.__name__} has no adapters")
        # By default, transformers replaces missing weights by random ones, and prints a table instead of an error.
        loaded: Any = kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
        )
        model, loading = loaded
        sizes = (name for name, *_ in loading["mismatched_keys"])
        if astray := sorted({*loading["missing_keys"], *loading["unexpected_keys"], *sizes}):
            raise ValueError(f"weights and {CONFIG_NAME} disagree on {astray[0]}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Cannot read the model in {folder} ({reason}); restore it or train again.") from error
    return model
