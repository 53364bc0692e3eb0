"""Draws a visit: cards of the items, filled as far as they were watched, next to the user's interests over time.

Pictures are drawn with Pillow, in the colours of Okabe and Ito, which colour-blind people can distinguish; everything
is also written as text. All pictures of an environment have the same size, which depends on the session length.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from feedgym.data.events import BEHAVIOURS
from feedgym.envs.render.view import (
    TOPICS,
    TRAIL,
    Session,
    View,
    behaviours_of,
    ending,
    left_at,
    reward_sum,
    title_of,
    topic_name,
)

WIDTH, MARGIN, GAP = 1000, 20, 8
HEAD, FOOT = 66, 92
FEED = 630
"""Width of the feed; the rest shows the user."""
COLUMNS, MAX_CARDS = 5, 60
AREA, LOW_CARD = 340, 118
"""Minimum height of the feed and of a card."""

Colour = tuple[int, int, int]
INK, DIM, LINE, PAPER, WHITE = (34, 34, 34), (110, 110, 110), (208, 208, 208), (246, 246, 244), (255, 255, 255)
UNSEEN, WATCHED, AGAIN = (228, 228, 226), (166, 210, 240), (86, 180, 233)
BLUE, ORANGE, GREEN, VERMILION = (0, 114, 178), (230, 159, 0), (0, 110, 80), (190, 75, 0)

SIGNS = dict(zip(BEHAVIOURS, "▶◷♥✚✎➜✖", strict=True))
"""Signs of the behaviours on a card; the footer explains them."""


def picture_height(session_length: int) -> int:
    """Height in pixels of pictures of sessions of K items."""
    return HEAD + max(AREA, _rows(session_length) * (LOW_CARD + GAP) - GAP) + FOOT


def as_picture(view: View, session_length: int) -> NDArray[np.uint8]:
    """Draws a visit, uint8 [H, 1000, 3]; of sessions of more than 60 items, only the first 60 are shown."""
    image = Image.new("RGB", (WIDTH, picture_height(session_length)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 12), view.who, INK, _font(19, bold=True))
    after = MARGIN + draw.textlength(view.who, _font(19, bold=True))
    draw.text((after, 15), f"   {view.when}", INK, _font(16))
    draw.text((MARGIN, 40), _fit(draw, view.traits, _font(13), WIDTH - 2 * MARGIN), DIM, _font(13))
    _draw_feed(draw, view, session_length)
    _draw_footer(draw, view, image.height)
    _draw_interests(draw, view)
    _draw_rewards(draw, view)
    return np.array(image)


def _rows(session_length: int) -> int:
    return -(-min(session_length, MAX_CARDS) // min(session_length, COLUMNS))


def _draw_feed(draw: ImageDraw.ImageDraw, view: View, session_length: int) -> None:
    columns, rows = min(session_length, COLUMNS), _rows(session_length)
    width = (FEED - GAP * (columns - 1)) // columns
    height = max(LOW_CARD, (AREA + GAP) // rows - GAP)
    for k in range(min(session_length, MAX_CARDS)):
        x, y = MARGIN + k % columns * (width + GAP), HEAD + k // columns * (height + GAP)
        if view.session is None:
            draw.rounded_rectangle((x, y, x + width, y + height), 6, PAPER, LINE)
        else:
            _draw_card(draw, view, view.session, k, (x, y, x + width, y + height))


def _draw_card(draw: ImageDraw.ImageDraw, view: View, session: Session, k: int, box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    item = int(session.items_K[k])
    seen, leaves = bool(session.examined_K[k]), left_at(session) == k
    ink = INK if seen else DIM
    draw.rounded_rectangle(box, 6, WHITE if seen else UNSEEN, VERMILION if leaves else LINE, 3 if leaves else 1)
    place = f"{k + 1} left" if leaves else f"{k + 1}"
    draw.text((x0 + 8, y0 + 6), place, VERMILION if leaves else ink, _font(15, bold=True))
    room = x1 - x0 - 22 - draw.textlength(place, _font(15, bold=True))
    draw.text((x1 - 8, y0 + 8), _fit(draw, title_of(view.catalog, item), _font(12), room), DIM, _font(12), "ra")
    topic = int(view.catalog.topic_I[item])
    draw.text((x0 + 8, y0 + 27), topic_name(topic), ink, _font(13))
    if view.is_truth and topic >= 0:
        draw.text((x1 - 8, y0 + 28), f"{view.taste_M[topic]:.2f}", BLUE, _font(12), "ra")
    duration_s = float(view.catalog.duration_s_I[item])
    screen = (x0 + 8, y0 + 47, x1 - 8, y1 - 28)
    if seen:
        _draw_screen(draw, float(session.watch_s_K[k]), duration_s, screen)
        for i, name in enumerate(behaviours_of(session, k)):
            draw.text((x0 + 8 + 14 * i, y1 - 25), SIGNS[name], VERMILION if name == "hate" else GREEN, _font(14))
    else:
        middle = ((screen[0] + screen[2]) / 2, (screen[1] + screen[3]) / 2)
        draw.text(middle, f"not reached\n{duration_s:.0f} s", DIM, _font(12), "mm", align="center")


def _draw_screen(draw: ImageDraw.ImageDraw, watch_s: float, duration_s: float, box: tuple[int, int, int, int]) -> None:
    """Draws the item as a screen, filled from the left as far as it was watched, and darker where watched again."""
    x0, y0, x1, y1 = box
    fraction = watch_s / duration_s
    draw.rectangle(box, PAPER)
    for part, colour in ((min(fraction, 1), WATCHED), (min(fraction - 1, 1), AGAIN)):
        if part * (x1 - x0) >= 1:
            draw.rectangle((x0, y0, x0 + round(part * (x1 - x0)), y1), colour)
    draw.rectangle(box, outline=LINE)
    middle = (x0 + x1) / 2
    draw.text((middle, (y0 + y1) / 2 - 8), f"{watch_s:.0f} s", INK, _font(17, bold=True), "mm")
    draw.text((middle, (y0 + y1) / 2 + 12), f"of {duration_s:.0f} s", INK, _font(12), "mm")


def _draw_footer(draw: ImageDraw.ImageDraw, view: View, height: int) -> None:
    y = height - FOOT + 12
    told = ["before the first session", ""] if view.session is None else [ending(view), reward_sum(view.session)]
    more = 0 if view.session is None else len(view.session.items_K) - MAX_CARDS
    if more > 0:
        told[0] = f"{more} more items below  ·  {told[0]}"
    draw.text((MARGIN, y), _fit(draw, told[0], _font(15, bold=True), WIDTH - 2 * MARGIN), INK, _font(15, bold=True))
    draw.text((MARGIN, y + 23), _fit(draw, told[1], _font(13), WIDTH - 2 * MARGIN), INK, _font(13))
    x = float(MARGIN)
    for name, sign in SIGNS.items():
        draw.text((x, y + 46), sign, VERMILION if name == "hate" else GREEN, _font(14))
        draw.text((x + 18, y + 48), name.replace("_", " "), DIM, _font(12))
        x += 34 + draw.textlength(name, _font(12))


def _draw_interests(draw: ImageDraw.ImageDraw, view: View) -> None:
    """Draws a row per topic: the interest now with satiation below it, and a strip of past visits, darker for more."""
    x, y, right = MARGIN + FEED + 24, HEAD, WIDTH - MARGIN
    title = "True interests (agents never see them)" if view.is_truth else "Share of the time watched, by topic"
    draw.text((x, y), title, INK, _font(13, bold=True))
    if not len(view.topic_T):
        draw.text((x, y + 21), "no item has a topic", DIM, _font(12))
        return
    bar_x, strip_x = x + 62, right - 3 * TRAIL
    draw.rectangle((bar_x, y + 25, bar_x + 6, y + 31), BLUE)
    draw.text((bar_x + 10, y + 21), "at login" if view.is_truth else "so far", DIM, _font(11))
    if (view.tired_VT >= 0.005).any():
        draw.rectangle((bar_x + 66, y + 25, bar_x + 72, y + 31), ORANGE)
        draw.text((bar_x + 76, y + 21), "satiation", DIM, _font(11))
    draw.text((strip_x, y + 21), "visit by visit", DIM, _font(11))
    top = max(1.0, float(view.taste_VT.max(initial=0)))
    for t, topic in enumerate(view.topic_T):
        row = y + 40 + t * 24
        taste, tired = float(view.taste_VT[-1, t]), float(view.tired_VT[-1, t])
        draw.text((x, row), topic_name(topic), INK, _font(12))
        wide = strip_x - bar_x - 44
        draw.rectangle((bar_x, row + 2, bar_x + wide, row + 10), WHITE)
        if taste > 0:
            draw.rectangle((bar_x, row + 2, bar_x + round(taste / top * wide), row + 10), BLUE)
        if tired >= 0.005:
            draw.rectangle((bar_x, row + 12, bar_x + max(1, round(min(tired, 1) * wide)), row + 15), ORANGE)
        draw.text((strip_x - 8, row), f"{taste:.2f}", BLUE, _font(12), "ra")
        for v, value in enumerate(view.taste_VT[:, t]):
            cell = (strip_x + 3 * v, row, strip_x + 3 * v + 2, row + 15)
            draw.rectangle(cell, _shade(float(value) / top))


def _draw_rewards(draw: ImageDraw.ImageDraw, view: View) -> None:
    """Draws a bar per visit with the reward of the last visits, the last one darkest."""
    x, right = MARGIN + FEED + 24, WIDTH - MARGIN
    y = HEAD + 40 + TOPICS * 24 + 14
    floor = HEAD + AREA - 4
    draw.text((x, y), "Reward by visit", INK, _font(13, bold=True))
    if not len(view.reward_V):
        return
    high = max(1.0, float(np.abs(view.reward_V).max()))
    draw.text((right, y + 2), f"longest bar {high:.1f}", DIM, _font(11), "ra")
    negative = bool((view.reward_V < 0).any())
    zero = (y + 22 + floor) // 2 if negative else floor
    scale = (zero - y - 22) / high
    draw.line((x, zero, right, zero), LINE)
    step = (right - x) // TRAIL
    for v, value in enumerate(view.reward_V):
        end = zero - round(float(value) * scale)
        colour = BLUE if v == len(view.reward_V) - 1 else AGAIN
        draw.rectangle((x + v * step, min(end, zero), x + v * step + step - 3, max(end, zero)), colour)


def _shade(value: float) -> Colour:
    """Shade from white for 0 or less to blue for 1."""
    part = min(max(value, 0.0), 1.0)
    red, green, blue = (round(255 + part * (c - 255)) for c in BLUE)
    return red, green, blue


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has signs and many scripts."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of its beginning as fits."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[: int(len(text) * 0.9)]
    return text + "…"
