"""A worked solution is right when its value is, however it is written."""

import threading

import pytest

from distillery.task_types import Answer, task_type
from distillery.task_types.math import final_value
from schemas.filters import DropReason
from schemas.task import TaskKind, TaskSpec
from tests.fixtures_shared_data import shared_rows

MATH = task_type(TaskSpec(name="t", type=TaskKind.MATH))


def _accuracy(response: str | None, reference: str, truncated: bool = False) -> float | None:
    scores = MATH.score(response, [reference], truncated=truncated)
    assert list(scores) == ["accuracy"]
    return scores["accuracy"]


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("18 dollars", "18"),
        ("$18.00", "18"),
        ("\\$18", "18"),
        ("18.", "18"),
        ("USD 18", "$18"),
        ("**18**", "18"),
        ("eighteen? No: 9 + 9 = 18.", "9 + 9 = <<9+9=18>>18\n#### 18"),
        ("#### 18\n(step 3)", "18"),
        ("#### 1. Adding\n9 + 9 = 18\n#### 2. Done", "18 dollars"),
        ("#### The answer is 18", "18"),
        ("The answer is 18 dollars for 3 days.", "18"),
        ("The final answer is: $18$. I checked 3 times.", "18"),
        ("**Final answer:** 18 (in 2 steps)", "18"),
        ("Answer:\n\n18", "18"),
        ("The answer is 18!", "18"),
        ("The answer to question 7 is 18.", "18"),
        ("The answer is 2 * 9 = 18 dollars.", "18"),
        ("The answer is not 20. 2 * 9 makes 18.", "18"),
        (r"So \boxed{18}, after 3 steps; see 4.", "18"),
        (r"\boxed{17}? No, \boxed{18}.", "18"),
        (r"\boxed{18\text{ dollars}}", "18"),
        (r"\boxed{x = 18}", "18"),
        (r"$$\boxed{\$18.00}$$", "18"),
        (r"\[ 2 \cdot 9 = 18 \]", "18"),
        ("<think>maybe 20 or 21</think>2 * 9 = 18", "18"),
        ("1,234", "1234"),
        ("1 234", "1,234.00"),
        ("1\u202f234", "1234"),
        ("1'234", "1234"),
        ("1.234,5", "1234.5"),
        (r"1{,}234", "1234"),
        (r"1\,234", "1234"),
        ("12,34,567", "1234567"),
        ("0,5", "0.5"),
        (".5", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac12", "0.5"),
        ("$\\frac{2}{4}$", "1/2"),
        ("2 1/2", "2.5"),
        (r"2\frac{1}{2}", "5/2"),
        ("2\u00bd cups", "2.5"),
        ("50%", "50"),
        (r"50\%", "50 percent"),
        ("\u22127", "-7"),
        ("-$7", "-7"),
        ("x = -7", "-7"),
        ("1e3", "1000"),
        (r"3 \times 10^{5}", "300,000"),
        ("2^{10}", "1024"),
        ("25 m^2", "25"),
        (r"25\text{ m}^2", "25 m\u00b2"),
        (r"90^\circ", "90"),
        ("3 : 4", "3:4"),
        ("5 km", "5"),
        ("5 km", "5 kilometers"),
        ("1.5 million", "1,500,000"),
        (r"\boxed{2\sqrt{3}\text{ cm}}", r"2\sqrt{3}"),
        ("The answer is:\n\n$$\nx = 2\\sqrt{3}\n$$", r"2\sqrt{3}"),
        (r"x = \pm 2", "2, -2"),
        (r"x = 2 \text{ or } x = 3", "x=3, x=2"),
        (r"x \in [0, 1)", "[0,1)"),
        (r"4\pi\text{ cm}^2", r"4\pi"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("2\u221a3", r"$2\sqrt{3}$"),
        (r"The side is $x = 2\sqrt{3}$ cm.", r"2\sqrt{3}"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        (r"\frac{\pi}{2}", "\u03c0/2"),
        ("(1, 2)", r"\left(1,\,2\right)"),
        ("[0, 1)", r"\left[0,1\right)"),
        (r"(-\infty, 3]", r"(-\infty,3]"),
        ("2, 1", r"\{1, 2\}"),
        (r"1 \text{ and } 2", "1, 2"),
        (r"x \le 5", "x \u2264 5"),
        ("5 > x", "x < 5"),
        ("(x+1)^2", "x^2 + 2x + 1"),
        ("y = 2x + 3", "2x+3"),
        ("f(2) = 9", "9"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("1 + 2i", "2i + 1"),
        ("#### 42\u5143", "42"),
        ("\u6240\u4ee5\u4e00\u5171\u670942\u4e2a\u82f9\u679c\u3002", "42"),
    ],
)
def test_the_same_value_is_right_however_it_is_written(response: str, reference: str) -> None:
    assert _accuracy(response, reference) == 1.0
    assert _accuracy(reference, response) == 1.0


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("18 or 20", "18"),
        ("It is 18 or 20.", "20"),
        ("The answer is 18 or 20.", "18"),
        (r"\boxed{18 \text{ or } 20}", "20"),
        ("The answer is between 18 and 20.", "20"),
        ("The answer is 18 to 20 dollars.", "18"),
        ("The answer is 18 to 20 dollars.", "20"),
        ("The answer is 18-20.", "20"),
        ("6 hours 30 minutes", "30"),
        ("The answer is 6 hours 30 minutes.", "6"),
        ("#### 20\nWith 18 in step 3", "18"),
        (r"\boxed{20}, not 18", "18"),
        ("The answer is 20, as 2 + 16 = 18.", "18"),
        ("<think>So it is 18.</think>I do not know.", "18"),
        ("<think>So it is 18", "18"),
        ("no answer", "18"),
        ("", "18"),
        (r"\boxed{\text{none}}", "0"),
        ("18.5", "18"),
        ("180", "18"),
        ("-18", "18"),
        ("1,234", "1.234"),
        ("0.333", "1/3"),
        ("0.333333333", r"\frac{1}{3}"),
        ("50%", "0.5"),
        ("2/1", "1/2"),
        ("2 1/2", "1/2"),
        ("5/0", "0"),
        ("5 km", "5 m"),
        ("3:00 am", "3:00 pm"),
        ("1.5 million", "1.5"),
        ("3:4", "4"),
        ("3:4", "0.75"),
        ("3:4", "4:3"),
        ("x = 5", "x = -5"),
        ("2x", "2"),
        ("2x + 3y = 6", "6"),
        (r"2\sqrt{3}", "3"),
        ("The side is 2\u221a3.", "3"),
        (r"2\sqrt{3}", "3.4641"),
        (r"\pi", "3.14"),
        (r"\pi", "3.14159265358979"),
        ("(1, 2)", "(2, 1)"),
        ("(1, 2)", "(1, 3)"),
        ("(1, 2)", "[1, 2]"),
        ("(1, 2)", r"\{1, 2\}"),
        ("[0, 1)", "[0, 1]"),
        ("1, 2", "1, 2, 3"),
        ("1, 2", "2"),
        ("x < 5", "x \u2264 5"),
        ("x + 1", "y + 1"),
        ("10^{-3}", "1000"),
        ("The 3 of them do not know.", "18"),
        ("GPT4", "4"),
        (r"\boxed{10!}", "10"),
        (r"The share is 0.\overline{3}.", "3"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ],
)
def test_another_value_or_none_is_wrong(response: str, reference: str) -> None:
    assert _accuracy(response, reference) == 0.0
    assert _accuracy(reference, response) != 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "no answer",
        "GPT4",
        "5/0",
        r"\boxed{\text{yes}}",
        r"\boxed{}",
        "It is 18 or 20.",
        r"\sqrt{",
    ],
)
def test_a_response_without_a_value_is_a_violation(response: str) -> None:
    reason = DropReason.NO_VALUE if response else DropReason.EMPTY
    assert (MATH.violation(response) or [None])[0] == reason


