"""RLlib's new API stack on the feed.

:mod:`~feedgym.agents.rllib.task` defines the task, and :mod:`~feedgym.agents.rllib.feeds` the training environments.
:mod:`~feedgym.agents.rllib.modules` wraps the networks of :mod:`feedgym.agents.slates` as RLlib's modules.
:mod:`~feedgym.agents.rllib.configurations` chooses RLlib's settings, and :mod:`~feedgym.agents.rllib.training` trains.
Ray must be running (:func:`feedgym.experiments.rollouts.ray_running`). Afterwards a trained agent needs only the
weights of one network.
"""
