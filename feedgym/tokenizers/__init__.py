"""Item tokenizers: how an item becomes a short tuple of codes."""
