"""A pair head: contacts and distances from K combinations of all attention maps, by a small network over pairs.

Contacts come in strips, ladders and blocks: a pair's neighbours are evidence for it. The head reads K read-outs of the
backbone's maps (see :mod:`contactlm.model.contact_attention`), the contact head's among them, how far apart residues
are in sequence and, if asked, products of their final states. Residual 3 x 3 convolutions make of these a correction
of the contact head's logit, 0 at first, and the distribution of the distance: of contacts over the bins below 8 Å, of
others over those above. So P(d < 8 Å) is the sum of its bins, and an untrained head predicts as the contact head.

Only the upper triangle is computed, i < j, in strips of rows with as much margin as the network sees: less memory,
half the work. Values are normalised per pair, over channels: neither padding nor a window changes them.
Where residues that follow each other in a pass are no neighbours (between segments, between chains), a gap of zeros
keeps convolutions from looking across.

Axis letters: B batch, T tokens, L residues (T − 2), G residues and gaps, K read-outs, C attention maps, N channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from contactlm.model.bins import BinWeights, PairScores, bin_logits
from contactlm.model.blocks import has_numbers
from contactlm.model.pair_block import PairBlock, unit
from contactlm.structure.distances import BINS, NEAR_BINS, bin_centres
from contactlm.types import ModelError

DILATIONS = (1, 2, 4)
_ABOUT = "contactlm"  # the key of a file's metadata
_SCALE = 0.25  # times L: entries of attention maps are about 1 / L
_ROWS = 96  # of a strip
_SEPARATIONS = 3  # numbers that describe |i − j|


@dataclass(frozen=True)
class PairOptions:
    """What a pair head is made of.

    Attributes:
        read_outs: Learned combinations of all attention maps, the contact head's among them.
        blocks: Residual 3 x 3 convolutions, of dilation 1, 2, 4, 1, …; 0: each pair alone.
        channels: Numbers of a pair.
        states: Width of the final states' projection, of whose residues' products pairs learn; 0: they do not.
        distance_weight: Of the distances' part of the loss; contacts' has 1.
        lr_factor: The learning rate of the pair head, which starts from nothing, over the others'.
    """

    read_outs: int = 16
    blocks: int = 3
    channels: int = 16
    states: int = 0
    distance_weight: float = 0.1
    lr_factor: float = 10.0

    def __post_init__(self) -> None:
        for name, lowest in {"read_outs": 1, "blocks": 0, "channels": 1, "states": 0}.items():
            if getattr(self, name) < lowest:
                raise ModelError(f"pair.{name} is {getattr(self, name)}; it must be at least {lowest}")
        for name in ("distance_weight", "lr_factor"):
            if not getattr(self, name) > 0:
                raise ModelError(f"pair.{name} is {getattr(self, name)}; it must be positive")

    @property
    def reach(self) -> int:
        """Residues on each side that the output of a pair depends on."""
        return sum(DILATIONS[n % len(DILATIONS)] for n in range(self.blocks))


class Places(NamedTuple):
    """Where residues lie once there are gaps between those that are no neighbours."""

    residue_at: Tensor  # int64 (B, G), the residue that lies there; −1: a gap or padding
    place: Tensor  # int64 (B, L)
    spans: list[list[tuple[int, int, int]]] | None  # of a sample's parts: first residue, one beyond the last, place

    @classmethod
    def of(cls, residue: Tensor, positions: Tensor | None, gap: int) -> Places:
        """Read off residues, bool (B, L), and their positions (B, L), which jump where residues are no neighbours."""
        B, L = residue.shape
        everyone = torch.arange(L, device=residue.device)
        if positions is None or not gap or not has_numbers(residue):
            place = everyone.expand(B, L)
            return cls(torch.where(residue, place, -1), place, None)
        apart = (positions.diff(dim=1) != 1) & residue[:, 1:] & residue[:, :-1]
        place = everyone + gap * F.pad(apart.cumsum(1), (1, 0))
        G = int(place.max()) + 1
        if G == L:
            return cls(torch.where(residue, place, -1), place, None)
        index = torch.full((B, G), -1, device=residue.device).scatter(1, place, torch.where(residue, everyone, -1))
        spans = []
        for row in apart.tolist():
            cuts = [0, *(at + 1 for at, cut in enumerate(row) if cut), L]
            parts = pairwise(cuts)
            spans.append([(start, stop, start + gap * number) for number, (start, stop) in enumerate(parts)])
        return cls(index, place, spans)

    def back(self, laid: Tensor) -> Tensor:
        """The pairs of residues (B, L, L) of what lies at (B, G, G)."""
        if laid.shape[1] == self.place.shape[1]:
            return laid
        B, L = self.place.shape
        rows = laid.gather(1, self.place.unsqueeze(2).expand(B, L, laid.shape[2]))
        return rows.gather(2, self.place.unsqueeze(1).expand(B, L, L))


class _Cut(torch.autograd.Function):
    """Cut a map (B, K, L, L) into strips, gaps put in: (B, rows, columns, K), for each of some (rows, columns).

    Channels are multiplied by ``scale`` (B, K), which has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, scale: Tensor, spans: Any, boxes: Sequence[tuple[slice, slice]]
    ) -> tuple[Tensor, ...]:
        ctx.scale, ctx.spans, ctx.boxes, ctx.shape = scale[:, None, None], spans, boxes, maps.shape
        strips = []
        for rows, columns in boxes:
            if spans is None:
                part = maps[:, :, rows, columns].permute(0, 2, 3, 1)
                strips.append(torch.mul(part, ctx.scale, out=maps.new_empty(part.shape)))
                continue
            strip = maps.new_zeros(len(maps), rows.stop - rows.start, columns.stop - columns.start, maps.shape[1])
            for b, inner, outer in _shared(spans, rows, columns):
                strip[b][inner] = maps[b].permute(1, 2, 0)[outer]
            strips.append(strip.mul_(ctx.scale))
        return tuple(strips)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        total = gradients[0].new_zeros(ctx.shape)
        for (rows, columns), gradient in zip(ctx.boxes, gradients, strict=True):
            gradient = gradient * ctx.scale
            if ctx.spans is None:
                total[:, :, rows, columns] += gradient.permute(0, 3, 1, 2)
                continue
            for b, inner, outer in _shared(ctx.spans, rows, columns):
                total[b].permute(1, 2, 0)[outer] += gradient[b][inner]
        return total, None, None, None


