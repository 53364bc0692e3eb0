"""Comparisons of alignment methods, and of the effects of their options: many alignments from one store."""
