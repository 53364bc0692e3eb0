"""Renders a feed as text or as a picture, for people."""

from feedgym.envs.render.screen import RENDER_FPS, RENDER_MODES, Screen

__all__ = ["RENDER_FPS", "RENDER_MODES", "Screen"]
