"""Session rewards: learned models and plain functions."""
