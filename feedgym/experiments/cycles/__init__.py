"""Deployment cycles: serve users, learn from their responses, serve again; with the long-term effects on users."""
