"""Simulators learned from logs, and the realism of logs."""
