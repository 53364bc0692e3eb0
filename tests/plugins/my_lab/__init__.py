"""A package of somebody else's: users, codes, an agent, a reward and a method of alignment for feedgym."""
