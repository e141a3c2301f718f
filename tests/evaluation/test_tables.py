from rich.console import Console

from distillery.evaluation.tables import (
    label_rows,
    markdown,
    table_rows,
    terminal_metrics,
    terminal_table,
)
from schemas.units import MISSING
from tests.fixtures_comparison import SCORES, comparison


def test_table_has_the_models_as_rows_and_the_figures_with_units() -> None:
    rows = table_rows(comparison())
    assert [row["model"] for row in rows] == ["teacher", "baseline", "student"]
    student = rows[2]
    assert student["parameters"] == "100 k"
    assert student["memory usage"] == "64.0 KiB"
    assert student["inference time (p50)"] == "10.0 ms"
    assert student["inference time (p95)"] == "20.0 ms"
    assert student["accuracy"].startswith("90.0 % [")
    assert student["throughput (queries/h)"] == "360,000"
    assert student["tokens/s"] == "1,000"
    assert student["prompt tokens"] == "17"
    assert rows[0]["prompt tokens"] == MISSING
    assert student["inference time vs teacher"] == "-90.0 %"
    assert all(type(cell) is str for row in rows for cell in row.values())


def test_markdown_table_is_aligned() -> None:
    lines = [line for line in markdown(comparison()).splitlines() if line.startswith("|")]
    assert len(lines) == 27
    for table in (lines[:5], lines[5:10], lines[10:15], lines[15:19], lines[19:24], lines[24:]):
        assert len({len(line) for line in table}) == 1


def test_terminal_table_fits_100_columns_without_wrapping() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(terminal_table(comparison()))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.strip().startswith(("teacher", "baseline", "student")) for line in lines) == 3
    assert len([line for line in lines if line.strip()]) == 7  # the last heading has two


def test_terminal_shows_every_metric_and_its_fidelity() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(terminal_metrics(comparison()))
    lines = [line.split() for line in capture.get().splitlines() if line.strip(" \u2500")]
    assert lines[0] == ["model", "accuracy", "macro", "F1"]
    assert [line[0] for line in lines[1:]] == [
        "teacher",
        "baseline",
        "fidelity",
        "student",
        "fidelity",
    ]
    assert lines[4][1:3] == ["90.0", "%"]


def test_terminal_table_has_room_for_the_untrained_student() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    everybody = {**SCORES, "in-context student": SCORES["student"], "champion": SCORES["student"]}
    with console.file:
        console.print(terminal_table(comparison(everybody)))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    assert any("in-context" in line and line.endswith(" 1,204") for line in map(str.rstrip, lines))


def test_of_many_labels_those_are_shown_that_the_student_knows_least() -> None:
    # One row for each label, of which the student misses the last two.
    references = [f"label|{number:02d}" for number in range(22)]
    student = [1.0] * 20 + [0.0] * 2
    found = comparison({name: student for name in SCORES}, references=references)
    rows = label_rows(found)
    assert len(rows) == 20
    assert [row["label"] for row in rows][-2:] == ["label|20", "label|21"]
    assert rows[-1]["student"] == "0.0 %"
    assert "## Recall by label, the student's lowest 20 of 22\n" in markdown(found)
    assert "| label\\|21 | 1    |" in markdown(found)


def test_another_contestant_adds_a_row_and_no_column() -> None:
    few, many = (
        table_rows(comparison()),
        table_rows(comparison({**SCORES, "anybody": SCORES["student"]})),
    )
    assert list(few[0]) == list(many[0])
    assert [row["model"] for row in many] == [*(row["model"] for row in few), "anybody"]
