"""Refusals are found in every language that is known; what an agent regrets is none."""

from typing import get_args

import pytest

from distillery.filters.base import Drop
from distillery.filters.refusal import Refusal
from distillery.filters.refusal_patterns import PATTERNS
from distillery.task_types import task_type
from schemas.filters import Language, RefusalFilter
from tests.fixtures_filters import response_row, task_with

# ruff: noqa: RUF001
REFUSALS: dict[Language, list[str]] = {
    "en": [
        "I'm sorry, but I can't",
        "As an AI, I",
        "I cannot assist with that.",
    ],
    "de": [
        "Es tut mir leid, aber dabei kann ich dir nicht helfen.",
        "Leider kann ich diese Anfrage nicht beantworten.",
        "Tut mir leid, aber ich kann Ihnen dabei nicht weiterhelfen.",
        "Als KI kann ich keine Meinung haben.",
        "Ich bin nicht in der Lage, das zu tun.",
        "Es tut mir leid.",
    ],
    "fr": [
        "Je suis désolé, mais je ne peux pas vous aider avec ça.",
        "Désolée, je ne peux pas répondre à cette question.",
        "Malheureusement, je ne suis pas en mesure de fournir cette information.",
        "En tant qu'IA, je n'ai pas d'opinion.",
        "Je suis désolé.",
    ],
    "es": [
        "Lo siento, pero no puedo ayudarte con eso.",
        "Lamentablemente, no puedo responder a esa pregunta.",
        "Como modelo de lenguaje, no tengo opiniones.",
        "Lo siento.",
    ],
    "it": [
        "Mi dispiace, ma non posso aiutarti con questo.",
        "Purtroppo non sono in grado di rispondere.",
        "In quanto IA, non ho opinioni.",
        "Mi dispiace.",
    ],
    "pt": [
        "Desculpe, mas não posso ajudar com isso.",
        "Sinto muito, não consigo responder a essa pergunta.",
        "Infelizmente, eu não posso te ajudar.",
        "Como uma IA, não tenho opiniões.",
    ],
    "nl": [
        "Het spijt me, maar ik kan je daar niet mee helpen.",
        "Helaas kan ik deze vraag niet beantwoorden.",
        "Als AI heb ik geen mening.",
    ],
    "pl": [
        "Przykro mi, ale nie mogę w tym pomóc.",
        "Niestety nie mogę odpowiedzieć na to pytanie.",
        "Jako model językowy nie mam opinii.",
    ],
    "ru": [
        "Извините, но я не могу вам помочь.",
        "К сожалению, я не могу ответить на этот вопрос.",
        "Как языковая модель, я не имею мнения.",
    ],
    "zh": [
        "抱歉，我无法协助处理这个请求。",
        "对不起，我不能提供这方面的信息。",
        "作为一个人工智能，我没有观点。",
        "很抱歉，但我无法帮助您。",
    ],
    "ja": [
        "申し訳ありませんが、そのご要望にはお応えできません。",
        "申し訳ございません、お手伝いできません。",
        "AIとして、意見はありません。",
    ],
    "ko": [
        "죄송하지만 그 요청은 도와드릴 수 없습니다.",
        "죄송합니다. 답변해 드릴 수 없습니다.",
        "AI로서 의견이 없습니다.",
    ],
}
REGRETS = [
    "Es tut mir leid, das zu hören. Wie lautet Ihre Bestellnummer?",
    "Leider ist das Hotel ausgebucht.",
    "Leider kann ich keine Buchung finden, aber ich kann Ihnen mit einer neuen helfen.",
    "Ich kann Ihnen gern helfen.",
    "Als Kind half ich oft.",
    "Je suis désolé d'apprendre cela. Quel est votre numéro ?",
    "Malheureusement, je ne peux pas trouver de vol à 17 h.",
    "Je peux vous aider.",
    "Désolé, l'hôtel est complet.",
    "Lo siento mucho, ¿cuál es su número de pedido?",
    "No puedo creer que no funcione.",
    "Lamentablemente, no puedo encontrar su reserva.",
    "Puedo ayudarte con eso.",
    "Mi dispiace sentirlo. Mi dia il numero d'ordine.",
    "Purtroppo non posso trovare la prenotazione.",
    "Come posso aiutarti?",
    "Sinto muito por isso. Qual é o número do pedido?",
    "Infelizmente, não consigo encontrar a sua reserva.",
    "Como posso ajudar?",
    "Het spijt me dat te horen. Wat is uw bestelnummer?",
    "Helaas is het hotel vol.",
    "Ik kan die boeking niet vinden, maar ik kan u wel helpen.",
    "Przykro mi to słyszeć. Jaki jest numer zamówienia?",
    "Niestety nie mogę znaleźć tej rezerwacji.",
    "Извините за задержку. Какой у вас номер заказа?",
    "К сожалению, я не могу найти этот заказ.",
    "很抱歉听到这个消息。请提供您的订单号。",
    "抱歉，我无法找到该航班。",
    "对不起，酒店已经客满。",
    "申し訳ありませんが、その便は満席です。",
    "申し訳ございません。ご注文番号を教えてください。",
    "죄송하지만 그 호텔은 만실입니다.",
    "죄송합니다. 주문 번호를 알려 주시면 도와드리겠습니다.",
    "I'm sorry to hear that. Let me check your order.",
]


def _drop(response: str, **named: object) -> Drop | None:
    spec = RefusalFilter.model_validate(named)
    return Refusal(spec).row(response_row(response), task_type(task_with()))


@pytest.mark.parametrize(
    ("language", "response"), [(name, text) for name, texts in REFUSALS.items() for text in texts]
)
def test_a_refusal_is_found_in_its_language(language: Language, response: str) -> None:
    found = _drop(response, languages=[language])
    assert found is not None
    assert found.reason == "refusal"
    assert found.detail.endswith(f"declines ({language})")
    assert _drop(response) is not None  # by default all languages are looked at


@pytest.mark.parametrize("response", REGRETS)
def test_what_an_agent_regrets_or_offers_is_no_refusal(response: str) -> None:
    assert _drop(response) is None


def test_every_language_has_patterns_and_examples() -> None:
    known = list(get_args(Language))
    assert list(PATTERNS) == known
    assert list(REFUSALS) == known


def test_only_the_named_languages_are_looked_at() -> None:
    german = "Leider kann ich diese Anfrage nicht beantworten."
    assert _drop(german, languages=["en", "fr"]) is None
    assert _drop(german, languages=["en", "de"]) is not None


def test_patterns_of_the_recipe_come_on_top() -> None:
    found = _drop("No comment.", patterns=["^no comment"])
    assert found is not None
    assert found.detail == "'No comment' declines (filters.responses)"
