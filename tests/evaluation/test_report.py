import re
from html.parser import HTMLParser

import pytest

from distillery.evaluation.picture import quality_against_latency
from distillery.evaluation.report import render_report
from schemas.comparison import Comparison, Disagreement
from tests.fixtures_comparison import comparison, measurement, measurements

HOSTILE = "<img src=x onerror=alert(1)>"
EXAMPLE = Disagreement(
    prompt_id="test-001",
    prompt=HOSTILE,
    references=(HOSTILE,),
    teacher_response=HOSTILE,
    teacher_score=1.0,
    student_response=None,
    student_score=0.0,
)


def render(found: Comparison) -> str:
    return render_report(found, [EXAMPLE], num_disagreements=7)


class _Tags(HTMLParser):
    """Collects tags and attributes, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_page_is_self_contained() -> None:
    parser = _Tags()
    page = render(comparison())
    parser.feed(page)
    assert not {"script", "link", "img", "iframe"} & set(parser.tags)
    assert not [link for link in parser.links if not link.startswith("#")]
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_text_of_models_and_files_is_escaped() -> None:
    page = render(comparison())
    assert HOSTILE not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") == 3


def test_page_shows_verdict_table_examples_and_fingerprints() -> None:
    page = render(comparison(funnel={"prompts": 4000, "kept": 3800}))
    assert "The student keeps 94.7 % of the teacher&#39;s accuracy" in page
    assert "queries/h" in page
    assert "7 of 20 rows; the first 1" in page
    assert "<h2>Recall by label</h2>" in page
    assert "e" * 64 in page and "Zilog Z80" in page and "3,800" in page
    assert "nan" not in page.lower().replace("finance", "")


def test_without_latency_there_is_no_picture_but_a_page() -> None:
    blind = measurement(1, 1, None)
    found = comparison(measured=measurements(teacher=blind, baseline=blind, student=blind))
    assert quality_against_latency(found) is None
    assert "there is no picture" in render(found)


@pytest.mark.parametrize("scheme", ["prefers-color-scheme: dark", "max-width: 40rem"])
def test_page_adapts_to(scheme: str) -> None:
    assert scheme in render(comparison())
