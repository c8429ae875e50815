"""The page of pairs in a real browser: keys choose, choices survive a reload, the export is what the command reads."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.judging.facts import Facts, Poi
from models.judging.lists import Pair
from models.judging.page import read_choices, render_page
from models.judging.verdicts import unblind

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (DRIVER and BROWSER), reason="needs Chromium and its driver (Debian: chromium, chromium-driver)"
    ),
]
LEFT, UP, RIGHT, DOWN = "\ue012", "\ue013", "\ue014", "\ue015"
"""Keys as WebDriver names them."""
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
             "--disable-component-update", "--disable-sync", "--window-size=1100,800")  # fmt: skip
PAIRS = [Pair(f"r{n}", "u", (f"a{n}", "b"), ("b", f"a{n}")) for n in range(3)]


class Browser:
    """One session of WebDriver, as far as the test needs it."""

    def __init__(self, port: int, downloads: Path, profile: Path) -> None:
        self.base = f"http://127.0.0.1:{port}/session"
        options = {
            "binary": BROWSER, "args": [*ARGUMENTS, f"--user-data-dir={profile}"],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }  # fmt: skip
        made = self.post("", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self.base += f"/{made['sessionId']}"
        time.sleep(
            2
        )  # Chromium forgets what is stored in the first second of a new profile (1 of 6 runs under load)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.base + path, timeout=60) as answer:
            return json.load(answer)["value"]

    def post(self, path: str, content: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.base + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def ask(self, script: str) -> Any:
        return self.post("/execute/sync", {"script": f"return {script}", "args": []})

    def wait_for(self, script: str, value: Any, seconds: float = 30) -> None:
        """Asks until the answer is the value: a new document hears of stored choices a moment after it is shown."""
        end = time.monotonic() + seconds
        while (answer := self.ask(script)) != value and time.monotonic() < end:
            time.sleep(0.05)
        assert answer == value, script

    def close(self) -> None:
        request = urllib.request.Request(self.base, method="DELETE")
        urllib.request.urlopen(request, timeout=60).close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    assert DRIVER
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        port = next(
            found for line in process.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        opened = Browser(int(port.group(1)), tmp_path, tmp_path / "profile")
        yield opened
        opened.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


def facts_of(pair: Pair) -> Facts:
    def show(pois: tuple[str, ...]) -> tuple[Poi, ...]:
        return tuple(
            Poi(f"POI {poi} <b>&", "Food > Cafe", 4.9 + 0.01 * n, 52.4, 1.5) for n, poi in enumerate(pois)
        )

    left, right = pair.sides(1)
    return Facts(pair.request_id, "Friday 19:00", 4.9, 52.41, show(("z",)), show(left), show(right))


def test_keys_choose_choices_stay_and_the_export_is_counted(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render_page([facts_of(pair) for pair in PAIRS], PAIRS, seed=1, title="Two lists"))
    browser.post("/url", {"url": page.as_uri()})
    assert browser.ask("document.querySelectorAll('#left li').length") == 2
    assert browser.ask("document.querySelector('#left li').firstChild.textContent").endswith("<b>& ")
    assert browser.ask("document.querySelectorAll('#left svg circle').length") == 2

    browser.press(LEFT, RIGHT)
    assert browser.ask("element('count').textContent") == "2 of 3 judged"
    browser.press(UP, DOWN)  # the second pair once more: even
    browser.post("/refresh", {})
    browser.wait_for("element('count').textContent", "2 of 3 judged")
    assert browser.ask("element('end').hidden") is True
    browser.press(RIGHT)

    expected = {"r0": "left", "r1": "even", "r2": "right"}
    assert browser.ask("choices") == expected
    verdicts = unblind(expected, PAIRS, 1, source="test")
    share = 100 * sum(verdict == "win" for verdict in verdicts.values()) / 3
    assert f"wins {share:.1f} %, is even in 33.3 %" in browser.ask("element('result').textContent")
    browser.ask("element('export').click()")
    end = time.monotonic() + 30
    while not (tmp_path / "choices.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert read_choices(tmp_path / "choices.json") == expected


def test_a_second_tab_takes_no_choice_away(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(render_page([facts_of(pair) for pair in PAIRS], PAIRS, seed=1, title="Two lists"))
    browser.post("/url", {"url": page.as_uri()})
    first = browser.get("/window")
    second = browser.post("/window/new", {"type": "tab"})["handle"]
    browser.post("/window", {"handle": second})
    browser.post("/url", {"url": page.as_uri()})
    browser.press(LEFT)
    browser.wait_for("element('count').textContent", "1 of 3 judged")
    browser.post("/window", {"handle": first})
    browser.wait_for("element('count').textContent", "1 of 3 judged")
    browser.press(RIGHT, DOWN)
    browser.post("/window", {"handle": second})
    browser.wait_for("choices", {"r0": "left", "r1": "right", "r2": "even"})
