"""Structured responses: what breaks a response schema, and how a teacher is asked to mend it."""

from distillery.task_types.answer_formats import Answer, read_json
from distillery.teacher.protocol import Message, Request, ResponseSchema

_LONGEST_ECHO = 16_000  # characters of the broken response; its repair has to fit beside it


def schema_violation(text: str, schema: ResponseSchema) -> str | None:
    """Return one sentence on what breaks ``schema`` in ``text``, or None when it satisfies it.

    As everywhere else, thoughts and a Markdown fence around the value do not matter: the filters
    take them off.

    >>> schema = ResponseSchema('{"required":["label"],"type":"object"}', "validate")
    >>> schema_violation('{"label": "refund"}', schema)
    >>> schema_violation('{}', schema)
    "at $: 'label' is a required property"
    """
    found = read_json(text, schema.json_schema)
    return None if isinstance(found, Answer) else found[1]


def repair_messages(request: Request, text: str, violation: str) -> list[Message]:
    """Return the conversation that asks for a corrected response, once.

    The schema is named in it: an endpoint whose responses are only checked has never seen it.

    Args:
        request: What was asked.
        text: What the teacher wrote; long ones are cut, so that the repair fits its context.
        violation: What :func:`schema_violation` found.
    """
    schema = request.response_schema
    return [
        *request.messages,
        {"role": "assistant", "content": text[:_LONGEST_ECHO]},
        {
            "role": "user",
            "content": (
                f"Your response cannot be used: {violation}. Answer again with the corrected JSON "
                "alone: no fence, no text before or after it."
                + (f" It has to satisfy this JSON schema: {schema.json_schema}" if schema else "")
            ),
        },
    ]
