"""Networks that choose slates, for reinforcement learning; without RLlib, so that a trained agent does not need it.

All read the history through one encoder and score items by one head (:mod:`~feedgym.agents.slates.layers`). A score is
a query vector times the item's vector, plus a bias per item. Item vectors are linear in the items' features. Next to
this deep part is a wide one (Cheng et al., arXiv:1606.07792), linear in the items' features. It has a weight for each
value of each profile field, and one for the feature's presence in the history. If responses are mostly noise, a deep
part alone learns the noise before it finds out which profile field matters for which items. The networks fit any
catalogue, any lengths and any profile (:mod:`~feedgym.agents.slates.world`).

=====================  ==============================================  ==============================================
network                trained by                                      chooses
=====================  ==============================================  ==============================================
:class:`SlatePolicy`   PPO, BC, MARWIL                                 Plackett-Luce over one score per item
:class:`SlateQ`        Q-learning of decomposed slates                 the K items of greatest choice times value
:class:`ItemQ`         DQN on one item per step                        at each place the item of greatest value
:class:`ProtoPolicy`   SAC, CQL                                        the items nearest to points in content space
=====================  ==============================================  ==============================================
"""

from __future__ import annotations

from feedgym.agents.slates.policy import SlateNetwork, SlatePolicy
from feedgym.agents.slates.proto import ProtoPolicy
from feedgym.agents.slates.values import ItemQ, SlateQ

NETWORKS: dict[str, type[SlateNetwork]] = {kind.__name__: kind for kind in (SlatePolicy, SlateQ, ItemQ, ProtoPolicy)}
"""Network classes by name, for files."""
