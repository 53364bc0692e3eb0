"""Ranking: trains and judges models by users' responses to shown items."""
