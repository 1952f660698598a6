"""Files of predictions: in which order they are taken, ``index.html`` in a browser, and what cannot be written."""

from __future__ import annotations

import csv
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contactlm.callbacks.prediction_files import MapFiles, confidence, read_summary, write_index
from contactlm.callbacks.writer import THREADS, PredictionWriter
from contactlm.maps.contact_map import ContactMap, thumbnail
from contactlm.types import ContactLMError
from tests.browser import Browser
from tests.conftest import random_sequence, write_pdb
from tests.maps.made import map_of

EVIL = "<b>x</b>/\"'\\ y"


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> ContactMap:
    return map_of(write_pdb(tmp_path_factory.mktemp("pdb") / "one.pdb", {"A": random_sequence(1, 60)}))


@pytest.mark.slow
@pytest.mark.browser
def test_all_proteins_are_shown_searched_and_opened(tmp_path: Path, predicted: ContactMap, browser: Browser) -> None:
    writer = PredictionWriter(tmp_path, ["npz", "html"])
    maps = [replace(predicted, id=name) for name in ("b1", "a2", EVIL)]
    maps.append(replace(predicted, id="c", probability=predicted.probability / 2, how={"hits": ["1abc_A", "2xyz_B"]}))
    with ThreadPoolExecutor(1) as threads:
        writer._waiting.extend((each.id, 1, threads.submit(writer._work(each, 1.5))) for each in maps)
        writer._take_finished()
    write_index(writer.files, read_summary(tmp_path / "summary.csv"), writer._thumbnails)
    browser.open(tmp_path / "index.html")
    assert browser.texts("#proteins tbody td:nth-child(2)") == sorted(each.id for each in maps)
    assert browser.run("return [...document.images].filter((i) => i.naturalWidth > 20).length") == 4
    titles = browser.texts("#proteins th")
    row = dict(zip(titles, browser.texts("#proteins tbody tr:last-child td"), strict=True))
    assert row["protein"] == "c" and row["structures read"] == "1abc_A, 2xyz_B" and row["seconds"] == "1.50"
    assert float(row["confidence"]) == pytest.approx(confidence(maps[-1]), abs=6e-4)
    assert float(row["MCC"]) == pytest.approx(maps[-1].scores()["mcc_sep6"], abs=6e-4)
    browser.find("#proteins th:nth-child(5) button").click()
    assert browser.texts("#proteins tbody td:nth-child(2)")[-1] == "c"  # the least confident
    browser.find("[data-searches=proteins]").send_keys("<b>")
    assert browser.texts("#proteins tbody td:nth-child(2)") == [EVIL]
    browser.check_silence()
    browser.find("#proteins tbody tr:not([hidden]) td:nth-child(2) a").click()
    browser.wait(lambda: browser.run("return document.documentElement.dataset.ready"))
    assert browser.find("h1").text == EVIL
    browser.check_silence()


@pytest.mark.slow
@pytest.mark.browser
def test_a_thousand_proteins_stay_usable(tmp_path: Path, predicted: ContactMap, browser: Browser) -> None:
    lines = {f"p{k:04d}": {"id": f"p{k:04d}", "length": "60", "confidence": f"{k / 1000}"} for k in range(1000)}
    write_index(MapFiles(tmp_path), lines, dict.fromkeys(lines, thumbnail(predicted)))
    assert (tmp_path / "index.html").stat().st_size < 5e6
    browser.open(tmp_path / "index.html")
    browser.run("document.querySelector('#proteins th:nth-child(5) button').click()")
    assert browser.texts("#proteins tbody tr:first-child td:nth-child(2)") == ["p0999"]
    search = "const f = document.querySelector('input'); f.value = 'p012'; f.dispatchEvent(new Event('input'))"
    browser.run(search)
    assert len(browser.texts("#proteins tbody tr")) == 10
    assert browser.busy() < 3.0  # seconds of a processor, for all of it
    browser.check_silence()


