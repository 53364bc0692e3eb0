"""Recommenders with several stages, compared with generative ones."""
