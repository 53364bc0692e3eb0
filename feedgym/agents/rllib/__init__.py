"""RLlib's new API stack on the feed.

:mod:`~feedgym.agents.rllib.task` says what is trained for, :mod:`~feedgym.agents.rllib.feeds` what it is trained in;
:mod:`~feedgym.agents.rllib.modules` makes the networks of :mod:`feedgym.agents.slates` into RLlib's modules,
:mod:`~feedgym.agents.rllib.configurations` chooses RLlib's settings, and :mod:`~feedgym.agents.rllib.training` trains.
Ray must be running (:func:`feedgym.experiments.rollouts.ray_running`). The weights of one network are all that a
trained agent needs afterwards.
"""