def test_formats_that_need_a_structure_are_left_out_and_told(
    tmp_path: Path, predicted: ContactMap, caplog: pytest.LogCaptureFixture
) -> None:
    bare = replace(predicted, residues=None, labels=None, id="bare")
    files = MapFiles(tmp_path, ["pml", "csv"])
    assert files.write(bare, files.formats) == ["csv"]
    files.report()
    assert (
        "no pml, and no residue numbers in csv, of 1 proteins (bare): sequence-only input; pass --structure"
        in caplog.text
    )
    named = MapFiles(tmp_path, ["pml", "csv"], structure=predicted.residues.file)
    assert named.write(bare, named.formats) == ["pml", "csv"]
    with (tmp_path / "bare.csv").open() as handle:
        assert {row["chain_i"] for row in csv.DictReader(handle)} == {"A"}
    foreign = MapFiles(tmp_path, ["pml"], structure=predicted.residues.file)
    other = ContactMap("other", "W" * 50, np.zeros((50, 50)))
    assert foreign.write(other, foreign.formats) == [] and "no chain is related" in foreign.without["other"]
    with pytest.raises(ContactLMError, match=r"structure: nowhere\.pdb: there is no such file"):
        MapFiles(tmp_path, ["pml"], structure="nowhere.pdb")


def give(writer: PredictionWriter, maps: list[ContactMap]) -> None:
    """Hand over a batch, as a trainer does."""
    writer._threads = writer._threads or ThreadPoolExecutor(THREADS)
    writer.on_predict_batch_start()
    writer.on_predict_batch_end(None, None, maps)  # type: ignore[arg-type]  # it looks at neither


def flat(name: str, length: int = 9) -> ContactMap:
    return ContactMap(name, "A" * length, np.zeros((length, length), dtype=np.float32))


def ids(folder: Path) -> list[str]:
    return list(read_summary(folder / "summary.csv"))


def test_lines_come_in_the_order_of_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, seconds, write = PredictionWriter(tmp_path, ["rr"]), iter([0.05, 0.0, 0.03, 0.0] * 5), MapFiles.write

    def slow(*arguments: object) -> list[str]:
        time.sleep(next(seconds))
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MapFiles, "write", slow)
    names = [f"p{number}" for number in range(20)]
    for start in range(0, 20, 4):
        give(writer, [flat(name) for name in names[start : start + 4]])
    writer._take_finished()
    assert ids(tmp_path) == names and writer.written == 20


def test_a_batch_waits_where_too_many_pairs_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, going, write = PredictionWriter(tmp_path, ["rr"]), threading.Event(), MapFiles.write
    monkeypatch.setattr("contactlm.callbacks.writer.WAITING_PAIRS", 250)
    monkeypatch.setattr(MapFiles, "write", lambda *arguments: (going.wait(20), write(*arguments))[1])
    late = threading.Thread(target=give, args=(writer, [flat("a"), flat("b"), flat("c"), flat("d"), flat("e", 99)]))
    late.start()
    late.join(0.1)
    assert late.is_alive() and ids(tmp_path) == []  # four would be 324 pairs
    going.set()
    late.join(20)
    assert not late.is_alive() and ids(tmp_path) == ["a", "b", "c", "d"]  # a larger map waits alone
    writer._take_finished()
    assert ids(tmp_path)[-1] == "e"


def test_the_first_map_that_cannot_be_written_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, write = PredictionWriter(tmp_path, ["rr"]), MapFiles.write

    def full(files: MapFiles, predicted: ContactMap, kinds: list[str]) -> list[str]:
        if predicted.id in ("c", "e"):
            raise OSError(28, "No space left on device")
        return write(files, predicted, kinds)

    monkeypatch.setattr(MapFiles, "write", full)
    with pytest.raises(ContactLMError, match=r"c cannot be written to .* 2 maps were written") as error:
        give(writer, [flat(name) for name in "abcdef"])
        writer._take_finished()
    writer.on_exception(None, None, error.value)  # type: ignore[arg-type]
    assert ids(tmp_path) == ["a", "b"]


def test_what_was_begun_is_kept_and_the_rest_dropped_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, going, begun, write = (
        PredictionWriter(tmp_path, ["rr"]),
        threading.Event(),
        threading.Event(),
        MapFiles.write,
    )
    monkeypatch.setattr(MapFiles, "write", lambda *arguments: (begun.set(), going.wait(20), write(*arguments))[2])
    writer._threads = ThreadPoolExecutor(1)
    give(writer, [flat(name) for name in "abc"])
    begun.wait(20)
    threading.Timer(0.05, going.set).start()
    writer.on_exception(type("Trainer", (), {"is_global_zero": False}), None, KeyboardInterrupt())  # type: ignore[arg-type]
    assert ids(tmp_path) == ["a"]
