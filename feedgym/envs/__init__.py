"""User simulators and the Gymnasium shells around them.

feed: the shells over any simulator · levels: steps that are no whole visits · registration: their ids · short_video:
the flagship simulator, with catalog (its items), luck (its randomness), truth (what sessions are worth) and oracle (the
ceiling) · recsim: RecSim's three families · choice: choice
models for any simulator · logging: logs of simulated users · check: does a simulator keep its promises?
"""
