from rich.console import Console

from distillery.evaluation.markdown import markdown
from distillery.evaluation.tables import (
    difference_rows,
    further_tables,
    label_rows,
    main_rows,
    relative_rows,
    size_rows,
    slice_rows,
    speed_rows,
)
from distillery.evaluation.terminal import terminal_metrics, terminal_table
from schemas.units import MISSING
from tests.fixtures_comparison import SCORES, comparison


def test_main_table_has_the_models_as_rows_and_the_figures_with_units() -> None:
    rows = main_rows(comparison())
    assert [row["model"] for row in rows] == ["teacher", "baseline", "student"]
    assert rows[2] == {
        "model": "student",
        "accuracy": rows[2]["accuracy"],
        "time (p50)": "10.0 ms",
        "memory": "64.0 KiB",
        "queries/h": "360,000",
    }
    assert rows[2]["accuracy"].startswith("90.0 % [")


def test_further_tables_hold_what_the_main_one_has_no_room_for() -> None:
    found = comparison()
    assert speed_rows(found)[2]["tokens read"] == "17"
    assert speed_rows(found)[0]["tokens read"] == MISSING
    assert (speed_rows(found)[2]["p95"], speed_rows(found)[2]["tokens/s"]) == ("20.0 ms", "1,000")
    assert size_rows(found)[2]["parameters"] == "100 k"
    assert [row["model"] for row in relative_rows(found)] == ["baseline", "student"]
    assert relative_rows(found)[1]["time"] == "-90.0 %"
    assert {row["against"] for row in difference_rows(found)} == {
        "teacher",
        "baseline",
        "most frequent answer",
    }


def test_columns_and_tables_without_any_figure_are_left_out() -> None:
    found = comparison()
    assert "cost per 1,000" not in main_rows(found)[0] and "peak memory" not in size_rows(found)[0]
    assert slice_rows(found.slices) == []
    assert all(further_tables(found).values())


def test_no_table_is_wider_than_prefect_has_room_for() -> None:
    many = {**SCORES, "in-context student": SCORES["student"], "champion": SCORES["student"]}
    lines = [line for line in markdown(comparison(many)).splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 110


def test_markdown_tables_are_aligned() -> None:
    tables: list[list[int]] = [[]]
    for line in markdown(comparison()).splitlines():
        if line.startswith("|"):
            tables[-1].append(len(line))
        elif tables[-1]:
            tables.append([])
    assert len([widths for widths in tables if widths]) == 10
    assert all(len(set(widths)) <= 1 for widths in tables)


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
        main_rows(comparison()),
        main_rows(comparison({**SCORES, "anybody": SCORES["student"]})),
    )
    assert list(few[0]) == list(many[0])
    assert [row["model"] for row in many] == [*(row["model"] for row in few), "anybody"]