def _shared(spans: Any, rows: slice, columns: slice) -> Any:
    """For each sample and pair of its parts in a box: the sample, where in the box it is, and where in the map."""
    for b, parts in enumerate(spans):
        for start, stop, place in parts:
            top, bottom = max(rows.start, place), min(rows.stop, place + stop - start)
            for first, last, column in parts:
                left, right = max(columns.start, column), min(columns.stop, column + last - first)
                if top < bottom and left < right:
                    inner = (
                        slice(top - rows.start, bottom - rows.start),
                        slice(left - columns.start, right - columns.start),
                    )
                    here, there = start - place, first - column
                    yield b, inner, (slice(top + here, bottom + here), slice(left + there, right + there))


FILE = "pair_head.safetensors"  # of an export


def write_pair_head(folder: Path, head: PairHead) -> None:
    """Write a pair head's weights and options to a folder."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in head.state_dict().items()}
    save_file(weights, folder / FILE, {_ABOUT: json.dumps(asdict(head.options))})


def read_pair_head(folder: Path) -> tuple[PairOptions, dict[str, Tensor]] | None:
    """Read what :func:`write_pair_head` wrote; None where there is no such file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            options = PairOptions(**json.loads((file.metadata() or {})[_ABOUT]))
            return options, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path}: the pair head cannot be read: {str(error)[:200]}; export the model again") from error


