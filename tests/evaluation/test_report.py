import re
from html.parser import HTMLParser
from itertools import combinations

import pytest

from distillery.evaluation.report import quality_against_latency, render_report
from schemas.comparison import Comparison, Disagreement
from tests.fixtures_comparison import SCORES, comparison, measurement, measurements

HOSTILE = "<img src=x onerror=alert(1)>"
EXAMPLE = Disagreement(
    prompt_id="test-001",
    prompt=HOSTILE,
    reference=HOSTILE,
    teacher_answer=HOSTILE,
    teacher_score=1.0,
    student_answer=None,
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
    assert "throughput (queries/h)" in page
    assert "7 of 20 rows; the first 1" in page
    assert "e" * 64 in page and "Zilog Z80" in page and "3,800" in page
    assert "nan" not in page.lower().replace("finance", "")


def test_picture_names_every_model_once() -> None:
    picture = quality_against_latency(comparison())
    assert picture is not None
    labels = re.findall(r">(teacher|baseline|student)</text>", picture)
    assert sorted(labels) == ["baseline", "student", "teacher"]


def test_picture_is_the_same_every_time() -> None:
    assert quality_against_latency(comparison()) == quality_against_latency(comparison())


def test_labels_of_models_alike_do_not_overlap() -> None:
    alike = {role: SCORES["student"] for role in SCORES}
    same = measurement(1, 1, 0.01)
    picture = quality_against_latency(
        comparison(alike, measured=measurements(teacher=same, baseline=same, student=same))
    )
    assert picture is not None
    found = re.findall(
        r'text-anchor: (\w+)[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>(?:teacher|baseline|student)<',
        picture,
    )
    assert len(found) == 3
    for (side1, x1, y1), (side2, x2, y2) in combinations(found, 2):
        beside = side1 != side2 and (float(x1) < float(x2)) == (side1 == "end")
        assert beside or abs(float(y1) - float(y2)) > 12


def test_without_latency_there_is_no_picture_but_a_page() -> None:
    blind = measurement(1, 1, None)
    found = comparison(measured=measurements(teacher=blind, baseline=blind, student=blind))
    assert quality_against_latency(found) is None
    assert "there is no picture" in render(found)


@pytest.mark.parametrize("scheme", ["prefers-color-scheme: dark", "max-width: 40rem"])
def test_page_adapts_to(scheme: str) -> None:
    assert scheme in render(comparison())
