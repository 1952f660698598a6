"""Maps as pages, opened in a browser as a person would."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactMap
from contactlm.maps.page import STEPS, pack_labels, pack_probability
from contactlm.metrics.scores import score_protein, select_pairs
from contactlm.types import DataError, chain_numbers
from tests.browser import Browser
from tests.conftest import random_sequence, write_pdb
from tests.maps.made import map_of

PLACE = """
const figure = contactlm.figures[0], view = Bokeh.index.get_one(figure), box = view.el.getBoundingClientRect();
const plot = document.getElementById('plot').getBoundingClientRect(), { x_scale, y_scale } = view.frame;
return [box.left - plot.left + x_scale.compute(arguments[0]), box.top - plot.top + y_scale.compute(arguments[1])];
"""
CHOOSE = "const l = document.getElementById('lower'); l.value = arguments[0]; l.dispatchEvent(new Event('change'))"
EVIL = "<img src=x onerror=\"document.title='hurt'\"></script><script>document.title='hurt'</script>'\\/\u2028"


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> ContactMap:
    """A complex of two chains."""
    path = tmp_path_factory.mktemp("pdb") / "two.pdb"
    return map_of(write_pdb(path, {"A": random_sequence(1, 70), "B": random_sequence(2, 40)}), joined=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_byte_tells_exactly_which_thresholds_a_probability_is_above(seed: int) -> None:
    import base64
    import zlib

    rng = np.random.default_rng(seed)
    on_steps = (rng.integers(0, STEPS + 1, (60, 60)) / STEPS).astype(np.float32)  # where rounding would go wrong
    p = np.triu(np.where(rng.random((60, 60)) < 0.5, on_steps, rng.random((60, 60), dtype=np.float32)), 1)
    p += p.T
    q = np.frombuffer(zlib.decompress(base64.b64decode(pack_probability(p))), np.uint8)
    upper = torch.from_numpy(p[np.triu_indices(60, 1)])
    for k in range(STEPS):
        assert ((upper > k / STEPS).numpy() == (q > k)).all()


def test_a_page_is_one_file_that_asks_for_nothing(tmp_path: Path, predicted: ContactMap) -> None:
    text = predicted.save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert re.findall(r"""(?:src|href)=["']?(?!data:)\w+""", text.split('id="data"')[0]) == []
    assert not re.search(
        r"https?://", re.sub(r'<script type="(text/plain|application/json)".*?</script>', "", text, flags=re.S)
    )


