from dataclasses import fields

import numpy as np
import pytest

from feedgym.data.events import Catalog
from feedgym.envs.short_video.catalog import CatalogConfig, make_catalog

CONFIG = CatalogConfig(num_items=6000)


@pytest.fixture(scope="module")
def made():
    return make_catalog(CONFIG, 5)


def test_the_seed_is_all_that_counts(made):
    again, other = make_catalog(CONFIG, 5), make_catalog(CONFIG, 6)
    for ours, same, different in zip(made, again, other, strict=True):
        for f in fields(ours):
            if not isinstance(getattr(ours, f.name), np.ndarray):  # no texts, no withdrawals
                continue
            assert getattr(ours, f.name).tobytes() == getattr(same, f.name).tobytes(), f.name
            constant = f.name == "raw_ids_I"
            assert (getattr(ours, f.name).tobytes() == getattr(different, f.name).tobytes()) == constant, f.name


def test_latents_are_what_they_say(made):
    _, latents = made
    for vectors in (latents.topic_MD, latents.z_ID):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert (latents.topic_I2[:, 0] != latents.topic_I2[:, 1]).all()
    np.testing.assert_allclose(latents.mixture_IM.sum(axis=1), 1, rtol=1e-5)
    assert abs(latents.weight_I2[:, 0].mean() - 0.75) < 0.01  # Beta(6, 2)
    assert abs(latents.quality_I.mean()) < 0.05 and abs(latents.quality_I.std() - 1) < 0.05
    own = np.vecdot(latents.z_ID, latents.topic_MD[latents.topic_I2[:, 0]])
    assert own.mean() > 0.7 > 0.2 > np.vecdot(latents.z_ID, latents.topic_MD[latents.topic_I2[::-1, 0]]).mean()


def test_clickbait_is_what_poor_items_carry(made):
    _, latents = made
    bait_I = latents.clickbait_I
    assert bait_I.min() == 0 and abs((bait_I > 0).mean() - 0.38) < 0.03
    assert -0.35 < np.corrcoef(bait_I, latents.quality_I)[0, 1] < -0.15


def test_popularity_is_a_power_law_of_a_rank_that_quality_and_clickbait_raise(made):
    _, latents = made
    share_I = np.sort(latents.popularity_I.astype(float))[::-1]
    assert share_I.sum() == pytest.approx(1, abs=1e-5)
    for a, b in [(0, 90), (90, 990)]:
        assert share_I[a] / share_I[b] == pytest.approx(((b + 10) / (a + 10)) ** 0.9, rel=1e-4)
    rank_I = np.argsort(np.argsort(-latents.popularity_I))
    assert np.corrcoef(rank_I, latents.quality_I)[0, 1] < -0.2
    design = np.column_stack([latents.quality_I, latents.clickbait_I, np.ones(CONFIG.num_items)])
    assert (np.linalg.lstsq(design, rank_I, rcond=None)[0][:2] < -200).all()


def test_what_recommenders_see(made):
    catalog, latents = made
    assert isinstance(catalog, Catalog) and not {f.name for f in fields(catalog)} & {
        f.name for f in fields(latents)
    } - {"topic_I"}
    primary_I = latents.topic_I2[:, 0]
    assert abs((catalog.topic_I != primary_I).mean() - CONFIG.tag_error) < 0.02
    assert catalog.topic_I.min() == 0 and catalog.topic_I.max() == CONFIG.num_topics - 1
    assert catalog.duration_s_I.min() >= 5 and catalog.duration_s_I.max() <= 300
    assert 25 < np.median(catalog.duration_s_I) < 40
    assert (catalog.upload_s_I >= -90 * 86_400).all() and (catalog.upload_s_I <= 0).all()
    items_of_creators = np.sort(np.bincount(catalog.creator_I))[::-1]
    assert items_of_creators[:12].sum() > 5 * items_of_creators[:1200].mean() * 12, "creators follow a power law"


def test_content_tells_interests_well_and_quality_and_clickbait_a_little(made):
    """Linear regression from content: the latent vector is plain, the rest is not hopeless."""
    catalog, latents = made
    design = np.column_stack([catalog.content_IE, np.ones(CONFIG.num_items)])

    def explained(target):
        residual = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        return 1 - (residual**2).sum() / ((target - target.mean(axis=0)) ** 2).sum()

    assert explained(latents.z_ID) > 0.9
    assert 0.6 < explained(latents.quality_I) < 0.99 and 0.6 < explained(latents.clickbait_I) < 0.99


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_items": 0}, "num_items=0 must be 1"),
        ({"num_topics": 1}, "num_topics=1 must be 2"),
        ({"content_dim": 17}, r"content_dim=17 is below latent_dim \+ 2 = 18"),
    ],
)
def test_too_small_catalogues_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        CatalogConfig(**sizes)
