"""``report.html``, in its numbers and in a browser."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from contactlm.cli.report import write_report
from contactlm.report.compare import group_equal
from contactlm.report.figure import draw_score
from contactlm.report.page import differing_options, write_page
from contactlm.report.read import find_runs
from contactlm.report.summary import group_names
from tests.browser import Browser
from tests.report.made_runs import add_proteins, equal_terms, make_run

ARMS = {"crop200": 0.4, "two<seg>": 0.3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds, with scores of proteins."""
    folder = tmp_path_factory.mktemp("runs")
    for number, (arm, score) in enumerate(ARMS.items()):
        for seed in range(2):
            scheme = {"crop": "random", "crop_length": 200 + number}
            run = make_run(folder / f"arm{number}" / f"version_{seed}", arm, seed, score, scheme=scheme)
            add_proteins(run, 2 * number + seed, knows_hits=False)
    return folder


def tables(path: Path) -> dict[str, dict]:
    """The tables of a page."""
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert data is not None
    return {table["place"]: table for table in json.loads(data[1])["tables"]}


def test_scores_of_proteins_are_means_over_seeds(runs: Path, tmp_path: Path) -> None:
    found = find_runs([runs]).runs
    write_page(found, [], [], tmp_path / "report.html")
    table = tables(tmp_path / "report.html")["proteins"]
    names = [f"{arm} {score}" for score in ("mcc_sep6", "p_at_L_long") for arm in ARMS]
    assert [column["title"] for column in table["columns"]] == ["protein", *names]
    for k, arm in enumerate(ARMS):
        own = [run.proteins() for run in found if run.arm == arm]
        expected = np.mean([[row["mcc_sep6"] for row in each.values()] for each in own], axis=0)
        np.testing.assert_allclose([row[1 + k] for row in table["rows"]], expected)
    assert table["rows"][3][3:] == [None, None]  # it has no long pairs
    assert [row[0] for row in table["rows"]] == [name for name, _ in own[0]]


DAMAGES = (b"\xff\xfe\x00", b"id,mcc\na,0\n", b"id,index,mcc\na,0,x\n", b"id,index\na,0,1\n", b"id,index,mcc\na,0\n")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_scores_of_proteins_are_left_out(tmp_path: Path, damage: bytes) -> None:
    for arm in ARMS:
        (make_run(tmp_path / arm[:3], arm, 0, 0.3) / "test_scores.csv").write_bytes(damage)
    write_page(find_runs([tmp_path]).runs, [], [], tmp_path / "report.html")
    assert "proteins" not in tables(tmp_path / "report.html")


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


@pytest.mark.slow
def test_groups_that_must_not_be_mixed_have_pages_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", "a", 0, 0.4)
    make_run(tmp_path / "runs" / "b", "b", 0, 0.4, equal=equal_terms(budget=7))
    write_report([tmp_path / "runs"], tmp_path / "out")
    overview = (tmp_path / "out" / "report.html").read_text()
    assert 'href="set1/report.html"' in overview and 'href="set2/report.html"' in overview
    assert (tmp_path / "out" / "set2" / "report.html").is_file()


def test_the_page_says_what_the_text_says(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contactlm.cli.report.draw_score", lambda *_: Figure())
    printed = write_report([runs], tmp_path / "out")
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    body = html.unescape(re.sub(r"<script.*?</script>", "", page, flags=re.S))
    for line in printed[:-1]:
        assert line in body and line in text.replace("\\|", "|")
    assert any(line.startswith("ahead of crop200") for line in printed)
    cells = tables(tmp_path / "out" / "report.html")["paired0"]["rows"][0]
    assert cells[0]["text"] == "two<seg>" and "(se " in cells[3]["text"] and cells[3]["text"] in text
    arms = tables(tmp_path / "out" / "report.html")["arms"]
    assert [row[0]["text"] for row in arms["rows"]][:2] == list(ARMS) and "±" in arms["rows"][0][2]["text"]


def test_groups_are_named_by_what_they_share_without_long_checksums(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "a", 0, 0.4, equal=equal_terms(backbone="0123456789abcdef" * 4))
    make_run(tmp_path / "b", "a", 0, 0.4, equal=equal_terms(backbone="fedcba9876543210" * 4))
    groups = group_equal(find_runs([tmp_path]).runs)
    assert sorted(group_names(groups)) == ["backbone 01234567", "backbone fedcba98"]


def test_no_axis_makes_little_of_much(tmp_path: Path) -> None:
    for arm, tokens in (("a", 150_100), ("b", 150_450)):
        make_run(tmp_path / arm, arm, 0, 0.8, dev_history=[], tokens=tokens, progress=[{"steps": 9, "flops": 1.5e14}])
    for ax in draw_score(find_runs([tmp_path]).runs, "mcc_sep6").axes:
        for low, high in (ax.get_xlim(), ax.get_ylim()):
            assert high - low >= 0.1 * max(abs(low), abs(high))


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_shows_figures_and_tables_that_sort(runs: Path, tmp_path: Path, browser: Browser) -> None:
    write_report([runs], tmp_path / "out")
    browser.open(tmp_path / "out" / "report.html")
    assert browser.run("return [...document.images].map((image) => image.naturalWidth > 600)") == [True] * 3
    assert browser.texts("#arms tbody td:first-child")[0] == "crop200"
    assert browser.find(".outcome").text.startswith("Test MCC at |i − j| ≥ 6 (mcc_sep6)")
    assert not any(browser.texts("#each tbody tr"))  # folded
    browser.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    browser.find("#each th:nth-child(3) button").click()
    scores = [float(text) for text in browser.texts("#each tbody td:nth-child(3)")]
    assert scores == sorted(scores, reverse=True)
    assert [row.split("\t")[0] for row in browser.texts("#options tbody tr")] == ["scheme.crop_length", "seed"]
    assert browser.texts("#proteins th")[:3] == ["protein", *(f"{arm} mcc_sep6" for arm in ARMS)]
    browser.find("#proteins th:nth-child(2) button").click()
    scores = [float(text) for text in browser.texts("#proteins tbody td:nth-child(2)")]
    assert scores == sorted(scores, reverse=True)
    browser.check_silence()
