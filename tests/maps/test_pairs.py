"""Pairs of a map: ranked, as a table, and the ways a map is used in Python and notebooks."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contactlm import ContactMap, ContactModule, predict_contacts
from contactlm.maps.contact_map import ContactMaps
from contactlm.maps.figure import BOUNDARY, make_figure
from tests.conftest import random_sequence, write_pdb
from tests.maps.made import map_of
from tests.maps.test_contact_map import make_map


@pytest.mark.parametrize("seed", range(3))
def test_top_and_contacts_are_those_of_a_sorted_list(seed: int) -> None:
    predicted = make_map(40, seed, how={"chain_lengths": [25, 15]})
    predicted.probability[:] = np.round(predicted.probability, 1)  # many equals
    pairs = [(i, j) for i in range(40) for j in range(i + 1, 40) if j - i >= 6 or (i < 25 <= j)]
    pairs.sort(key=lambda pair: (-predicted.probability[pair], pair))
    assert [pair[:2] for pair in predicted.top(50)] == pairs[:50]
    assert len(predicted.top()) == 40 and predicted.top(0) == []
    assert [pair[:2] for pair in predicted.contacts(0.5)] == [p for p in pairs if predicted.probability[p] > 0.5]
    assert predicted.contacts() == predicted.contacts(predicted.threshold)
    assert len(predicted.top(10**4, min_separation=1)) == 40 * 39 / 2


def test_csv_holds_what_the_map_and_the_structure_say(tmp_path: Path) -> None:
    path = write_pdb(tmp_path / "x.pdb", {"A": random_sequence(0, 30), "B": random_sequence(1, 30)})
    predicted = map_of(path, joined=True)
    predicted.save(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    kept = [pair for pair in predicted.top(5 * 60) if np.float32(pair.probability) >= np.float32(0.01)]
    assert len(rows) == len(kept) > 100
    for row, (i, j, p) in zip(rows, kept, strict=True):
        assert (int(row["i"]), int(row["j"])) == (i + 1, j + 1)
        assert float(row["probability"]) == pytest.approx(p, abs=6e-6)
        named = (row["chain_i"], row["number_i"], row["letter_i"])
        assert named == ("AB"[i // 30], str(i % 30 + 1), predicted.sequence[i])
        distance = np.linalg.norm(predicted.residues.cb[i] - predicted.residues.cb[j])
        assert float(row["distance"]) == pytest.approx(distance, abs=0.006)
        assert int(row["contact"]) == predicted.labels[i, j] and int(row["called"]) == (p > 0.5)
        assert row["separation"] == ("" if i < 30 <= j else str(j - i))


def test_a_map_is_an_array_and_a_data_frame(tmp_path: Path) -> None:
    predicted = make_map(20)
    np.testing.assert_array_equal(np.asarray(predicted), predicted.probability)
    assert np.asarray(predicted, dtype=np.float64).dtype == np.float64
    assert np.shares_memory(np.asarray(predicted), predicted.probability)
    copy = np.array(predicted)
    copy[0, 1] = 7
    assert predicted.probability[0, 1] != 7
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = predicted.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 15 * 14 / 2
    assert frame["probability"].is_monotonic_decreasing and frame["probability"].dtype.kind == "f"
    assert frame["i"].dtype.kind == "i" and set(frame["number_i"]) == {""}


def test_notebooks_show_maps_and_lists_of_them(tiny_esm: Path) -> None:
    evil = replace(make_map(30), id="<b>'\"/")
    with Image.open(io.BytesIO(evil._repr_png_())) as image:
        assert image.format == "PNG" and min(image.size) > 300
    maps = predict_contacts([random_sequence(k, 30) for k in range(3)], model=ContactModule(str(tiny_esm)))
    assert isinstance(maps, list) and isinstance(maps, ContactMaps)
    html = ContactMaps([*maps, evil])._repr_html_()
    assert html.count("data:image/png;base64,") == 4 and "&lt;b&gt;" in html and "<b>" not in html
    assert "and 40 more" in ContactMaps([evil] * 100)._repr_html_()


def test_residues_travel_with_the_npz(tmp_path: Path) -> None:
    predicted = map_of(write_pdb(tmp_path / "x.pdb", {"A": random_sequence(0, 30)}))
    predicted.save(tmp_path / "a.npz")
    loaded = ContactMap.load(tmp_path / "a.npz").residues
    for name, value in vars(predicted.residues).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert type(loaded.numbers[0]) is str
    with pytest.raises(ValueError, match="10 residues, but 30 of"):
        ContactMap("y", "A" * 10, np.zeros((10, 10)), residues=predicted.residues)


def test_chain_boundaries_are_in_the_picture() -> None:
    def boundaries(predicted: ContactMap) -> list:
        lines = [line for line in make_figure(predicted).axes[0].lines if line.get_color() == BOUNDARY]
        return sorted((tuple(line.get_xdata()), tuple(line.get_ydata())) for line in lines)

    along = [(at, at) for at in (12.5, 22.5)]
    expected = sorted([(place, (0, 1)) for place in along] + [((0, 1), place) for place in along])
    assert boundaries(make_map(30, how={"chain_lengths": [12, 10, 8]})) == expected
    assert boundaries(make_map(30)) == []
