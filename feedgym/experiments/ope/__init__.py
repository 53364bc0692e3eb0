"""Off-policy evaluation: estimates agents that were never served, from a log that another policy made."""
