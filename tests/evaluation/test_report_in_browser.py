"""What a reader sees once the scripts have run, in headless Chromium."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from distillery.evaluation.report import render_report
from tests.fixtures_report import HOSTILE, ORIGINS, differing_row, rich_comparison

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="neither chromium nor google-chrome is installed"
)


class _Text(HTMLParser):
    """Collects what is visible, by the id of the element around it."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.text = ""
        self.rows: list[str] = []
        self.links: list[str] = []
        self._hidden = 0
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._hidden += tag in ("script", "style", "noscript")
        if given.get("class") == "row":
            self.rows.append("")
        if tag == "a":
            self.links.append(given["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "noscript")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data
            if self.rows:
                self.rows[-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hostile = differing_row(
        0, prompt=HOSTILE, references=("x" * 1000,), slices=("label=<i>odd</i>",)
    )
    rows = [hostile, *(differing_row(number) for number in range(1, 45))]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(rich_comparison(), ORIGINS, rows, num_differing=45), "utf-8")
    return path


def opened(page: Path, fragment: str = "") -> _Text:
    """Return the page as a browser shows it; anything that it complains of fails."""
    assert BROWSER is not None
    profile = page.parent / "profile"
    shown = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update"),
            f"--user-data-dir={profile}",
            *("--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"),
            page.as_uri() + fragment,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # Errors of scripts, and what the page's security policy has kept from being loaded.
    assert re.findall(r".*CONSOLE.*", shown.stderr) == []
    return _Text(shown.stdout)


def test_reader_sees_verdict_contents_and_the_worst_rows(page: Path) -> None:
    shown = opened(page)
    assert "The student keeps 94.7\u00a0% [" in shown.text
    assert shown.links[:2] == ["#comparison", "#trade-offs"] and "#wins-and-losses" in shown.links
    assert "1 to 20 of 45" in shown.text
    assert len(shown.rows) == 20 and all("student ✗" in row for row in shown.rows)
    hostile = shown.rows[0]
    assert hostile.startswith(HOSTILE) and "label=<i>odd</i>" in hostile
    assert "x" * 400 + "…" in hostile and "x" * 401 not in hostile and "show all" in hostile


def test_an_address_leads_to_what_somebody_has_found(page: Path) -> None:
    searched = opened(page, "#search=CASE+17")
    assert [row[:27] for row in searched.rows] == ["please help with case 17ref"]
    assert "1 to 1 of 1" in searched.text
    second = opened(page, "#outcome=better+than+teacher&slice=label%3Dyes&page=2")
    assert "21 to 22 of 22" in second.text and len(second.rows) == 2
    assert all("student ✓" in row for row in second.rows)


def test_where_nothing_is_found_the_page_says_so(page: Path) -> None:
    nothing = opened(page, "#search=there+is+no+such+text")
    assert nothing.rows == [] and "no such row" in nothing.text
