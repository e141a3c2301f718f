import json
import re
from html.parser import HTMLParser

import pytest

from distillery.evaluation import report
from distillery.evaluation.lineage import Origins
from distillery.evaluation.report import render_report
from schemas.comparison import Comparison
from tests.fixtures_comparison import comparison, measurement, measurements
from tests.fixtures_report import HOSTILE, ORIGINS, differing_row, rich_comparison

HOSTILE_ROW = differing_row(
    0,
    prompt=HOSTILE,
    references=(HOSTILE,),
    responses={"teacher": HOSTILE, "student": None},
    slices=(HOSTILE,),
)


def render(found: Comparison, origins: Origins = ORIGINS) -> str:
    return render_report(found, origins, [HOSTILE_ROW], num_differing=7)


class _Page(HTMLParser):
    """Collects tags, links and headings, and what stands in each element of script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        if self._inside == "h2":
            self.headings.append(data)


def parsed(page: str) -> _Page:
    found = _Page()
    found.feed(page)
    return found


def test_page_is_self_contained() -> None:
    page = render(rich_comparison())
    found = parsed(page)
    assert not {"link", "img", "iframe"} & set(found.tags)
    assert not [link for link in found.links if not link.startswith("#")]
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_text_of_models_and_files_is_escaped() -> None:
    page = render(rich_comparison())
    found = parsed(page)
    assert HOSTILE not in page and "\u2028" not in page
    assert len(found.scripts) == 3  # rows, colours, code: no text has ended one early
    [[prompt_id, prompt, references, answers, lead, slices]] = json.loads(found.scripts[0])
    assert (prompt, references, slices) == (HOSTILE, [HOSTILE], [HOSTILE])
    assert answers == [["teacher", HOSTILE, 1.0], ["student", None, 0.0]]
    assert (prompt_id, lead) == ("test-000", -1.0)


def test_verdict_comes_first_and_everything_has_its_section() -> None:
    page = render(rich_comparison())
    assert page.index('class="verdict"') < page.index("<h2")
    assert parsed(page).headings == [
        "Comparison on 20 held-out rows",
        "Quality against time and cost",
        "From the files to the student",
        "Training",
        "Slices",
        "Labels",
        "What the judge says",
        "Cost and break-even",
        "Wins and losses",
        "Further figures",
        "How it was measured",
        "Lineage",
        "Details",
    ]
    assert "7 of 20 rows; here are 1 of them" in page
    assert "found in test" in page and "3,850" in page and "after 26,800 requests" in page
    assert "Nobody has checked this judge" in page
    assert "e" * 64 in page and "Zilog Z80" in page


def test_no_heading_is_without_content() -> None:
    blind = measurement(1, 1, None)
    found = comparison(measured=measurements(teacher=blind, baseline=blind, student=blind))
    page = render_report(found, Origins(), [], num_differing=0)
    assert parsed(page).headings == [
        "Comparison on 20 held-out rows",
        "Labels",
        "Wins and losses",
        "Further figures",
        "How it was measured",
        "Lineage",
        "Details",
    ]
    assert "they score alike on every row" in page
    assert "<svg" not in page and 'class="funnel"' not in page


def test_losses_stand_first_and_rows_without_room_are_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [differing_row(number) for number in range(4)]
    whole = parsed(render_report(comparison(), ORIGINS, rows, num_differing=4)).scripts[0]
    monkeypatch.setattr(report, "_MOST_BYTES", len(whole) - 10)
    page = render_report(comparison(), ORIGINS, rows, num_differing=4)
    assert "here are 3 of them" in page
    shown = json.loads(parsed(page).scripts[0])
    assert [prompt_id for prompt_id, *_ in shown] == ["test-000", "test-002", "test-001"]


def test_slices_stand_worst_first_and_regressions_are_marked() -> None:
    page = render(rich_comparison())
    assert page.index("label=maybe &lt;b&gt;") < page.index("label=yes")
    assert page.count('<tr class="marked">') == 1


def test_of_many_slices_the_worst_are_open_and_the_others_a_click_away() -> None:
    found = rich_comparison()
    fine, worse = found.slices
    many = tuple(fine.model_copy(update={"value": f"part {number:02d}"}) for number in range(30))
    page = render(found.model_copy(update={"slices": (*many, worse)}))
    shown, hidden = page[page.index('id="slices"') : page.index('id="labels"')].split("<details>")
    assert shown.count("label=") == 20 and "label=maybe" in shown
    assert "11 more" in hidden and hidden.count("label=") == 11


def test_every_contestant_has_its_interval_drawn() -> None:
    page = render(rich_comparison())
    first = page[page.index('id="comparison"') : page.index("Relative to the teacher")]
    assert first.count('class="ends"') == 4


@pytest.mark.parametrize("scheme", ["prefers-color-scheme: dark", "max-width: 40rem"])
def test_page_adapts_to(scheme: str) -> None:
    assert scheme in render(comparison())
