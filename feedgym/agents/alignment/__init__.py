"""Alignment methods; the only package that imports TRL."""
