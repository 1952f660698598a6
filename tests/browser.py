"""A headless Chromium for tests of pages: opens files, and tells of errors and of what asked for the network."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--force-device-scale-factor=1", "--window-size=1500,1000"),
)
LONGEST_WAIT = 60  # seconds
TOOLTIPS = """
const all = (node) => [...node.querySelectorAll('*')].flatMap((e) => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);
return all(document).filter((e) => e.classList.contains('bk-Tooltip')).map((e) => e.shadowRoot.textContent).join(' ');
"""


class Browser:
    """One browser session.

    Args:
        driver: Selenium's.
        downloads: The folder that downloaded files come to.
    """

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def open(self, path: Path) -> float:
        """Open a page, wait until it is drawn, and check that it is silent; the milliseconds that it took."""
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(path.absolute().as_uri())
        script = "return document.documentElement.dataset.ready || document.getElementById('trouble')?.textContent"
        ready = self.wait(lambda: self.run(script))
        assert ready.isdigit(), ready
        return float(ready)

    def busy(self) -> float:
        """Seconds of a processor that the page's main thread took since it was opened."""
        metrics = self.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def find(self, css: str) -> Any:
        """The first element of a CSS selector."""
        return self.driver.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        """The texts of visible elements."""
        code = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent).map(e => e.innerText)"
        return self.run(code, css)

    def wait(self, is_so: Any) -> Any:
        """Wait until something is true; its value."""
        deadline = time.monotonic() + LONGEST_WAIT
        while not (value := is_so()):
            assert time.monotonic() < deadline, "the page does not get there"
            time.sleep(0.05)
        return value

    def hover(self, css: str, x: float, y: float) -> Any:
        """Move the mouse to a place in an element, in pixels from its top left; the actions, to go on with."""
        from selenium.webdriver import ActionChains

        place = self.find(css)
        middle = place.size["width"] / 2, place.size["height"] / 2
        actions = ActionChains(self.driver).move_to_element_with_offset(
            place, round(x - middle[0]), round(y - middle[1])
        )
        actions.pause(0.3).perform()
        return ActionChains(self.driver)

    def tooltips(self) -> str:
        """What the tooltips of Bokeh's figures say."""
        return self.run(TOOLTIPS)

    def check_silence(self) -> None:
        """No error in the console, and no request but for files and data."""
        logged = [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert logged == []
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        of_the_page = [each["request"]["url"] for each in sent if each.get("documentURL", "").startswith("file:")]
        assert of_the_page  # the log works: the page itself is there
        assert [url[:80] for url in of_the_page if not url.startswith(("file:", "data:", "blob:"))] == []


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start a browser; skips the test where none is installed."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no browser to open pages in: Debian's chromium and chromium-driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium, which drives a browser, is not installed")
    service = pytest.importorskip("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=service.Service(chromedriver))
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    driver.set_script_timeout(LONGEST_WAIT)
    try:
        yield Browser(driver, folder / "downloads")
    finally:
        driver.quit()
