"""Align OneRec by your own reward, and see how much its users gain; the preset is tiny, and Ray would take longer."""

import feedgym


def first_items(histories, sessions):
    """A silly reward: the lower the ids of a session's items, the better."""
    return -sessions.item_ids_USK.float().mean(-1)


small = {"preset": "onerec-ipa-smoke", "rounds": 2, "options": {"ray": "off"}}
result = feedgym.align(users="short_video", reward=first_items, method="dpo", **small)
print("true reward, aligned over base:", result.lift("true_reward"))
print(sorted(result.agents), "learned from", result.log.num_users, "users")
print("report:", result.report())
