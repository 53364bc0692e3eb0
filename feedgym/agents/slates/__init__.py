"""Networks that choose slates, for reinforcement learning; no RLlib in them, so that a trained agent needs none.

All read the history through one encoder and score items by one head (:mod:`~feedgym.agents.slates.layers`): a query
vector against item vectors, which are linear in what the catalogue tells, plus a bias per item. Beside this deep part
is a wide one (Cheng et al., arXiv:1606.07792), linear in the items' features: a weight for each value of each
profile field, and what the history holds of the feature. Where the answers are mostly noise, a deep part alone learns
the noise before it has found out which profile field speaks of which items. They are general: any catalogue, any
lengths, any profile (:mod:`~feedgym.agents.slates.world`).

=====================  ==============================================  ==============================================
network                trained by                                      chooses
=====================  ==============================================  ==============================================
:class:`SlatePolicy`   PPO, BC, MARWIL                                 Plackett-Luce over one score per item
:class:`SlateQ`        Q-learning of decomposed slates                 the K items of greatest choice times value
:class:`ItemQ`         DQN on one item a step                          place by place the item of greatest value
:class:`ProtoPolicy`   SAC, CQL                                        the items nearest to points of content space
=====================  ==============================================  ==============================================
"""

from __future__ import annotations

from feedgym.agents.slates.policy import SlateNetwork, SlatePolicy
from feedgym.agents.slates.proto import ProtoPolicy
from feedgym.agents.slates.values import ItemQ, SlateQ

NETWORKS: dict[str, type[SlateNetwork]] = {kind.__name__: kind for kind in (SlatePolicy, SlateQ, ItemQ, ProtoPolicy)}
"""By name, for files."""
