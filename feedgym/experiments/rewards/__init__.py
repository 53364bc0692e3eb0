"""Reward models against each other: what each measures offline, and what the agent aligned to it is truly worth."""
