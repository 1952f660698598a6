"""Contact maps and their files, the RR file read by a strict reader of its own."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from contactlm.atomic import atomic_path
from contactlm.maps.contact_map import ContactMap, write_npz, write_rr
from contactlm.maps.figure import make_figure
from contactlm.maps.picture import block_maximum, title
from contactlm.metrics.scores import score_protein
from contactlm.types import DataError


def make_map(L: int = 70, seed: int = 0, labels: bool = True, **options) -> ContactMap:
    rng = np.random.default_rng(seed)
    probability = rng.random((L, L), dtype=np.float32)
    probability = np.minimum(probability, probability.T)
    truth = None
    if labels:
        truth = np.triu(rng.random((L, L)) < probability * 0.5, 1).astype(np.int8)
        truth = truth + truth.T
        truth[3 % L] = truth[:, 3 % L] = -1
        np.fill_diagonal(truth, -1)
    sequence = "".join(rng.choice(list("LAGVSERTIDPKQNFYMHWCX"), L))
    return ContactMap(**{"id": "1abc_A", "sequence": sequence, "probability": probability, "labels": truth, **options})


@dataclass
class RRFile:
    target: str
    author: list[str]
    method: list[str]
    sequence: str
    pairs: list[tuple[int, int, float, float, float]]


def read_rr(path: Path) -> RRFile:
    """Read one model of the RR format, strictly after its description by the Protein Structure Prediction Center.

    Keywords begin in the first column; PFRMAT, TARGET and AUTHOR come first; METHOD is required; MODEL opens the data
    and END, the last line, closes it; after MODEL the entire sequence, at most 50 letters in a line; then lines of
    i, j (i < j, from 1), d1, d2 and p in [0, 1], no pair twice, by decreasing p; separators are spaces, never tabs.
    """
    text = path.read_text(encoding="ascii")
    assert "\t" not in text and "\r" not in text and text.endswith("\n")
    lines = text.split("\n")[:-1]
    assert lines[0] == "PFRMAT RR"
    keys = [line.split(" ", 1)[0] for line in lines]
    assert keys[1:3] == ["TARGET", "AUTHOR"]
    begin = keys.index("MODEL")
    assert lines[begin] == "MODEL 1" and set(keys[3:begin]) <= {"REMARK", "METHOD"}
    assert lines[-1] == "END" and keys.index("END") == len(lines) - 1, "nothing but the last line may read END"
    target = re.fullmatch(r"TARGET (\S+)", lines[1])
    assert target is not None
    body = [line for line in lines[begin + 1 : -1] if not line.startswith("REMARK")]
    letters = [line for line in body if re.fullmatch(r"[A-Z]{1,50}", line)]
    assert body[: len(letters)] == letters, "the sequence comes before the pairs"
    pairs = []
    for line in body[len(letters) :]:
        found = re.fullmatch(r" *(\d+) +(\d+) +(\d+(?:\.\d+)?) +(\d+(?:\.\d+)?) +([01](?:\.\d+)?)", line)
        assert found is not None, line
        i, j, d1, d2, p = found.groups()
        pairs.append((int(i), int(j), float(d1), float(d2), float(p)))
    sequence = "".join(letters)
    assert all(1 <= i < j <= len(sequence) and d1 < d2 and 0 <= p <= 1 for i, j, d1, d2, p in pairs)
    assert len({pair[:2] for pair in pairs}) == len(pairs)
    assert all(one[4] >= two[4] for one, two in itertools.pairwise(pairs))
    method = [line[7:] for line in lines if line.startswith("METHOD ")]
    assert method
    return RRFile(target[1], [line for line in lines if line.startswith("AUTHOR ")], method, sequence, pairs)


@pytest.mark.parametrize("L", [1, 5, 6, 7, 49, 50, 51, 100, 130])
@pytest.mark.parametrize(("separation", "minimum"), [(6, 0.01), (1, 0.0), (24, 0.5)])
def test_rr_holds_every_pair_asked_for_and_no_other(tmp_path: Path, L: int, separation: int, minimum: float) -> None:
    contact_map = make_map(L, seed=L, labels=False)
    write_rr(contact_map, tmp_path / "map.rr", separation, minimum, pairs_per_residue=None)
    got = read_rr(tmp_path / "map.rr")
    assert (got.target, got.sequence) == ("1abc_A", contact_map.sequence)
    expected = {
        (i + 1, j + 1): float(contact_map.probability[i, j])
        for i in range(L)
        for j in range(i + separation, L)
        if contact_map.probability[i, j] >= np.float32(minimum)
    }
    assert {pair[:2] for pair in got.pairs} == set(expected)
    for i, j, d1, d2, p in got.pairs:
        assert (d1, d2) == (0, 8) and p == pytest.approx(expected[i, j], abs=0.51e-5)


@pytest.mark.parametrize("L", [41, 42, 60, 130])
@pytest.mark.parametrize("per_residue", [20, 0.01, 2.5])
def test_rr_holds_the_most_probable_pairs_and_says_how_many(tmp_path: Path, L: int, per_residue: float) -> None:
    contact_map = make_map(L, seed=L, labels=False)
    contact_map.probability = np.round(contact_map.probability, 1)  # many are equal
    write_rr(contact_map, tmp_path / "all.rr", pairs_per_residue=None)
    write_rr(contact_map, tmp_path / "some.rr", **({} if per_residue == 20 else {"pairs_per_residue": per_residue}))
    every, some = (read_rr(tmp_path / f"{name}.rr").pairs for name in ("all", "some"))
    most = math.ceil(per_residue * L)
    assert some == every[:most] and len(some) == min(most, len(every))
    remarks = [line for line in (tmp_path / "some.rr").read_text().splitlines() if line.startswith("REMARK")]
    assert (
        f"REMARK the {len(some)} most probable of {len(every)} such pairs: at most {per_residue:g} L = {most}"
        in remarks
    )
    assert f"REMARK all {len(every)} such pairs" in (tmp_path / "all.rr").read_text()


def test_rr_of_a_long_map_is_small(tmp_path: Path) -> None:
    probability = np.full((1500, 1500), 0.02, np.float32)  # unlike any map, and yet each pair counts
    size = ContactMap("x", "A" * 1500, probability).save(tmp_path / "map.rr").stat().st_size
    assert size < 30 * 20 * 1500  # at most as many letters for each of 20 pairs a residue
    assert len(read_rr(tmp_path / "map.rr").pairs) == 20 * 1500


@pytest.mark.parametrize("per_residue", [0, -1, math.nan, math.inf])
def test_rr_of_no_pairs_is_refused(tmp_path: Path, per_residue: float) -> None:
    with pytest.raises(ValueError, match="pairs_per_residue is"):
        write_rr(make_map(), tmp_path / "no.rr", pairs_per_residue=per_residue)


def test_rr_defaults_method_and_order_of_equals(tmp_path: Path) -> None:
    how = {"window": 1022, "passes": {"whole": 1}, "model": "facebook/esm2_t6_8M_UR50D", "note": "two\nlines, Å"}
    probability = np.full((20, 20), 0.25)
    probability[2, 15] = probability[15, 2] = 1.0
    probability[3, 16] = probability[16, 3] = 0.009
    contact_map = ContactMap("my protein\t1", "A" * 20, probability, how=how)
    contact_map.save(tmp_path / "map.RR")
    got = read_rr(tmp_path / "map.RR")
    assert got.target == "my_protein_1"
    assert got.pairs[0] == (3, 16, 0, 8, 1.0)
    assert [pair[:2] for pair in got.pairs[1:]] == sorted(pair[:2] for pair in got.pairs[1:])
    assert min(j - i for i, j, *_ in got.pairs) == 6
    assert (4, 17) not in {pair[:2] for pair in got.pairs}
    assert 'model: "facebook/esm2_t6_8M_UR50D"' in got.method and 'passes: {"whole": 1}' in got.method
    with pytest.raises(ValueError, match="min_separation is 0"):
        write_rr(contact_map, tmp_path / "no.rr", min_separation=0)


@pytest.mark.parametrize("sequence", ["A" * 50 + "END", "A" * 100 + "MODEL", "END", "AGV" * 16 + "AG" + "METHOD"])
def test_rr_sequence_lines_never_read_like_keywords(tmp_path: Path, sequence: str) -> None:
    zeros = np.zeros((len(sequence), len(sequence)))
    ContactMap("x", sequence, zeros).save(tmp_path / "map.rr")
    lines = (tmp_path / "map.rr").read_text().splitlines()
    assert not {"END", "MODEL", "METHOD"} & set(lines[:-1])
    assert read_rr(tmp_path / "map.rr").sequence == sequence


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("L", [0, 1, 70])
def test_npz_returns_everything(tmp_path: Path, L: int, labels: bool) -> None:
    how = {"window": 1022, "overlap": None, "passes": {"whole": 1}, "version": "0.1.0"}
    contact_map = make_map(L, labels=labels, id="ünit A", threshold=0.37, how=how) if L else empty_map(labels)
    path = contact_map.save(tmp_path / "new" / "folder" / "map.npz")
    again = ContactMap.load(path)
    assert (again.id, again.sequence, again.threshold) == (contact_map.id, contact_map.sequence, contact_map.threshold)
    assert again.how == contact_map.how and len(again) == L
    assert again.probability.dtype == np.float32
    np.testing.assert_array_equal(again.probability, contact_map.probability)
    if contact_map.labels is None:
        assert again.labels is None
    else:
        assert again.labels is not None and again.labels.dtype == np.int8
        np.testing.assert_array_equal(again.labels, contact_map.labels)


def empty_map(labels: bool) -> ContactMap:
    nothing = np.zeros((0, 0))
    return ContactMap("empty", "", nothing, nothing if labels else None)


def test_npz_is_plain_numpy_without_pickle_and_halves_on_request(tmp_path: Path) -> None:
    contact_map = make_map()
    write_npz(contact_map, tmp_path / "half.npz", dtype="float16")
    with np.load(tmp_path / "half.npz", allow_pickle=False) as data:
        assert set(data.files) == {"probability", "sequence", "id", "threshold", "how", "labels"}
        assert data["probability"].dtype == np.float16
        assert not any(data[name].dtype.hasobject for name in data.files)
    half = ContactMap.load(tmp_path / "half.npz").probability
    assert 0 < np.abs(half - contact_map.probability).max() <= 0.00025
    with pytest.raises(ValueError, match="float64"):
        write_npz(contact_map, tmp_path / "no.npz", dtype="float64")
    assert not (tmp_path / "no.npz").exists()


def test_loading_something_else_names_the_file(tmp_path: Path) -> None:
    make_map().save(tmp_path / "whole.npz")
    damaged = {
        "text.npz": b"no archive",
        "short.npz": (tmp_path / "whole.npz").read_bytes()[:2000],
        "empty.npz": b"",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "array", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", id=np.array({"a": 1}, dtype=object))
    for name in (*damaged, "other.npz", "array.npy", "pickled.npz", "missing.npz"):
        with pytest.raises(DataError, match=re.escape(name)):
            ContactMap.load(tmp_path / name)


def test_other_suffixes_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    for name in ("map.txt", "map", "map.npz.gz"):
        with pytest.raises(ValueError, match=r"\.npz, \.rr, \.png"):
            make_map().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".npz", ".rr", ".png"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contact_map = make_map()
    path = contact_map.save(tmp_path / f"map{suffix}")
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)  # everything was written, and the last step goes wrong
        with pytest.raises(OSError, match="no space"):
            make_map(seed=1).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    make_map(seed=1).save(path)
    assert path.read_bytes() != before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_temporary_file_lies_in_the_same_folder_and_permissions_are_the_usual(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    name = "n" * 251 + ".npz"  # as long as a file's name may be
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path and not (tmp_path / name).exists()
        temporary.write_text("done")
    assert (tmp_path / name).read_text() == "done"
    mode = stat.S_IMODE((tmp_path / name).stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_impossible_maps_are_refused() -> None:
    good = make_map(10)
    for change, message in (
        ({"probability": np.zeros((9, 9))}, r"\(9, 9\), but the sequence has 10"),
        ({"labels": np.zeros((10, 9))}, r"labels is \(10, 9\)"),
        ({"probability": good.probability * 8 - 4}, "logits"),
        ({"probability": np.triu(good.probability)}, "not symmetric"),
        ({"probability": np.full((10, 10), np.nan)}, "NaN"),
        ({"how": {"model": object()}}, "JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **change)
    assert repr(good) == "ContactMap('1abc_A', 10 residues, with labels)"


def test_scores_are_those_of_score_protein_at_the_maps_threshold() -> None:
    import torch

    contact_map = make_map(threshold=0.3)
    tensors = torch.from_numpy(contact_map.probability), torch.from_numpy(contact_map.labels)
    assert contact_map.scores()["mcc_sep6"] == score_protein(*tensors, threshold=0.3)["mcc_sep6"]
    assert contact_map.scores()["mcc_sep6"] != score_protein(*tensors)["mcc_sep6"]
    with pytest.raises(ValueError, match="no labels"):
        make_map(labels=False).scores()


@pytest.mark.parametrize("L", [1, 60, 300, 800, 1600, 2100])
def test_a_plot_cuts_nothing_off(L: int) -> None:
    zeros = np.zeros((L, L), dtype=np.float32)
    figure = make_figure(ContactMap("x", "A" * L, zeros, zeros.astype(np.int8) if L < 800 else None))
    figure.draw_without_rendering()
    box = figure.axes[0].get_window_extent()
    cells = L if L <= 1600 else -(-L // 2)
    assert box.width == pytest.approx(box.height, rel=0.01) and box.width >= cells
    tight = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert tight.x0 >= 0 and tight.y0 >= 0
    assert tight.x1 <= figure.bbox.width and tight.y1 <= figure.bbox.height


@pytest.mark.parametrize("L", [1, 29, 60, 300, 1100, 2100])
def test_a_picture_shows_every_pair_in_the_colours_of_matplotlib(tmp_path: Path, L: int) -> None:
    p = np.random.default_rng(L).random((L, L), dtype=np.float32)
    p = np.maximum(p, p.T)
    labels = (p > 0.8).astype(np.int8) - (p > 0.97) * np.int8(2)
    contact_map = ContactMap("x", "A" * L, p, np.tril(labels, -1) + np.tril(labels, -1).T)
    block = 1 if L <= 1600 else 2
    cells = [block_maximum(values, block) for values in (p, contact_map.labels)]
    shown = np.round(255 * colormaps["Blues"](cells[0])[..., :3]).astype(int)
    truth = np.array([(228, 225, 220), (255, 255, 255), (178, 24, 43)])[cells[1] + 1]
    lower = np.tri(len(shown), k=-1, dtype=bool)
    shown[lower] = truth[lower]
    picture = np.asarray(Image.open(contact_map.save(tmp_path / "map.png")))
    scale, em = max(1, round(720 / len(shown))), max(14, max(1, round(720 / len(shown))) * len(shown) // 48)
    left, top = round(5.1 * em), round(3.4 * em)
    middle = np.arange(len(shown)) * scale + scale // 2
    found = picture[top + middle][:, left + middle].astype(int)
    off = ~np.eye(len(shown), dtype=bool)
    if scale < 8:  # the line along the diagonal touches its neighbours
        off &= np.abs(np.subtract.outer(*[np.arange(len(shown))] * 2)) > 1
    assert (np.abs(found - shown)[off] <= 1).all()
    border = np.concatenate([picture[[0, -1]].reshape(-1, 3), picture[:, [0, -1]].reshape(-1, 3)])
    assert (border == 255).all()  # no word is cut off


def test_a_picture_names_its_threshold(tmp_path: Path) -> None:
    def rows(threshold: float, kind: str) -> NDArray:
        contact_map = replace(make_map(40), threshold=threshold, how={"threshold_kind": kind})
        picture = np.asarray(Image.open(contact_map.save(tmp_path / "map.png"))).astype(int)
        return np.argwhere((picture == (178, 24, 43)).all(-1) & (np.arange(picture.shape[1]) > 810))[:, 0]

    assert np.median(rows(0.25, "as given")) - np.median(rows(0.75, "tuned on dev")) == pytest.approx(360, abs=3)


@pytest.mark.slow
def test_pictures_take_a_fraction_of_what_matplotlib_takes(tmp_path: Path) -> None:
    predicted = make_map(150)

    def seconds(draw: Callable[[], object]) -> float:
        began = time.process_time()
        draw()
        return time.process_time() - began

    ways = (lambda: predicted.save(tmp_path / "map.png"), lambda: make_figure(predicted).savefig(tmp_path / "plot.png"))
    ours, theirs = ([seconds(draw) for _ in range(4)] for draw in ways)
    assert min(ours) < min(theirs) / 2


def test_plot_puts_probability_above_the_diagonal_and_truth_below() -> None:
    contact_map = make_map(30)
    ax = contact_map.plot()
    truth, probability = (image.get_array() for image in ax.images)
    above = np.triu(np.ones((30, 30), dtype=bool))
    np.testing.assert_array_equal(np.ma.getmaskarray(probability), ~above)
    np.testing.assert_array_equal(probability[above], contact_map.probability[above])
    np.testing.assert_array_equal(np.ma.getmaskarray(truth), above)
    np.testing.assert_array_equal(truth[~above], contact_map.labels[~above])
    # Residue 1 is at the top left, so "above" is where the column is the larger number.
    assert ax.get_xlim() == (0.5, 30.5) and ax.get_ylim() == (30.5, 0.5)
    assert ax.images[0].get_extent() == [0.5, 30.5, 30.5, 0.5]
    (mirrored,) = make_map(30, labels=False).plot().images
    np.testing.assert_array_equal(mirrored.get_array(), make_map(30).probability)


def test_plot_uses_the_axes_given() -> None:
    left, right = Figure().subplots(1, 2)
    assert make_map(30).plot(right) is right
    assert right.images and not left.images


def test_title_names_the_protein_and_its_scores() -> None:
    contact_map = make_map(60)
    scores = contact_map.scores()
    text = title(contact_map)
    assert "1abc_A" in text and "60 residues" in text
    assert f"{scores['mcc_sep6']:.2f}" in text and f"{scores['p_at_L_long']:.2f}" in text
    assert "P@L" not in title(make_map(60, labels=False))
    assert "P@L" not in title(make_map(12)), "no long-range pairs, no long-range precision"


def test_blocks_keep_their_highest_value() -> None:
    values = np.zeros((7, 7))
    values[6, 2] = 0.9
    values[3, 3] = 0.4
    assert block_maximum(values, 3).tolist() == [[0, 0, 0], [0, 0.4, 0], [0.9, 0, 0]]
    assert block_maximum(values, 1) is values


@pytest.mark.slow
def test_matplotlib_waits_until_something_is_drawn_and_pyplot_is_never_used(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from contactlm.maps.contact_map import ContactMap\n"
        "m = ContactMap('x', 'A' * 9, np.zeros((9, 9)))\n"
        "m.save(sys.argv[1] + '/a.rr'); m.save(sys.argv[1] + '/a.npz')\n"
        "before = 'matplotlib' in sys.modules\n"
        "m.save(sys.argv[1] + '/a.png'); m.plot()\n"
        "print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True", "False"]
