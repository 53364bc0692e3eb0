"""Measures how well a reward model predicts logged responses."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from feedgym.data.batches import Histories
from feedgym.data.events import LoggedSessions
from feedgym.rewards.answers import RETURN, TOWERS, WATCH, Answers
from feedgym.rewards.ensemble import RewardEnsemble
from feedgym.rewards.model import RewardModel


def auc_per_tower(
    model: RewardModel | RewardEnsemble,
    histories: Histories,
    sessions: LoggedSessions,
    batch_size: int = 1024,
    only_I: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Measure how well each tower predicts logged responses: the area under the ROC curve over positions, or sessions.

    Seconds watched count as positive above their mean; towers whose labels are all equal are left out.

    Args:
        model: the reward model.
        histories: N rows, known before each session; of users the model was not trained on.
        sessions: N sessions with the users' responses.
        batch_size: sessions to score at a time.
        only_I: items whose responses count, such as those that the model hardly knows; the sessions' returns, which
            belong to no item, are then left out. All items count if None.
    """
    if only_I is not None and not only_I.any():
        return {}
    answers = Answers.of(sessions, model.config.watch_cap_s)
    item_ids_NSK = torch.from_numpy(sessions.item_ids_NK.astype(np.int64))[:, None]
    logits, returns = [], []
    with torch.no_grad():
        for start in range(0, len(histories), batch_size):
            rows = slice(start, start + batch_size)
            predictions = model.predict(histories.rows(rows), item_ids_NSK[rows])
            logits.append(predictions.logit_USKO.flatten(0, 2).cpu())
            returns.append(predictions.logit_return_US.flatten().cpu())
    labels_NO, logits_NO = answers.labels_NKO.flatten(0, 1), torch.cat(logits)
    if only_I is not None:
        others_N = torch.from_numpy(~only_I[sessions.item_ids_NK]).flatten()
        labels_NO = labels_NO.masked_fill(others_N[:, None], torch.nan)
    columns = {name: (labels_NO[:, o], logits_NO[:, o]) for o, name in enumerate(TOWERS)}
    columns[WATCH] = (_above_mean(columns[WATCH][0]), columns[WATCH][1])
    if only_I is None:
        columns[RETURN] = (answers.return_N, torch.cat(returns))
    seen = {name: (label[~label.isnan()], logit[~label.isnan()]) for name, (label, logit) in columns.items()}
    return {n: float(roc_auc_score(y, logit)) for n, (y, logit) in seen.items() if len(y.unique()) == 2}


def _above_mean(label: Tensor) -> Tensor:
    return torch.where(label.isnan(), label, (label > label.nanmean()).float())
