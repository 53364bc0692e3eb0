"""Next-item retrieval: trains models and judges them by the full ranking."""
