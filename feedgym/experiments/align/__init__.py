"""Iterative preference alignment."""
