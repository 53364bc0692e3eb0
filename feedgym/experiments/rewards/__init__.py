"""Comparisons of reward models: measured offline, and by the true reward of the agent aligned to each."""
