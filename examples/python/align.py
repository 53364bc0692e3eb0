"""Align OneRec by your own reward, and see how much its users gain; takes seconds, because the preset is tiny."""

import feedgym


def first_items(histories, sessions):
    """A silly reward: the lower the ids of a session's items, the better."""
    return -sessions.item_ids_USK.float().mean(-1)


result = feedgym.align(users="short_video", reward=first_items, method="dpo", rounds=2, preset="onerec-ipa-smoke")
print("true reward, aligned over base:", result.lift("true_reward"))
print(sorted(result.agents), "learned from", result.log.num_users, "users")
print("report:", result.report())