def test_what_is_learnt_is_the_worked_solution_without_thoughts() -> None:
    read = MATH.read("<think>Twice 9?</think>\n\n2 * 9 = 18\n#### 18\n")
    assert read == Answer("2 * 9 = 18\n#### 18", "18")


def test_a_truncated_solution_is_wrong_even_where_its_last_number_is_right() -> None:
    assert _accuracy("2 * 9 = 18", "18", truncated=True) == 0.0


def test_what_was_not_obtained_or_has_no_right_answer_is_unscored() -> None:
    assert _accuracy(None, "18") is None
    assert _accuracy("18", "unknown") is None


def test_one_of_several_references_is_enough() -> None:
    assert MATH.score("#### 0.5", ["1/3", r"\frac{1}{2}"]) == {"accuracy": 1.0}


def test_the_form_that_a_teacher_is_asked_for_is_read() -> None:
    assert "####" in MATH.instructions()
    assert final_value("So 3 of 4 are left.\n#### 3/4") == "3/4"


@pytest.mark.parametrize(
    ("value", "references"),
    [
        (18, ("18",)),
        (18.5, ("18.5",)),
        (["18", "36/2"], ("18", "36/2")),
        ('["18", ""]', ("18",)),
        ("[1, 2]", ("[1, 2]",)),
        (None, ()),
    ],
)
def test_a_reference_is_a_number_a_text_or_a_list_of_texts(
    value: object, references: tuple[str, ...]
) -> None:
    assert MATH.references(value) == references


