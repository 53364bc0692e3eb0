"""Serve two agents and the oracle to the same fresh users, with the same random numbers."""

import torch

import feedgym
from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.experiments.exposure import exposure_counts

log, catalog = feedgym.simulate("interest_evolution", num_users=200, visits=5)
popular = PopularRecommender(torch.from_numpy(exposure_counts(log, catalog.num_items)), session_length=5)
agents = {"random": RandomRecommender(catalog.num_items, session_length=5), "popular": popular}
for name, metrics in feedgym.evaluate(agents, users="interest_evolution", num_users=300).items():
    print(f"{name:<8} true reward per visit {metrics['true_reward']['mean']:.2f}")