def test_maps_of_other_sequences_are_not_put_side_by_side(tmp_path: Path, predicted: ContactMap) -> None:
    other = ContactMap("other", "MKV", np.zeros((3, 3)))
    with pytest.raises(DataError, match="beside: other is another sequence"):
        predicted.save(tmp_path / "a.html", beside=other)
    with pytest.raises(ValueError, match=r"only pages \(.html\) show two maps"):
        predicted.save(tmp_path / "a.png", beside=predicted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.browser
def test_scores_follow_the_threshold_and_the_ranges(tmp_path: Path, predicted: ContactMap, browser: Browser) -> None:
    browser.open(predicted.save(tmp_path / "a.html"))
    chain = torch.from_numpy(chain_numbers(predicted.chain_lengths))
    maps = torch.from_numpy(predicted.probability), torch.from_numpy(predicted.labels)
    move = "const t = document.getElementById('threshold'); t.value = arguments[0]; t.dispatchEvent(new Event('input'))"
    for step in (0, 60, 125, 201):
        browser.run(move, step)
        row = browser.texts("#scores tbody td")
        expected = score_protein(*maps, step / STEPS, chain)
        assert float(row[5]) == pytest.approx(expected["mcc_sep6"], abs=6e-4)
        pairs = select_pairs(*maps, chain).within(6)
        called = pairs.probability > step / STEPS
        right = int((called & pairs.contact).sum())
        assert int(row[2]) == right
        assert float(row[3]) == pytest.approx(right / int(called.sum()), abs=6e-4)
        assert float(row[4]) == pytest.approx(right / int(pairs.contact.sum()), abs=6e-4)
        assert browser.find("#at").text == f"{step / STEPS:.3f}"
    browser.run(move, 125)
    for box in (1, 2, 4):  # short, medium, between chains
        browser.find(f"#range{box}").click()
    far = select_pairs(*maps, chain).within(24, 10_000)
    right, wrong = (int(((far.probability > 0.5) & (far.contact == truth)).sum()) for truth in (True, False))
    assert [int(text) for text in browser.texts("#scores tbody td")[1:3]] == [right + wrong, right]
    listed = browser.texts("#pairs tbody tr")
    assert 0 < len(listed) < len(predicted)
    browser.check_silence()


@pytest.mark.slow
@pytest.mark.browser
def test_distances_are_a_choice_that_the_page_does_not_begin_with(
    tmp_path: Path, predicted: ContactMap, browser: Browser
) -> None:
    L = len(predicted)
    far = np.abs(np.subtract.outer(np.arange(L), np.arange(L))).astype(np.float32)
    browser.open(replace(predicted, distance=far).save(tmp_path / "a.html"))
    read = "const s = document.getElementById('lower'); return [s.value, [...s.options].map((o) => o.value)]"
    chosen, options = browser.run(read)
    assert "distance" in options and chosen == next(option for option in options if option != "distance")
    browser.check_silence()


@pytest.mark.slow
@pytest.mark.browser
def test_hover_tells_of_the_pair_and_click_picks_it_in_the_list(
    tmp_path: Path, predicted: ContactMap, browser: Browser
) -> None:
    from selenium.webdriver import Keys

    browser.open(predicted.save(tmp_path / "a.html"))
    i, j, p = predicted.top(1)[0]
    ask = "return ['pair', 'probability', 'where'].map((what) => contactlm.tell(what, arguments[0], arguments[1]))"
    told = browser.run(ask, j + 1, i + 1)
    residues = predicted.residues
    names = [f"{predicted.sequence[k]}{residues.numbers[k]}:{residues.chains[k]}" for k in (i, j)]
    assert told[0] == " – ".join(names)
    assert float(told[1].removeprefix("p ")) == pytest.approx(p, abs=0.0021)
    distance = np.linalg.norm(predicted.residues.cb[i] - predicted.residues.cb[j])
    assert f"{distance:.1f} Å" in told[2] and told[2].endswith(("contact", "no contact"))
    # the mouse itself: over the cell a tooltip comes up; a click selects its row
    mouse = browser.hover("#plot", *browser.run(PLACE, j + 1, i + 1))
    assert names[0] in browser.wait(browser.tooltips)
    mouse.click().pause(0.2).perform()
    assert browser.wait(lambda: browser.texts("#pairs tr[aria-selected=true]"))[0].split()[0] == "1"
    # by the keyboard: zoom in, then a row picks its pair and brings it into view
    before = browser.run("return contactlm.view()")
    browser.find("#plot").send_keys("++++")
    browser.wait(lambda: browser.run("return contactlm.view()") != before)
    row = browser.find("#pairs tbody tr:nth-child(3)")
    row.send_keys(Keys.ENTER)
    third = predicted.top(3)[2]
    view = browser.run("return contactlm.view()")
    assert view["x"][0] <= third.j < view["x"][1] and view["y"][0] <= third.i < view["y"][1]
    assert browser.texts("#pairs tr[aria-selected=true]")[0].split()[0] == "3"
    browser.check_silence()


@pytest.mark.slow
@pytest.mark.browser
def test_the_list_sorts_searches_and_downloads(tmp_path: Path, predicted: ContactMap, browser: Browser) -> None:
    browser.open(predicted.save(tmp_path / "a.html"))
    first_column = "#pairs tbody tr td:nth-child(1)"
    browser.find("#pairs th:nth-child(4) button").click()  # |i − j|, the greatest first
    apart = [int(text) for text in browser.texts("#pairs tbody tr td:nth-child(4)") if text]
    assert apart == sorted(apart, reverse=True) and len(apart) > 20
    assert browser.find("#pairs th:nth-child(4)").get_attribute("aria-sort") == "descending"
    browser.find("#search").send_keys(":A :B")
    found = browser.texts("#pairs tbody tr")
    between = [pair for pair in predicted.top() if pair.i < 70 <= pair.j]
    assert len(found) == len(between) > 0
    assert all(int(rank) <= len(predicted) for rank in browser.texts(first_column))
    browser.find("#csv").click()
    file = browser.downloads / "two.csv"
    browser.wait(file.is_file)
    rows = list(csv.DictReader(io.StringIO(browser.wait(lambda: file.read_text()))))
    assert [(int(row["i"]) - 1, int(row["j"]) - 1) for row in rows] == [pair[:2] for pair in predicted.top()]
    assert rows[0]["number_i"] == predicted.residues.numbers[int(rows[0]["i"]) - 1]
    browser.check_silence()


@pytest.mark.slow
@pytest.mark.browser
def test_two_models_stand_side_by_side_with_their_difference(
    tmp_path: Path, predicted: ContactMap, browser: Browser
) -> None:
    other = replace(predicted, probability=predicted.probability**2, how={**predicted.how, "model": "another"})
    browser.open(predicted.save(tmp_path / "a.html", beside=other))
    assert browser.texts("#scores tbody td:first-child") == [f"A: {predicted.how['model']}", "B: another"]
    options = browser.run("return [...document.getElementById('lower').options].map(o => o.value)")
    assert options == ["difference", "other", "verdict", "truth", "same"]
    painted = "return Array.from(Bokeh.documents[0].get_model_by_name('cells' + arguments[0]).data.image[0])"
    images = {}
    for way in options:
        browser.run(CHOOSE, way)
        browser.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        images[way] = [np.array(browser.run(painted, which)).reshape(110, 110) for which in (0, 1)]
    lower = np.tril_indices(110, -1)
    assert (images["same"][0] == images["same"][0].T).all()
    assert (images["other"][0][lower] == images["same"][1][lower]).all()
    assert (images["difference"][0][lower] == images["difference"][1][lower]).all()
    shown = np.abs(lower[0] - lower[1]) > 5  # nearer ones are turned off, but for those between the chains
    truth, labels = images["truth"][0][lower][shown], predicted.labels[lower][shown]
    colours = [set(truth[labels == label].tolist()) for label in (0, 1)]
    assert [len(each) for each in colours] == [1, 1] and colours[0] != colours[1]
    zoom = "contactlm.figures[0].x_range.setv({start: 20, end: 40}); return contactlm.figures[1].x_range.end"
    assert browser.run(zoom) == 40
    browser.check_silence()


@pytest.mark.slow
@pytest.mark.browser
def test_names_do_no_harm_and_both_themes_are_drawn(tmp_path: Path, predicted: ContactMap, browser: Browser) -> None:
    residues = replace(predicted.residues, file=f"/x/{EVIL}.pdb", chains=["<b>A"] * len(predicted))
    evil = replace(predicted, id=EVIL, how={**predicted.how, "model": EVIL}, residues=residues)
    browser.open(evil.save(tmp_path / "a.html"))
    assert browser.find("h1").text.startswith("<img src=x onerror=")
    assert "hurt" not in browser.run("return document.title").replace(EVIL.split("\u2028")[0], "")
    assert browser.run("return document.querySelectorAll('img, b').length") == 0
    look = "return [getComputedStyle(document.body).backgroundColor, contactlm.figures[0].above[0].axis_line_color]"
    before = browser.run(look)
    browser.find("#theme").click()
    after = browser.run(look)
    assert before[0] != after[0] and before[1] != after[1]
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    browser.open(tmp_path / "a.html")  # as the system wishes
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    assert (
        browser.run("dispatchEvent(new Event('beforeprint')); return document.documentElement.dataset.theme") == "light"
    )
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.check_silence()


@pytest.mark.slow
@pytest.mark.browser
def test_long_maps_are_small_enough_and_soon_there(tmp_path: Path, browser: Browser) -> None:
    rng = np.random.default_rng(0)
    p = rng.random((1000, 1000), dtype=np.float32) ** 8  # noise, which compresses worse than any model's map
    p = np.minimum(p, p.T)
    path = ContactMap("long", random_sequence(0, 1000), p, (p > 0.4).astype(np.int8)).save(tmp_path / "a.html")
    assert path.stat().st_size < 8e6
    browser.open(path)
    assert browser.busy() < 2.0  # seconds of a processor: what it takes where nothing else runs
    browser.check_silence()


def test_data_of_a_page_is_read_back(tmp_path: Path, predicted: ContactMap) -> None:
    text = predicted.save(tmp_path / "a.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["numbers"] == predicted.residues.numbers and data["chainLengths"] == [70, 40]
    assert data["maps"] == [pack_probability(predicted.probability)] and data["truth"] == pack_labels(predicted.labels)
    assert [row[:2] for row in data["pairs"]] == [list(pair[:2]) for pair in predicted.top()]
