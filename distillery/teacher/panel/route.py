"""Each row goes to one member, by a rule on the row."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from distillery.data.chat import Message, load_messages
from distillery.task_types import TaskType
from distillery.teacher.panel.base import Ask, Known, Policy, Step, Taken
from schemas.panel import ColumnRule, LanguageRule, LengthRule, RoutePolicy, Rule, TaskRule


class Route(Policy[RoutePolicy]):
    """The first member whose rule the row meets; the last one takes the rest."""

    def step(self, row: Mapping[str, Any], known: Known) -> Step:
        """Ask the member that the row goes to, then take its response."""
        member, because = self._member(row)
        if member not in known.said:
            return Ask((member,))
        return Taken(member, because, known.said[member].agreement)

    def _member(self, row: Mapping[str, Any]) -> tuple[str, str]:
        messages = load_messages(row["messages"])
        for each in self.members:
            if each.rule is None:
                break
            if (met := _met(each.rule, messages, row, self.kind)) is not None:
                return each.name, f"rule: {met}"
        return self.names[-1], "rest"


def _met(rule: Rule, messages: list[Message], row: Mapping[str, Any], kind: TaskType) -> str | None:
    """Return by what value a row meets a rule; None when it does not."""
    match rule:
        case ColumnRule():
            value = json.loads(row.get("slices") or "{}").get(rule.column)
            is_met = value is not None and re.search(rule.pattern, value) is not None
            return f"{rule.column} {value:.40}" if is_met else None
        case TaskRule():
            return f"task {kind.task.type.value}" if kind.task.type in rule.types else None
        case LengthRule():
            num_chars = sum(len(message["content"]) for message in messages)
            is_within = rule.min_chars <= num_chars and (
                rule.max_chars is None or num_chars <= rule.max_chars
            )
            return f"length {num_chars:,}" if is_within else None
        case LanguageRule():
            asked = next(m["content"] for m in reversed(messages) if m["role"] == "user")
            found = language_of(asked)
            return f"language {found}" if found in rule.languages else None


@functools.lru_cache(maxsize=4096)
def language_of(text: str) -> str:
    """Return the language of a text as an ISO 639-1 code, the most probable one by py3langid.

    >>> language_of("Wo bleibt meine Bestellung von letzter Woche?")
    'de'
    """
    import py3langid

    return str(py3langid.classify(text)[0])
