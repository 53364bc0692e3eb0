"""Off-policy evaluation: what a log made by one policy says of agents that were never served."""