@pytest.mark.parametrize("value", [{"answer": 18}, [18], True])
def test_a_reference_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a text"):
        MATH.references(value)


HOSTILE = [
    "9^9^9^9",
    "9^{9^{9^{9}}}",
    "((9^{99})^{99})^{99}",
    "(x+1)^{99}(y+1)^{99}",
    "1000000!",
    "((9!)!)!",
    "2^{1000000000}",
    r"\sum_{n=1}^{1000000000} \frac{1}{n}",
    r"\int_0^1 e^{-x^2} dx",
    r"\binom{1000000000}{500000000}",
    "1e999999999",
    "1E999999999+1",
    "(" * 10_000,
    "{" * 10_000,
    r"\frac{" * 10_000,
    r"\sqrt{" * 10_000 + "2" + "}" * 10_000,
    r"\boxed{" * 10_000,
    "9" * 100_000,
    "1/" * 100_000,
    "answer is " * 20_000,
    "answer to " * 20_000,
    "#### " * 20_000,
    "$" * 100_000,
    "$x" * 50_000,
    r"\(" * 50_000,
    r"\[1" * 50_000,
    "1 or " * 50_000,
    "1 " * 100_000,
    "\x00\ud800 5",
    "__import__('os').getcwd()",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_a_hostile_response_is_read_in_a_thread_without_hanging_or_raising(text: str) -> None:
    found: list[float | None] = []

    def read() -> None:
        found.extend(_accuracy(form, "18") for form in (text, rf"\boxed{{{text}}}", f"${text}$"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert found == [0.0, 0.0, 0.0]


def test_every_gold_solution_of_gsm8k_equals_itself_and_its_marked_number() -> None:
    rows = shared_rows("gsm8k/train.jsonl") + shared_rows("gsm8k/test.jsonl")
    solutions = [row["answer"] for row in rows]
    assert len(solutions) == 8792
    for solution in solutions:
        marked = solution.rsplit("####", 1)[1].strip().replace(",", "")
        answer = MATH.parse(solution)
        assert answer and answer.value == marked
        assert MATH.score(solution, [solution]) == {"accuracy": 1.0}
