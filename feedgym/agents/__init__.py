"""Recommenders: generative agents and their baselines."""
