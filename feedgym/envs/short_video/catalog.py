"""Synthetic short-video catalogues: the part that recommenders may see, and the hidden truth.

An item is a unit vector near a mixture of two topics. It has a quality, a clickbait strength, a duration, a creator, an
upload time and a popularity. Recommenders see a noisy linear view of it (:class:`feedgym.data.events.Catalog`); the
:class:`Latents` are for simulators, logging policies and judges only.

The catalogue can change with time; this is off by default. Then the last items arrive after the clock's zero at a
steady rate, in the order of their ids. Items are withdrawn after a memoryless lifetime, so items present at the clock's
zero need no special treatment. Both options leave all other items unchanged.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics, ``W`` width of the signal in the content. ``D`` is
the width of the latent vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from feedgym.data.events import DAY_S, Catalog, FloatArray, IntArray
from feedgym.ranges import Count, Logit, NonNegative, Positive, Ranged, Share, SomeSeconds, Spread, Width, check_order


@dataclass(frozen=True, kw_only=True)
class CatalogConfig(Ranged):
    """A synthetic catalogue. Constants without a source are design choices."""

    num_items: Count = 10_000
    """I, number of items."""
    num_topics: Annotated[int, Interval(ge=2, le=65_536)] = 32
    """M, number of topics; 2 or more."""
    latent_dim: Width = 16
    """d, width of the latent space in which items and interests live."""
    content_dim: Width = 64
    """E, width of the content embeddings that recommenders see; at least latent_dim + 2."""
    topic_concentration: Positive = 1.5
    """Dirichlet concentration of the topics' shares of the catalogue."""
    primary_beta: tuple[Positive, Positive] = (6.0, 2.0)
    """Beta parameters of the primary topic's weight in an item; the secondary topic takes the rest."""
    item_noise: NonNegative = 0.5
    """Length of the noise added to an item's topic mixture before normalising."""
    clickbait_quality: Annotated[float, Interval(ge=-1, le=1)] = -0.3
    """Correlation of the clickbait score with quality: poor items need bait."""
    clickbait_threshold: Logit = 0.3
    """Clickbait is the score's excess over this; 0.3 leaves about 38% of the items with some."""
    duration_log_mean: Annotated[float, Interval(ge=-20, le=20)] = 3.4657
    """Mean of the topics' log-durations: ln 32 s."""
    duration_topic_sd: Spread = 0.35
    """Standard deviation of log-duration between topics."""
    duration_item_sd: Spread = 0.6
    """Standard deviation of log-duration within a topic."""
    duration_range_s: tuple[SomeSeconds, SomeSeconds] = (5.0, 300.0)
    """Shortest and longest item, seconds."""
    popularity_exponent: Annotated[float, Interval(ge=0, le=20)] = 0.9
    """Popularity is (rank + popularity_offset) ** -popularity_exponent."""
    popularity_offset: Annotated[float, Interval(ge=0.001, le=10**6)] = 10.0
    """See popularity_exponent; it flattens the head."""
    popularity_quality: Logit = 0.5
    """Weight of quality in the popularity rank."""
    popularity_clickbait: Logit = 0.3
    """Weight of clickbait in the popularity rank."""
    popularity_fresh: Logit = 0.5
    """Weight of exp(-age / fresh_days) in the popularity rank."""
    popularity_noise: NonNegative = 0.9
    """Scale of the Gumbel noise in the popularity rank."""
    fresh_days: Positive = 7.0
    """Time constant of freshness, days."""
    upload_days: NonNegative = 90.0
    """Items were uploaded uniformly over this many days before the clock's zero."""
    arrivals_a_day: NonNegative = 0.0
    """Items uploaded per day after the clock's zero; they are the last ones of num_items. 0: none."""
    arrival_days: NonNegative = 60.0
    """Number of days with arrivals."""
    lifetime_days: NonNegative = 0.0
    """Mean time until an item is withdrawn, exponential, days: from its upload, or from the clock's zero if it was
    uploaded before. 0: items stay."""
    items_per_creator: Annotated[float, Interval(ge=1, le=10**6)] = 5.0
    """Mean number of items per creator."""
    creator_exponent: Annotated[float, Interval(ge=0, le=20)] = 0.8
    """Creators make items in proportion to rank ** -creator_exponent."""
    content_quality: NonNegative = 0.35
    """Length of a unit of quality in the content embedding."""
    content_clickbait: NonNegative = 0.5
    """Length of a unit of clickbait in the content embedding."""
    content_noise: NonNegative = 0.4
    """Length of the noise in the content embedding; the latent part has length 1."""
    tag_error: Share = 0.1
    """Share of items whose topic tag is a wrong topic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "duration_range_s")
        if num_arrivals(self) >= self.num_items:
            raise ValueError(
                f"{num_arrivals(self)} items would arrive over arrival_days={self.arrival_days:g}, and num_items="
                f"{self.num_items} must hold those and the ones that are there before; raise num_items or lower either."
            )
        if self.content_dim < self.latent_dim + 2:
            raise ValueError(
                f"content_dim={self.content_dim} is below latent_dim + 2 = {self.latent_dim + 2}; raise content_dim."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """The truth of a catalogue's items; never shown to a recommender.

    Attributes:
        topic_MD: float32 unit topic vectors.
        topic_share_M: float32 shares of the topics, summing to 1.
        z_ID: float32 unit item vectors.
        topic_I2: int32 primary and secondary topic, different ones.
        weight_I2: float32 their weights, summing to 1.
        quality_I: float32, standard normal.
        clickbait_I: float32, >= 0, mostly 0.
        popularity_I: float32 probabilities, summing to 1.
        fame_I: float32 part of the popularity score besides freshness.
    """

    topic_MD: FloatArray
    topic_share_M: FloatArray
    z_ID: FloatArray
    topic_I2: IntArray
    weight_I2: FloatArray
    quality_I: FloatArray
    clickbait_I: FloatArray
    popularity_I: FloatArray
    fame_I: FloatArray

    @property
    def mixture_IM(self) -> FloatArray:
        """Weights of all M topics in each item, float32."""
        mixture_IM = np.zeros((len(self.topic_I2), len(self.topic_MD)), np.float32)
        np.put_along_axis(mixture_IM, self.topic_I2.astype(np.int64), self.weight_I2, axis=1)
        return mixture_IM


def make_catalog(config: CatalogConfig, seed: int) -> tuple[Catalog, Latents]:
    """Make a catalogue and its hidden truth from one integer seed.

    Raises:
        ValueError: the configuration asks for too few items, topics or content dimensions.
    """
    rng = np.random.default_rng(seed)
    num_items = config.num_items
    topic_MD = unit(rng.normal(size=(config.num_topics, config.latent_dim)))
    share_M = rng.dirichlet(np.full(config.num_topics, config.topic_concentration))
    topic_I2 = _two_topics(rng, share_M, num_items)
    primary_I = rng.beta(*config.primary_beta, size=num_items)
    weight_I2 = np.stack([primary_I, 1 - primary_I], axis=1)
    noise_ID = rng.normal(size=(num_items, config.latent_dim)) * config.item_noise / np.sqrt(config.latent_dim)
    z_ID = unit((weight_I2[:, :, None] * topic_MD[topic_I2]).sum(axis=1) + noise_ID)

    quality_I = rng.normal(size=num_items)
    tie = config.clickbait_quality
    bait_I = tie * quality_I + np.sqrt(1 - tie**2) * rng.normal(size=num_items)
    clickbait_I = np.maximum(0, bait_I - config.clickbait_threshold)
    duration_M = config.duration_log_mean + config.duration_topic_sd * rng.normal(size=config.num_topics)
    duration_I = np.exp(duration_M[topic_I2[:, 0]] + config.duration_item_sd * rng.normal(size=num_items))
    upload_s_I = -rng.uniform(0, config.upload_days * DAY_S, size=num_items)
    upload_s_I, withdraw_s_I = _lives(config, seed, upload_s_I)
    fame_I = (
        config.popularity_quality * quality_I
        + config.popularity_clickbait * clickbait_I
        + config.popularity_noise * rng.gumbel(size=num_items)
    )
    popularity_I = popularity(config, fame_I, -upload_s_I)

    latents = Latents(
        topic_MD=topic_MD.astype(np.float32),
        topic_share_M=share_M.astype(np.float32),
        z_ID=z_ID.astype(np.float32),
        topic_I2=topic_I2.astype(np.int32),
        weight_I2=weight_I2.astype(np.float32),
        quality_I=quality_I.astype(np.float32),
        clickbait_I=clickbait_I.astype(np.float32),
        popularity_I=popularity_I.astype(np.float32),
        fame_I=fame_I.astype(np.float32),
    )
    catalog = Catalog(
        raw_ids_I=np.arange(num_items),
        content_IE=_content(rng, config, latents),
        topic_I=_tags(rng, config, topic_I2[:, 0]),
        duration_s_I=np.clip(duration_I, *config.duration_range_s).astype(np.float32),
        creator_I=_creators(rng, config),
        upload_s_I=upload_s_I,
        withdraw_s_I=withdraw_s_I,
    )
    return catalog, latents


def freshness(config: CatalogConfig, age_s: NDArray[np.floating]) -> NDArray[np.floating]:
    """Freshness of items of an age: 1 at the upload and before, falling by 1/e every ``fresh_days``."""
    return np.exp(-np.maximum(age_s, 0) / (config.fresh_days * DAY_S))


def popularity(config: CatalogConfig, fame_I: NDArray, age_s_I: NDArray) -> NDArray[np.float64]:
    """The items' shares of the exposures in a feed by popularity, [I]: by their rank in fame and freshness."""
    score_I = fame_I + config.popularity_fresh * freshness(config, age_s_I)
    rank_I = np.argsort(np.argsort(-score_I))
    weight_I = (rank_I + config.popularity_offset) ** -config.popularity_exponent
    return weight_I / weight_I.sum()


