"""Experiments: the alignment loop, evaluation, run folders and reports."""
