"""A map as a picture, drawn with Pillow: thousands are written, and matplotlib takes a third of a second each."""

from __future__ import annotations

import io
import math
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from contactlm.maps.pairs import THRESHOLD_KIND, MapValues

COLORS = "Blues"
UNKNOWN, NO_CONTACT, CONTACT = "#e4e1dc", "#ffffff", "#b2182b"
INK, DIAGONAL, BOUNDARY = "#222222", "#777777", "#555555"  # between chains
LINE = "#b2182b"  # at the threshold, on the scale
MAX_CELLS = 1600  # a larger map is drawn in blocks, each with its highest value
SIDE = 720  # pixels, about, of a map that is enlarged
EMS = 48  # letters' heights in a map's side
COMPRESSION = 3  # of zlib: a third of the time of the usual 6, and a few kilobytes more
BELOW = "above the diagonal: probability; below: true contacts (grey: unknown)"


def draw_picture(contact_map: MapValues, ems: int = EMS) -> Image.Image:
    """Draw probability above the diagonal and the truth (else the same) below, with axes, scale and threshold."""
    cells = map_colors(contact_map)
    scale = max(1, round(SIDE / max(1, len(cells))))
    side = scale * len(cells)
    em = max(14, side // ems)
    left, top, width, height = round(5.1 * em), round(3.4 * em), side + round(12.7 * em), side + round(9.8 * em)
    picture = Image.new("RGB", (width, height), "white")
    enlarged = np.repeat(np.repeat(cells, scale, 0), scale, 1)
    picture.paste(Image.fromarray(enlarged), (left, top))
    pen = ImageDraw.Draw(picture)
    pixels = scale / block_size(contact_map)  # a residue's
    pen.line((left, top, left + side - 1, top + side - 1), fill=DIAGONAL)
    for start in np.cumsum(contact_map.chain_lengths)[:-1]:
        for at in range(0, side, em):
            end, line = min(at + 0.6 * em, side), start * pixels
            pen.line((left + line, top + at, left + line, top + end), fill=BOUNDARY)
            pen.line((left + at, top + line, left + end, top + line), fill=BOUNDARY)
    pen.rectangle((left - 1, top - 1, left + side, top + side), outline=INK)
    _draw_ticks(pen, len(contact_map), (left, top, side), pixels, em)
    _draw_scale(picture, pen, contact_map.threshold, (left, top, side), em)
    _draw_words(picture, pen, contact_map, (left, top, side), em)
    return picture


def png_of(contact_map: MapValues) -> bytes:
    """The picture as a PNG file."""
    return _png(draw_picture(contact_map))


def thumbnail_png(contact_map: MapValues, side: int) -> bytes:
    """The probabilities as a PNG of at most ``side`` pixels to a side, each the highest value of its block."""
    block = max(1, -(-len(contact_map) // side))
    values = block_maximum(contact_map.probability, block) if len(contact_map) else np.zeros((1, 1), np.float32)
    return _png(Image.fromarray(_shade(values)))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()


def map_colors(contact_map: MapValues) -> NDArray[np.uint8]:
    """A colour for each cell, (n, n, 3)."""
    block = block_size(contact_map)
    if not len(contact_map):
        return np.full((1, 1, 3), 255, np.uint8)
    colors = _shade(block_maximum(contact_map.probability, block))
    if contact_map.labels is None:
        return colors
    truth = np.array([ImageColor.getrgb(color) for color in (UNKNOWN, NO_CONTACT, CONTACT)], np.uint8)
    lower = np.tri(len(colors), k=-1, dtype=bool)[:, :, None]
    return np.where(lower, truth[block_maximum(contact_map.labels, block) + 1], colors)


def _draw_ticks(pen: ImageDraw.ImageDraw, L: int, square: tuple[int, int, int], pixels: float, em: int) -> None:
    left, top, side = square
    step = next(s * 10**n for n in range(9) for s in (1, 2, 5) if 8 * s * 10**n >= L)
    for residue in range(step, L + 1, step):
        at, name = (residue - 0.5) * pixels, str(residue)
        pen.line((left + at, top + side, left + at, top + side + em // 3), fill=INK)
        pen.line((left - em // 3, top + at, left - 2, top + at), fill=INK)
        pen.text((left + at, top + side + em // 2), name, INK, _font(em), anchor="mt")
        pen.text((left - em // 2, top + at), name, INK, _font(em), anchor="rm")


def _draw_scale(
    picture: Image.Image, pen: ImageDraw.ImageDraw, threshold: float, square: tuple[int, int, int], em: int
) -> None:
    left, top, side = square
    x, wide = left + side + em, em
    picture.paste(Image.fromarray(np.repeat(_shade(np.linspace(1, 0, side))[:, None], wide, 1)), (x, top))
    pen.rectangle((x - 1, top - 1, x + wide, top + side), outline=INK)
    for tenth in range(0, 11, 2):
        y = top + side * (1 - tenth / 10)
        pen.line((x + wide, y, x + wide + em // 3, y), fill=INK)
        pen.text((x + wide + em // 2, y), f"{tenth / 10:.1f}", INK, _font(em), anchor="lm")
    pen.line((x - em // 3, y := top + side * (1 - threshold), x + wide + em // 3, y), fill=LINE, width=max(2, em // 7))


def _draw_words(
    picture: Image.Image, pen: ImageDraw.ImageDraw, contact_map: MapValues, square: tuple[int, int, int], em: int
) -> None:
    left, top, side = square
    middle, kind = left + side // 2, contact_map.how.get(THRESHOLD_KIND)
    for number, line in enumerate(reversed(title(contact_map).splitlines())):
        pen.text((middle, top - (0.7 + 1.35 * number) * em), line, INK, _font(em), anchor="mb")
    caption = f"red line on the scale: threshold {contact_map.threshold:.3f}" + (f", {kind}" if kind else "")
    words = [("residue", INK), *([] if contact_map.labels is None else [(BELOW, INK)]), (caption, LINE)]
    for number, (line, color) in enumerate(words):
        font = _font(em if number == 0 else round(0.9 * em))
        pen.text((middle, top + side + (1.9 + 1.4 * number) * em), line, color, font, anchor="mt")
    for line, x in (("residue", left - round(4.9 * em)), ("contact probability", left + side + round(4.9 * em))):
        across = Image.new("RGB", (side, round(1.4 * em)), "white")
        ImageDraw.Draw(across).text((side // 2, 0), line, INK, _font(em), anchor="mt")
        picture.paste(across.rotate(90, expand=True), (x, top))


def title(contact_map: MapValues) -> str:
    """Id and length; in a second line the scores, where the truth is known."""
    name = contact_map.id if len(contact_map.id) <= 48 else f"{contact_map.id[:47]}…"
    text = f"{name}  ({len(contact_map)} residues)"
    if contact_map.labels is None:
        return text
    scores = contact_map.scores()
    shown = {"MCC (|i − j| ≥ 6)": "mcc_sep6", "long-range P@L": "p_at_L_long", "P@L/5": "p_at_L5_long"}
    parts = [f"{label}: {scores[key]:.2f}" for label, key in shown.items() if not math.isnan(scores[key])]
    return f"{text}\n{'   '.join(parts)}"


def block_size(contact_map: MapValues) -> int:
    """Residues to a side of what is drawn as one cell; 1 up to 1,600 residues."""
    return max(1, math.ceil(len(contact_map) / MAX_CELLS))


def block_maximum(values: NDArray, block: int) -> NDArray:
    """The largest value in each block of ``block`` × ``block`` residues; the last ones may be smaller."""
    starts = np.arange(0, len(values), block)
    return np.maximum.reduceat(np.maximum.reduceat(values, starts, axis=0), starts, axis=1) if block > 1 else values


def _shade(values: NDArray) -> NDArray[np.uint8]:
    return colormaps[COLORS](np.asarray(values, np.float32), bytes=True)[..., :3]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