def unit(x):
    """Rows scaled to length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _two_topics(rng: np.random.Generator, share_M, num_items: int):
    """Two different topics per item, by share; an exponential race draws without replacement."""
    race_IM = rng.exponential(size=(num_items, len(share_M))) / share_M
    return np.argsort(race_IM, axis=1)[:, :2]


def num_arrivals(config: CatalogConfig) -> int:
    """Number of items uploaded after the clock's zero: the last ones of the catalogue."""
    return round(config.arrivals_a_day * config.arrival_days)


def _lives(config: CatalogConfig, seed: int, upload_s_I: NDArray) -> tuple[NDArray, NDArray | None]:
    """Upload and withdrawal times; their separate random numbers leave the rest of the catalogue unchanged."""
    rng = np.random.default_rng([seed, 2])
    late = num_arrivals(config)
    upload_s_I = upload_s_I.copy()
    upload_s_I[len(upload_s_I) - late :] = np.sort(rng.uniform(0, config.arrival_days * DAY_S, size=late))
    if not config.lifetime_days:
        return upload_s_I, None
    lifetime_s_I = rng.exponential(config.lifetime_days * DAY_S, size=len(upload_s_I))
    return upload_s_I, np.maximum(upload_s_I, 0) + lifetime_s_I


def _content(rng: np.random.Generator, config: CatalogConfig, latents: Latents) -> FloatArray:
    """Latent vector, quality and clickbait along orthogonal directions, in noise."""
    width = config.latent_dim + 2
    basis_EW = np.linalg.qr(rng.normal(size=(config.content_dim, width)))[0]
    signal_IW = np.column_stack(
        [
            latents.z_ID,
            config.content_quality * latents.quality_I,
            config.content_clickbait * latents.clickbait_I,
        ]
    )
    noise_IE = rng.normal(size=(config.num_items, config.content_dim))
    noise_IE *= config.content_noise / np.sqrt(config.content_dim)
    return (signal_IW @ basis_EW.T + noise_IE).astype(np.float32)


def _tags(rng: np.random.Generator, config: CatalogConfig, topic_I) -> IntArray:
    """The primary topic, or in ``tag_error`` of the items one of the other topics."""
    wrong_I = rng.random(len(topic_I)) < config.tag_error
    shift_I = rng.integers(1, config.num_topics, size=len(topic_I))
    return ((topic_I + wrong_I * shift_I) % config.num_topics).astype(np.int32)


def _creators(rng: np.random.Generator, config: CatalogConfig) -> IntArray:
    num_creators = max(1, round(config.num_items / config.items_per_creator))
    weight = np.arange(1, num_creators + 1) ** -config.creator_exponent
    return rng.choice(num_creators, size=config.num_items, p=weight / weight.sum())
