"""A small OneRec with larger weights than usual, histories and preference pairs, for tests of methods of alignment."""

import torch

from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.agents.session_model import session_logp
from feedgym.agents.tiger import Tiger, TigerConfig
from feedgym.data.batches import EventBatch, Preferences

NUM_ITEMS, K, T, P = 30, 3, 6, 24


def make_model(seed=0, std=0.2):
    """A small OneRec whose config has dropout; larger initial weights than usual, so that sessions differ in logp."""
    torch.manual_seed(seed)
    config = OneRecConfig(
        d_model=16,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        d_ff=24,
        dropout=0.3,
        initializer_range=std,
        num_codes=(6, 5),
        num_items=NUM_ITEMS,
        session_length=K,
        history_length=T,
        profile_sizes=(3,),
    )
    model = OneRec(config)
    codes_I2 = torch.stack([torch.arange(NUM_ITEMS) // 5, torch.arange(NUM_ITEMS) % 5], dim=1)
    model.model.item_tokens_IL.copy_(model.vocabulary.token_ids(codes_I2))
    return model


SHARED = dict(d_model=8, num_heads=2, dropout=0.3, num_items=NUM_ITEMS, session_length=K, history_length=T,
              profile_sizes=(3,), only_positives=False)  # fmt: skip


def make_tiger(**options):
    """A small TIGER with one code per item."""
    model = Tiger(TigerConfig(**SHARED, d_ff=12, head_width=4, num_codes=(NUM_ITEMS,), **options))
    model.model.item_tokens_IL.copy_(model.vocabulary.token_ids(torch.arange(NUM_ITEMS)[:, None]))
    return model


def make_hstu(**options):
    """A small HSTU."""
    return HSTU(HSTUConfig(**SHARED, **options))


def make_histories(num=P, seed=1):
    generator = torch.Generator().manual_seed(seed)
    length_U = torch.randint(0, T + 1, (num, 1), generator=generator)
    return EventBatch(
        item_ids_UT=torch.randint(NUM_ITEMS, (num, T), generator=generator),
        behaviours_UTB=torch.rand(num, T, 7, generator=generator).round(),
        watch_fraction_UT=torch.rand(num, T, generator=generator),
        gap_s_UT=torch.rand(num, T, generator=generator) * 1e4,
        mask_UT=torch.arange(T) < length_U,
        profile_UF=torch.randint(3, (num, 1), generator=generator),
        time_of_day_U=torch.rand(num, generator=generator) * 24,
    )


def make_preferences(num=P, seed=2):
    """Random pairs; logged sessions of 0 to K items. The rows in the pool lie far outside the histories."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, logged = torch.randint(NUM_ITEMS, (3, num, K), generator=generator)
    logged[torch.arange(K) >= torch.arange(num)[:, None] % (K + 1)] = -1
    return Preferences(
        user_idx_P=torch.full((num,), 10**9),
        chosen_PK=chosen,
        rejected_PK=rejected,
        logged_PK=logged,
        score_chosen_P=torch.ones(num),
        score_rejected_P=torch.zeros(num),
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def logp(model, histories, item_ids_PK):
    with torch.no_grad():
        return session_logp(model.eval(), histories, item_ids_PK[:, None])[:, 0]
