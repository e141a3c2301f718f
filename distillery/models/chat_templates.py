"""Chat templates: built-in ones for base models, and what is written into any."""

import datetime
import re
from collections.abc import Mapping
from typing import Any

from distillery.data.chat import SYSTEM_SEPARATOR
from schemas.errors import RecipeError

_BOS = "{{ bos_token if bos_token is defined else '' }}"

CHAT_TEMPLATES = {
    "chatml": _BOS
    + """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "plain": _BOS
    + """{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}

{% elif message['role'] == 'user' %}User: {{ message['content'] }}

{% else %}Assistant: {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}
{% if add_generation_prompt %}Assistant:{% endif %}""",
}
"""What `student.chat_template` may name.

- chatml: for tokenizers that have its tokens, as the base models of Qwen and SmolLM do.
- plain: `User:` and `Assistant:` as text; a response ends with the tokenizer's end of sequence.
"""

TODAY = "2026-01-15"
"""The date that templates which read the clock are given, whenever a run takes place (decision
0020). Another one changes what models read: raise the logic versions of their stages."""

_CLOCK = "strftime_now"
_DATE_PARTS = ["%F", "%-d", "%-m", *(f"%{letter}" for letter in "AaBbdejmYyHIMSpUVwTD")]
_FIXED_DATE = re.compile(
    rf"\{{% macro {_CLOCK}\(format\) %\}}.*?'%F', '(?P<date>[\d-]+)'.*?\{{% endmacro \+%\}}"
)
_HAS_SYSTEM_TURN = "{% if messages and messages[0]['role'] == 'system' %}"
_OWN_SYSTEM_PROMPT = re.compile(
    rf"{re.escape(_HAS_SYSTEM_TURN)}\{{% set messages = \[.*?\{{% endif \+%\}}"
)


def written_date(template: str) -> str | None:
    """Return the date that a settled template gives as today's; None where it reads no clock."""
    found = _FIXED_DATE.search(template)
    return str(found["date"]) if found else None


def with_template_kwargs(template: str, kwargs: Mapping[str, Any]) -> str:
    """Return ``template`` with ``kwargs`` written into it, and one date for every run.

    So they hold wherever the tokenizer goes: in training, scoring, evaluation, and with whoever
    serves the saved student. The function `strftime_now`, by which templates read the clock, is
    given TODAY, or the date that ``kwargs`` have under its name.

    Raises:
        RecipeError: That is not a date.

    >>> with_template_kwargs("{% if enable_thinking %}...", {"enable_thinking": False})
    '{% set enable_thinking = False +%}{% if enable_thinking %}...'
    """
    # What is there already is from a student of ours, which is trained further.
    fixed = _FIXED_DATE.search(template)
    date = kwargs.get(_CLOCK, fixed["date"] if fixed else TODAY)
    template = _FIXED_DATE.sub("", template)
    clock = _fixed_clock(date) if _CLOCK in template else ""
    named = sorted(kwargs.keys() - {_CLOCK})
    for name in named:
        template = re.sub(rf"\{{% set {re.escape(name)} = .*? \+%\}}", "", template)
    settings = "".join(f"{{% set {name} = {kwargs[name]!r} +%}}" for name in named)
    return clock + settings + template


def with_system_prompt(template: str, text: str) -> str:
    r"""Return ``template`` with ``text`` before the system turn, or as one where there is none.

    Like settings of the template, it goes wherever the tokenizer goes. What it writes is what
    :func:`distillery.data.chat.with_system_turn` makes of messages.

    >>> from jinja2 import Template
    >>> turns = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    >>> brief = Template(with_system_prompt(turns, "Be brief."))
    >>> brief.render(messages=[{"role": "user", "content": "Hi"}])
    '[system] Be brief. [user] Hi '
    """
    template = _OWN_SYSTEM_PROMPT.sub("", template)  # of a student that is trained further
    system = "{'role': 'system', 'content': %s}"
    before = system % f"{text + SYSTEM_SEPARATOR!r} + messages[0]['content']"
    return (
        f"{_HAS_SYSTEM_TURN}{{% set messages = [{before}] + messages[1:] | list %}}{{% else %}}"
        f"{{% set messages = [{system % repr(text)}] + messages | list %}}{{% endif +%}}" + template
    )


def _fixed_clock(date: Any) -> str:
    """Return a macro that takes the place of `strftime_now`, whenever it is called."""
    try:
        day = datetime.datetime.fromisoformat(date)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"chat_template_kwargs.strftime_now is {date!r}, not a date, so the chat template "
            "could not write it. Give it as '2026-01-31', in quotes."
        ) from error
    parts = "".join(f" | replace('{part}', '{day.strftime(part)}')" for part in _DATE_PARTS)
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{parts} }}}}{{% endmacro +%}}"
