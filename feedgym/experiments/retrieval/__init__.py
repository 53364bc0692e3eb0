"""Next-item retrieval: training and judging by the full ranking."""
