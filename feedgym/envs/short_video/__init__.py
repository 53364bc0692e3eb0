"""The flagship simulator: users of a one-column short-video feed (:mod:`feedgym.envs.short_video.simulator`)."""

from feedgym.envs.short_video.calibrated import CalibratedConfig, ShortVideoCalibrated
from feedgym.envs.short_video.population import ShortVideoConfig, ShortVideoState
from feedgym.envs.short_video.simulator import ShortVideo

__all__ = ["CalibratedConfig", "ShortVideo", "ShortVideoCalibrated", "ShortVideoConfig", "ShortVideoState"]
