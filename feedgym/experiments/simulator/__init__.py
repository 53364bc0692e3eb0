"""Simulators learned from logs, and how real a log looks."""
