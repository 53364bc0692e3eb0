"""Reinforcement learning on the feed."""
