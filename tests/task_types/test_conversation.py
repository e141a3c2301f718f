# ruff: noqa: RUF001
"""An agent's turn is scored by what it has in common with what the agent wrote."""

import pytest

from distillery.task_types import ScoredRow, task_type
from schemas.evaluation import EvaluationSpec
from schemas.task import TaskKind, TaskSpec
from tests.fixtures_statistics import set_interval

KIND = task_type(TaskSpec(name="t", type=TaskKind.CONVERSATION))
BYE = "Thank you and goodbye."
NAME = "Could I get your name, please?"


@pytest.mark.parametrize(
    ("turn", "reference", "rouge_l"),
    [
        (BYE, BYE, 1),
        ("thank you, and goodbye!", BYE, 1),
        ("Thank you and good bye.", BYE, 6 / 9),
        ("Thank you! Goodbye!", BYE, 6 / 7),
        ("Thanks and goodbye.", BYE, 4 / 7),
        ("Goodbye and thank you.", BYE, 4 / 8),
        ("Goodbye.", BYE, 2 / 5),
        ("See you soon", BYE, 2 / 7),
        ("You are welcome", BYE, 2 / 7),
        ("Hello", BYE, 0),
        ("", BYE, 0),
        ("Thank you and goodbye. Thank you and goodbye.", BYE, 8 / 12),
        ("Agent: Thank you and goodbye.", BYE, 8 / 9),
        ("Sure, could I get your name, please?", NAME, 12 / 13),
        ("Could I get your full name, please?", NAME, 12 / 13),
        ("Can I get your name?", NAME, 8 / 11),
        ("What is your name?", NAME, 4 / 10),
        ("Could I get your address, please?", NAME, 10 / 12),
        ("could I get your name please", NAME, 1),
        ("<think>ask</think>Could I get your name, please?", NAME, 1),
        ("<think>Could I get your name, please?", NAME, 0),
        ("The price is $460 per month.", "The price is 460 per month.", 1),
        ("The price is 640 per month.", "The price is 460 per month.", 10 / 12),
        ("Your ride is at 3:30 pm", "Your ride is at 3:30pm", 10 / 13),
        ("OK", "ok.", 1),
        ("Okay", "OK", 0),
        ("👍", "👍", 1),
        ("👍", "👎", 0),
        ("您好，请问贵姓？", "您好请问贵姓", 1),
        ("您好，请问姓名？", "您好，请问贵姓？", 10 / 12),
        ("Как вас зовут?", "Как Вас зовут", 1),
        ("Ваше имя?", "Как вас зовут?", 0),
        ("ありがとう", "ありがとうございます", 10 / 15),
    ],
)
def test_rouge_l_by_hand(turn: str, reference: str, rouge_l: float) -> None:
    assert KIND.score(turn, [reference]) == pytest.approx({"ROUGE-L": rouge_l})


@pytest.mark.parametrize(
    ("reference", "better", "worse"),
    [
        (NAME, "Could I get your full name, please?", "What is your name?"),
        (NAME, "What is your name?", "On what day do you want to travel?"),
        (BYE, "Thank you. Goodbye.", "Is there anything else?"),
        ("I found a flight with Delta for 277 credits.",
         "I found a flight with Delta for 426 credits.", "There is no flight for you."),
        ("La habitación está reservada.", "La habitación no está reservada.", "¿Algo más?"),
        ("Ваш номер забронирован.", "Ваш номер не забронирован.", "Чем ещё помочь?"),
        ("您的房间已经预订好了。", "您的房间没有预订。", "还需要什么吗？"),
        ("お部屋を予約しました。", "お部屋は予約できません。", "他にご用はありますか？"),
        ("จองห้องเรียบร้อยแล้วครับ", "จองห้องแล้วครับ", "มีอะไรอีกไหม"),
    ],
)  # fmt: skip
def test_what_is_closer_scores_higher_by_every_metric(
    reference: str, better: str, worse: str
) -> None:
    def scores(turn: str) -> dict[str, float]:
        rows, once = [ScoredRow(turn, (reference,))], EvaluationSpec(bootstrap_samples=100)
        found = {name: set_interval(KIND.of_the_set[name], rows, once) for name in ("BLEU", "chrF")}
        values = {name: interval.estimate for name, interval in found.items() if interval}
        return values | {"ROUGE-L": KIND.score(turn, [reference])["ROUGE-L"] or 0.0}

    closer, further = scores(better), scores(worse)
    assert {name for name in closer if closer[name] > further[name]} == {"BLEU", "chrF", "ROUGE-L"}


def test_rouge_l_decides_and_messages_are_all_that_is_read() -> None:
    assert KIND.primary == "ROUGE-L"
    assert [*KIND.metrics, *KIND.of_the_set] == ["ROUGE-L", "BLEU", "chrF", "length ratio"]
    assert KIND.fields == ()
