"""Let users visit under the production system and look at their log; ``out=`` writes it as parquet."""

import feedgym

log, catalog = feedgym.simulate("short_video", num_users=300, visits=5, out="logs/small")
examined = log.examined & (log.item_id >= 0)
print(f"{log.num_users} users saw {examined.sum():,} of {catalog.num_items:,} items and clicked on "
      f"{log.behaviours[examined, 0].mean():.0%} of what they saw")  # fmt: skip
