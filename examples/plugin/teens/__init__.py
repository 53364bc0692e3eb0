"""Teens for feedgym."""