class PairHead(nn.Module):
    """Reads K read-outs of C attention maps, and other channels of pairs; ``seed`` decides the first weights.

    Args:
        maps: C.
        hidden_width: Of the backbone's final states.
        options: Its sizes.
        seed: Of its first weights; the global generators are left alone.
        more: Channels of pairs in addition to the read-outs.
    """

    def __init__(self, maps: int, hidden_width: int, options: PairOptions, seed: int = 0, more: int = 0) -> None:
        super().__init__()
        self.options = options
        N, width = options.channels, options.read_outs + _SEPARATIONS + options.states + more
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            learned = torch.randn(options.read_outs - 1, maps) * maps**-0.5
            self.read = nn.Parameter(learned) if len(learned) else None  # strategies take no weights of no size
            self.narrow = nn.Linear(hidden_width, options.states) if options.states else None
            self.enter = nn.Linear(width, N)
            self.blocks = nn.ModuleList(PairBlock(N, DILATIONS[n % len(DILATIONS)]) for n in range(options.blocks))
            self.correct = nn.Linear(N, 1)
            self.near, self.far = nn.Linear(N, NEAR_BINS), nn.Linear(N, BINS - NEAR_BINS)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

    @property
    def reads_states(self) -> bool:
        """Whether it reads the backbone's final states."""
        return self.narrow is not None

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights from a file, which must be those of a head like this one."""
        own = self.state_dict()
        odd = [name for name in {*own, *weights} if name not in own or name not in weights]
        odd += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
        if odd:
            raise ModelError(f"the pair head does not fit this model (first: {min(odd)}); export the model again")
        self.load_state_dict(dict(weights))

    def weights(self, contact_head: Tensor) -> Tensor:
        """The weights (K, C) of all read-outs, the first those (1, C) of the contact head."""
        return contact_head if self.read is None else torch.cat([contact_head, self.read.to(contact_head.dtype)])

    def forward(
        self, maps: Tensor, skip: Tensor, residue: Tensor, positions: Tensor | None, states: Tensor | None,
        wanted: str, more: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Correct the contact logits.

        Args:
            maps: float32 (B, K, L, L), read-outs, symmetric.
            skip: float32 (B, L, L), logits to correct, symmetric.
            residue: bool (B, L), False at padding.
            positions: int64 (B, L), which jump where residues are no neighbours; None: they all are.
            states: The backbone's final ones (B, L, E), where they are read.
            wanted: ``"contacts"``: logits (B, L, L) alone; ``"bins"``: :class:`PairScores`; ``"distances"``: logits
                and expected distances in Å, (B, 2, L, L); ``"distribution"``: the same and the bins' probabilities,
                (B, 2 + BINS, L, L).
            more: Further channels of pairs (B, more, L, L), symmetric.
        """
        kind = maps.device.type
        low = kind != "cpu" and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if low else maps.dtype
        with torch.autocast(kind, enabled=False):  # of all products convolutions alone are in half precision
            return self._corrected(maps, skip, residue, positions, states, wanted, more, dtype)

    def _corrected(
        self, maps: Tensor, skip: Tensor, residue: Tensor, positions: Tensor | None, states: Tensor | None,
        wanted: str, more: Tensor | None, dtype: torch.dtype,
    ) -> Any:  # fmt: skip
        places = Places.of(residue, positions, gap=max(DILATIONS[: self.options.blocks], default=0))
        scale = self._scale(residue, 0 if more is None else more.shape[1]).to(maps)
        maps = maps if more is None else torch.cat([maps, more.to(maps)], 1)
        strips: Iterable[Tensor] = self._strips(maps, scale, places, positions, states, dtype)
        strips = list(strips) if wanted == "bins" else strips
        whole = self._whole([self._of_strip(channels, wanted) for channels in strips], places)
        contact = skip + whole[:, 0]
        if wanted == "bins":
            return PairScores(contact, list(strips), places.residue_at, self.bin_weights())
        if wanted == "contacts":
            return contact
        distance = torch.lerp(whole[:, 2], whole[:, 1], contact.sigmoid())
        made = torch.stack([contact, (distance + distance.mT) / 2], 1)  # (i, j) and (j, i) may be rounded apart
        if wanted == "distances":
            return made
        touching = contact.sigmoid().unsqueeze(1)
        near, far = whole[:, 3:].tensor_split([NEAR_BINS], 1)
        return torch.cat([made, touching * near, (1 - touching) * far], 1)

    def bin_weights(self) -> BinWeights:
        """Of what gives the bins' logits."""
        both = self.near, self.far
        return BinWeights(torch.cat([each.weight for each in both]), torch.cat([each.bias for each in both]))

    def _of_strip(self, channels: Tensor, wanted: str) -> Tensor:
        """Corrections (B, n, G − top, 1) and, if wanted, expected distances of contacts and of others, and bins."""
        correction: Tensor = self.correct(channels)
        if wanted in ("contacts", "bins"):
            return correction
        parts = [part.softmax(0) for part in bin_logits(channels, self.bin_weights()).tensor_split([NEAR_BINS])]
        centres = bin_centres(channels).tensor_split([NEAR_BINS])
        told = [(at @ part).unsqueeze(0) for at, part in zip(centres, parts, strict=True)]
        told += parts if wanted == "distribution" else []
        return torch.cat([correction, torch.cat(told).T.view(*channels.shape[:-1], -1)], -1)

    @staticmethod
    def _whole(strips: Sequence[Tensor], places: Places) -> Tensor:
        """Put strips (B, n, G − top, m) together: symmetric (B, m, L, L), without gaps."""
        G = places.residue_at.shape[1]
        rows = [F.pad(strip.permute(0, 3, 1, 2), (G - strip.shape[2], 0)) for strip in strips]
        upper = torch.stack([places.back(each).triu(1) for each in torch.cat(rows, 2).unbind(1)], 1)
        return upper + upper.mT

    def _scale(self, residue: Tensor, more: int) -> Tensor:
        """What brings learned read-outs to the size of numbers (B, channels); the contact head's are logits already."""
        scale = residue.new_ones(len(residue), self.options.read_outs + more, dtype=torch.float32)
        scale[:, 1 : self.options.read_outs] = _SCALE * residue.sum(1, keepdim=True)
        return scale

    def _strips(
        self, maps: Tensor, scale: Tensor, places: Places, positions: Tensor | None, states: Tensor | None,
        dtype: torch.dtype,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Run the network: channels (B, n, G − top, N) of one strip's pairs after the other."""
        index, reach = places.residue_at, self.options.reach
        G, step = index.shape[1], max(_ROWS, 4 * reach)
        tops = list(range(0, G, step))
        boxes = [(slice(max(0, t - reach), min(G, t + step + reach)), slice(max(0, t - reach), G)) for t in tops]
        inside, where = index >= 0, index.clamp(min=0)
        at = where if positions is None else positions.expand(len(index), -1).gather(1, where)
        narrow = None
        if self.narrow is not None and states is not None:
            narrow = self.narrow(states.to(self.enter.weight))
            narrow = narrow.gather(1, where.unsqueeze(-1).expand(-1, -1, narrow.shape[-1]))
        for top, (rows, columns), strip in zip(tops, boxes, _cut(maps, scale, places.spans, boxes), strict=True):
            parts = [strip, _separation(at[:, rows, None] - at[:, None, columns], strip.dtype)]
            if narrow is not None:
                parts.append(narrow[:, rows, None] * narrow[:, None, columns])
            x = self.enter(torch.cat(parts, -1))
            mask = (inside[:, rows, None] & inside[:, None, columns]).to(x.dtype).unsqueeze(-1)
            for block in self.blocks:
                x = block(x, mask, dtype)
            first = top - rows.start
            yield unit(x[:, first : min(top + step, G) - rows.start, first:]).relu()


def _separation(apart: Tensor, dtype: torch.dtype) -> Tensor:
    """How far apart residues are, as a few numbers of size 1: (…) to (…, 3)."""
    d = apart.abs().to(dtype)
    return torch.stack([d.log1p() / 5, 1 / (1 + d), d.clamp(max=24) / 24], -1)


def _cut(maps: Tensor, scale: Tensor, spans: Any, boxes: Sequence[tuple[slice, slice]]) -> Iterator[Tensor]:
    """Strips of maps: all at once where there is a gradient, which comes together, else one by one."""
    if torch.is_grad_enabled() and maps.requires_grad:
        yield from _Cut.apply(maps, scale, spans, boxes)
    else:
        for box in boxes:
            yield from _Cut.apply(maps, scale, spans, [box])
