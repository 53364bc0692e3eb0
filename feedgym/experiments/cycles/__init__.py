"""Deployment cycles: serve, learn from what was served, serve again; and what that does to users in the long run."""
