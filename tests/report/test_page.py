"""``report.html``, in its numbers and in a browser."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contactlm.cli.report import write_report
from contactlm.report.options import differing_options
from contactlm.report.page import protein_scores
from contactlm.report.page_figure import run_figures
from contactlm.report.read import find_runs
from tests.browser import Browser
from tests.missing import hide_libraries
from tests.report.made_runs import equal_terms, make_run

ARMS = {"crop200": 0.4, "two<seg>": 0.3}
N = 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds, with scores of proteins, and maps of some."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for number, (arm, score) in enumerate(ARMS.items()):
        for seed in range(2):
            scheme = {"crop": "random", "crop_length": 200 + number}
            run = make_run(folder / f"arm{number}" / f"version_{seed}", arm, seed, score, scheme=scheme)
            with (run / "test_scores.csv").open("w", newline="") as handle:
                rows = csv.writer(handle)
                rows.writerow(["id", "index", "mcc_sep6", "mcc"])
                rows.writerows([f"p{k}", k, round(score + rng.normal(0, 0.2), 3), ""] for k in range(N))
    maps = folder / "arm0" / "version_1" / "maps"
    maps.mkdir()
    (maps / "summary.csv").write_text("id,file\np3,other name\n")
    (maps / "other name.html").write_text("<title>map</title>")
    (maps / "p4.png").write_bytes(b"")
    return folder


def test_scores_of_proteins_are_means_over_seeds_and_their_maps_are_found(runs: Path, tmp_path: Path) -> None:
    found = find_runs([runs]).runs
    proteins = protein_scores(found, tmp_path)
    assert proteins is not None and proteins["ids"] == [f"p{k}" for k in range(N)]
    for arm in ARMS:
        tables = [run.proteins() for run in found if run.arm == arm]
        expected = np.mean([[row["mcc_sep6"] for row in table.values()] for table in tables], axis=0)
        np.testing.assert_allclose(proteins["scores"][arm]["mcc_sep6"], expected, atol=1e-4)
        assert "mcc" not in proteins["scores"][arm]  # known of no protein
    links = proteins["links"]["crop200"]
    assert [k for k, link in enumerate(links) if link] == [3, 4] and proteins["links"]["two<seg>"] == [None] * N
    assert (tmp_path / links[4]).resolve() == (runs / "arm0/version_1/maps/p4.png").resolve()
    assert links[3].endswith("/other%20name.html")


def test_options_that_differ_are_those_of_configs_and_records(runs: Path) -> None:
    found = find_runs([runs]).runs
    config = found[0].path / "config.yaml"
    config.write_text("data: {crop_length: 7, deep: {er: [1, 2]}}\nsame: null\n")
    try:
        differing = differing_options(found)
    finally:
        config.unlink()
    assert differing["scheme.crop_length"] == ["200", "200", "201", "201"]
    assert differing["data.deep.er"] == ["[1, 2]", "", "", ""] and "scheme.crop" not in differing
    config.write_text("a: [\n")  # damaged: the record tells
    try:
        assert set(differing_options(found)) == {"seed", "scheme.crop_length"}
    finally:
        config.unlink()


def test_without_the_library_the_rest_is_written_and_the_page_is_missed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_libraries(monkeypatch, "bokeh")
    monkeypatch.setattr("contactlm.cli.report.save_figure", lambda *_: None)  # slow, and not what is asked here
    told = write_report([runs], tmp_path / "out")
    assert any(re.match(r"no report.html: bokeh cannot be imported .*contactlm\[pages\]", line) for line in told)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert "table.csv" in written and "report.html" not in written


def test_figures_are_those_that_runs_have_values_of(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "a", 0, 0.4)
    (full,) = find_runs([tmp_path]).runs
    bare = replace(full, record={**full.record, "progress": []})
    titles = [[plot.title.text for plot in run_figures([run], ["a"], {})] for run in (full, bare)]
    assert titles[0][0] == "cost of training" and titles[1] == titles[0][1:]


@pytest.mark.slow
def test_groups_that_must_not_be_mixed_have_pages_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "a", 0, 0.4)
    make_run(tmp_path / "runs" / "b", "b", 0, 0.4, equal=equal_terms(budget=7))
    write_report([tmp_path / "runs"], tmp_path / "out")
    overview = (tmp_path / "out" / "report.html").read_text()
    assert 'href="set1/report.html"' in overview and 'href="set2/report.html"' in overview
    assert (tmp_path / "out" / "set2" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.browser
def test_runs_go_on_and_off_and_arms_are_compared(runs: Path, tmp_path: Path, browser: Browser) -> None:
    write_report([runs], tmp_path / "out")
    browser.open(tmp_path / "out" / "report.html")
    labels = browser.texts("#runs label")
    assert labels == [f"{arm}, seed {seed}" for arm in ARMS for seed in range(2)]
    of_run = "contactlm.figures.flatMap((figure) => figure.renderers).filter((part) => part.name === 'run1')"
    visible = f"return {of_run}.map((part) => part.visible)"
    assert len(browser.run(visible)) > 6 and all(browser.run(visible))
    browser.find("#runs label:nth-child(2) input").click()
    assert not any(browser.run(visible))
    options = "return contactlm.figures[1].renderers[0].data_source.data.options[0]"
    assert "scheme.crop_length 200" in browser.run(options) and "seed 0" in browser.run(options)
    assert browser.texts("#arms tbody td:first-child")[0] == "crop200"
    browser.find("#each th:nth-child(3) button").click()
    scores = [float(text) for text in browser.texts("#each tbody td:nth-child(3)")]
    assert scores == sorted(scores, reverse=True)
    assert [row.split("\t")[0] for row in browser.texts("#options tbody tr")] == ["scheme.crop_length", "seed"]
    proteins = protein_scores(find_runs([runs]).runs, tmp_path / "out")
    a, b = (np.array(proteins["scores"][arm]["mcc_sep6"]) for arm in ARMS)
    told = f"crop200 wins {(a > b).sum()}, two<seg> wins {(b > a).sum()}, of {N} proteins"
    assert browser.find("#wins").text == told
    order = np.argsort(-(b - a), kind="stable")
    assert browser.texts("#pairs tbody td:first-child") == [f"p{k}" for k in order]
    browser.run("contactlm.source.selected.indices = [3]")  # a click on a point
    assert browser.wait(lambda: browser.texts("#pairs tr[aria-selected=true] td:first-child")) == ["p3"]
    browser.check_silence()
    browser.find("#pairs tr[aria-selected=true] a").click()
    assert browser.wait(lambda: browser.run("return document.title")) == "map"
