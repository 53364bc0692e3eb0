"""User simulators and their Gymnasium environments.

feed: the environments over any simulator · levels: steps that are not whole visits · registration: their ids ·
short_video: the flagship simulator, with catalog (its items) and oracle (the ceiling) · luck: randomness · truth: the
true value of sessions · recsim: RecSim's three families · choice: choice models for any simulator · logging: logs of
simulated users · check: tests that a simulator keeps the rules
"""
