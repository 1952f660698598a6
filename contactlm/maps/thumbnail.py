"""A map as a small picture, and several maps in a notebook."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from contactlm.pages.frame import escape

if TYPE_CHECKING:
    from contactlm.maps.contact_map import ContactMap

SIDE = 56  # pixels
MOST_SHOWN = 60  # maps of a list


def thumbnail(contact_map: ContactMap) -> str:
    """The map as a PNG of at most 56 × 56 pixels in a ``data:`` URL, each pixel the highest value of its block."""
    from matplotlib.image import imsave  # slow to import, and not every run draws

    from contactlm.maps.figure import COLORS, block_maximum

    block = max(1, -(-len(contact_map) // SIDE))
    buffer = io.BytesIO()
    pixels = block_maximum(contact_map.probability, block) if len(contact_map) else np.zeros((1, 1), np.float32)
    imsave(buffer, pixels, cmap=COLORS, vmin=0, vmax=1, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class ContactMaps(list["ContactMap"]):
    """A list of contact maps that shows itself in a notebook, as thumbnails with names."""

    def _repr_html_(self) -> str:
        """What notebooks show."""
        style = "display:inline-block; margin:6px; width:130px; vertical-align:top; overflow-wrap:anywhere"
        cells = [
            f'<div style="{style}"><img src="{thumbnail(each)}" alt="" style="width:120px; image-rendering:pixelated">'
            f"<br>{escape(each.id)}<br>{len(each)} residues</div>"
            for each in self[:MOST_SHOWN]
        ]
        more = f"<p>and {len(self) - MOST_SHOWN} more</p>" if len(self) > MOST_SHOWN else ""
        return f"<div>{''.join(cells)}{more}</div>"
