"""What the lab thinks of a session: clicks by the log's rates, and a bonus for unlike items."""

import numpy as np
import torch


class ClickRates:
    """Adds up the items' click rates in the log."""

    def __init__(self, catalog, log):
        seen = log.examined & (log.item_id >= 0)
        shown_I = np.bincount(log.item_id[seen], minlength=catalog.num_items)
        clicks_I = np.bincount(log.item_id[seen], weights=log.behaviours[seen, 0], minlength=catalog.num_items)
        self.rate_I = torch.from_numpy((clicks_I + 1) / (shown_I + 2)).float()

    def __call__(self, histories, sessions):
        rate_USK = self.rate_I.to(sessions.item_ids_USK.device)[sessions.item_ids_USK.clamp_min(0)]
        return rate_USK.masked_fill(sessions.item_ids_USK < 0, 0.0).sum(-1)
