"""Recommenders of several stages, compared with generative ones."""
