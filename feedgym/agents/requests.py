"""Random numbers keyed by request, so that the same request gets the same session, and the items that exist then."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feedgym.data.batches import DatedEventBatch, EventBatch
from feedgym.data.events import Catalog
from feedgym.envs import luck
from feedgym.protocols import too_few


def request_noise(histories: EventBatch, count: int, seed: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float32 [U, count], which depend only on the request and on ``seed``."""
    key_U = luck.derive(request_keys(histories), seed)
    position, channel = np.divmod(np.arange(count), luck.CHANNELS)
    return torch.from_numpy(luck.draw(key_U[:, None], position, channel))


def existing_items(histories: EventBatch, catalog: Catalog | None, session_length: int = 0) -> Tensor | None:
    """The items that can be served at each request, bool [U, I]; None if all can, or if it is unknown.

    Args:
        histories: dated ones if items come and go (:class:`feedgym.data.batches.DatedEventBatch`).
        catalog: the items' times; None for agents that ignore them.
        session_length: number of items needed.

    Raises:
        ValueError: fewer exist at some request.
    """
    if catalog is None or not isinstance(histories, DatedEventBatch):
        return None
    exists_UI = torch.from_numpy(catalog.exists(histories.time_s_U.cpu().numpy()))
    require_items(exists_UI, session_length)
    return exists_UI


def require_items(exists_UI: Tensor, session_length: int) -> None:
    """Require that enough items for a session exist at each request.

    Raises:
        ValueError: fewer exist at some request.
    """
    if len(exists_UI) and (existing := int(exists_UI.sum(1).min())) < session_length:
        raise too_few(session_length, existing)


def shown_mask(histories: EventBatch, num_items: int) -> Tensor:
    """True for items that the user is known to have seen, bool [U, I]."""
    items_UX, known_UX = seen_by(histories)
    shown_UX = items_UX.masked_fill(~known_UX, num_items)
    found_UI = torch.zeros(len(histories), num_items + 1, dtype=torch.bool, device=shown_UX.device)
    return found_UI.scatter_(1, shown_UX, True)[:, :-1]


def seen_by(histories: EventBatch) -> tuple[Tensor, Tensor]:
    """Items [U, X] that users are known to have seen, oldest first, and a mask of real ones.

    The items of the history come after those that a platform with a longer memory knows.
    """
    if histories.earlier_UJ is None:
        return histories.item_ids_UT, histories.mask_UT
    earlier_UJ = histories.earlier_UJ
    items_UX = torch.cat([earlier_UJ, histories.item_ids_UT], dim=1)
    return items_UX, torch.cat([earlier_UJ >= 0, histories.mask_UT], dim=1)


def request_keys(histories: EventBatch) -> NDArray[np.uint64]:
    """A number per request, from the user's history, the profile and the time of day."""
    items_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, -1)
    seconds_U1 = (histories.time_of_day_U * 3600).long()[:, None]
    # Histories come last, so that the padding after them, which adds 0, changes nothing.
    words_UX = torch.cat([seconds_U1, histories.profile_UF, items_UT], dim=1).cpu().numpy() + 1
    mixed_UX = luck.derive(words_UX, np.arange(words_UX.shape[1])) * (words_UX > 0)
    return mixed_UX.sum(axis=1, dtype=np.uint64)
