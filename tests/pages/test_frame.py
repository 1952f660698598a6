"""The frame of pages, and its tables in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contactlm.maps.contact_map import ContactMap
from contactlm.pages.frame import as_script, escape, write_frame
from contactlm.pages.library import library_script
from contactlm.types import MissingExtraError
from tests.browser import Browser
from tests.missing import hide_libraries

EVIL = "</script><img src=x onerror=\"document.title='hurt'\">'\"&\u2028/../"


def test_what_comes_from_data_ends_no_script_and_no_attribute() -> None:
    text = as_script({"name": EVIL, "x": ["<", "<!--"]})
    assert "<" not in text and json.loads(text) == {"name": EVIL, "x": ["<", "<!--"]}
    assert not set("<>\"'") & set(escape(EVIL))


def test_the_library_inside_a_page_is_small() -> None:
    assert len(library_script()) < 600_000


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    hide_libraries(monkeypatch, "bokeh")
    with pytest.raises(MissingExtraError, match=r'pip install "contactlm\[pages\]"'):
        ContactMap("a", "MKV", np.zeros((3, 3))).save(tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.browser
def test_tables_sort_by_value_search_and_show_text_as_text(tmp_path: Path, browser: Browser) -> None:
    columns = [{"title": "name", "text": True}, {"title": "n", "digits": 1}, {"title": "files", "sort": False}]
    rows = [
        ["p10", 2.0, ""],
        ["p9", None, ""],
        [EVIL, 10.0, {"value": "", "links": [{"text": "<b>", "href": "x.html"}]}],
    ]
    body = '<input data-searches="t"><span id="t-count"></span><div id="t"></div>'
    data = {"tables": [{"place": "t", "caption": "a", "columns": columns, "rows": rows}]}
    write_frame(tmp_path / "a.html", EVIL, body, data, ["tables"], library=False)
    browser.open(tmp_path / "a.html")
    column = "#t tbody td:nth-child({})"
    browser.find("#t th:nth-child(1) button").click()
    assert [text for text in browser.texts(column.format(1)) if text[0] == "p"] == ["p9", "p10"]  # as people count
    browser.find("#t th:nth-child(2) button").click()
    assert browser.texts(column.format(2)) == ["10.0", "2.0", ""]  # what is not known comes last, either way
    browser.find("#t th:nth-child(2) button").click()
    assert browser.texts(column.format(2)) == ["2.0", "10.0", ""]
    assert browser.run("return document.querySelectorAll('img, td b').length") == 0
    assert browser.run("return document.title").startswith("</script><img")
    browser.find("input").send_keys("P10")
    assert browser.texts(column.format(1)) == ["p10"] and browser.find("#t-count").text == "1 of 3"
    browser.check_silence()
