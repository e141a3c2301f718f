"""A model's chat format: how it reads a conversation, where its response ends, what it says in it.

Whoever trains, generates, scores or checks asks here, so that what is learnt, what is generated and
what is scored agree.
"""

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from distillery.data.chat import Message
from distillery.models.chat_templates import written_date
from distillery.models.vocabulary import special_tokens
from distillery.task_types.thoughts import THOUGHT_MARKS, split_thoughts
from schemas.errors import DistilleryError, RecipeError, TrainingError

IGNORED = -100
"""Label of a token that does not count in the loss (PyTorch's cross-entropy ignores it)."""

Conversation = Sequence[Mapping[str, Any]]
"""Turns of {role, content}."""

_MOST_NOT_WRITTEN = 0.01

_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where templates look for the thoughts of a turn."""

_PROBE = [Message(role="user", content="What is six times seven?")]
_PROBE_RESPONSE = "Forty-two."


@dataclass(frozen=True)
class TokenizedRow:
    """One row as the model sees it."""

    input_ids: list[int]
    """Prompt, then response."""

    labels: list[int]
    """The same, with IGNORED at every prompt token."""

    @property
    def num_response_tokens(self) -> int:
        """Return how many tokens count in the loss."""
        return len(self.response_ids)

    @property
    def response_ids(self) -> list[int]:
        """Return the tokens that count in the loss."""
        return [label for label in self.labels if label != IGNORED]


class ChatFormat:
    """What a tokenizer, its chat template and a generation config say about conversations."""

    def __init__(self, tokenizer: Any, generation_config: Any = None, *, name: str = "") -> None:
        """Describe the format.

        Args:
            tokenizer: With its chat template.
            generation_config: The model's; names tokens at which generation stops.
            name: The model's, for messages.
        """
        self.tokenizer = tokenizer
        self._generation_config = generation_config
        self._name = name or tokenizer.name_or_path or "the model"

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """Return every token at which generation stops.

        The tokenizer names one, the generation config others. A special token that the template
        writes directly after a response is one too: base models and tokenizers that come without
        a generation config do not name it, yet that is what they learn to end with.

        Raises:
            RecipeError: The chat template cannot render a conversation.
        """
        named = getattr(self._generation_config, "eos_token_id", None)
        found = {*(named if isinstance(named, list) else [named]), self.tokenizer.eos_token_id}
        after = self._ids(self._probed[2].lstrip())[:1]
        found.update(token for token in after if token in self._special)
        return frozenset(int(token) for token in found - {None})

    def prompt_ids(self, messages: Conversation) -> list[int]:
        """Return what the model reads before it responds.

        Raises:
            RecipeError: The chat template refuses the messages.
        """
        return self._ids(self._render(messages, add_generation_prompt=True))

    @property
    def date(self) -> str | None:
        """Return the date that the template gives as today's; None where it reads no clock."""
        return written_date(self.tokenizer.get_chat_template())

    @property
    def thoughtless(self) -> str | None:
        """Return why a model of this format writes no thoughts; None where it may."""
        prompt = self._probed[0]
        if any(found["shut"] for _, found in _thoughts_at_end(prompt)):
            return (
                f"the chat template of {self._name!r} ends the thoughts before the response begins "
                f"({prompt[-30:]!r})"
            )
        template = self.tokenizer.get_chat_template()
        if not any(mark in template for pair in THOUGHT_MARKS.items() for mark in pair):
            return f"the chat template of {self._name!r} has no place for thoughts"
        return None

    def row(
        self, messages: Conversation, response: str, reasoning: str | None = None
    ) -> TokenizedRow:
        r"""Return the tokens of a prompt and its response; only the response counts in the loss.

        The prompt is what the model reads at inference. The response is what it has to write from
        there: whatever the template puts before the text (an empty thought, a channel), the text,
        and the first token at which generation stops. What a template writes after that (a line
        break, often) is left off, as nobody would ever read it. Where the prompt opens a thought
        that the template leaves out of a finished turn (QwQ, R1), the response closes it first:
        ``\n</think>\n\n``.

        Args:
            messages: The prompt.
            response: What is said, without thoughts.
            reasoning: Thoughts to write before it, as the template writes them.

        Raises:
            RecipeError: The chat template refuses the messages.
            TrainingError: The response is empty; or the chat template or the tokenizer changes the
                prompt or the response, ends the response without a token at which generation
                stops, or has no place for thoughts.
        """
        if not response.strip():
            raise TrainingError(
                f"the response to {messages[-1]['content']!r:.80} is {response!r}, so there is "
                "nothing to learn from it but to stop. Leave the row out."
            )
        prompt, target = self._texts(messages, response, (reasoning or "").strip())
        prompt_ids, target_ids = self._split(prompt, target)
        ends = [at for at, token in enumerate(target_ids, 1) if token in self.end_ids]
        if not ends:
            named = self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids))
            raise TrainingError(
                f"the chat template of {self._name!r} ends a response without any of "
                f"{', '.join(map(repr, named))}, at which generation stops, so the student would "
                "never learn to stop. Name a template that writes one in student.chat_template."
            )
        # The first one, unless the template itself writes it before the response is over.
        end = next((end for end in ends if self._says(target_ids[:end], response)), None)
        if end is None:
            raise self._not_kept(response, target, target_ids[: ends[0]])
        if odd := next((t for t in self._special.values() if reasoning and t in reasoning), None):
            raise TrainingError(
                f"the thoughts before the response {response!r:.80} hold {odd!r}, a special token "
                "of the student's tokenizer, so the student would end there. Leave the row out."
            )
        target_ids = target_ids[:end]
        return TokenizedRow(prompt_ids + target_ids, [IGNORED] * len(prompt_ids) + target_ids)

    def read(self, new_ids: list[int]) -> str:
        """Return what generated tokens say as a response; see :meth:`split`."""
        return self.split(new_ids)[1]

    def split(self, new_ids: list[int]) -> tuple[str, str]:
        """Return the thoughts in generated tokens, and the response without special tokens.

        The latter is "" where the model never came to respond, as all of it is a thought.
        """
        ids = new_ids[:-1] if new_ids and new_ids[-1] in self.end_ids else new_ids
        written = self._decode(ids)
        prompt, lead, _ = self._probed
        opened = next((found[0] for _, found in _thoughts_at_end(prompt) if not found["shut"]), "")
        thoughts = ""
        if lead.strip() and written.startswith(lead):
            said = written[len(lead) :]
        else:
            thoughts, said = split_thoughts(opened + written)
            if said == written:
                return "", self._decode(ids, skip_special_tokens=True).strip()
        for token in self._special.values():
            said = said.replace(token, "")
        return thoughts, said.strip()

    def generation_config(self, author: Any) -> Any:
        """Return how a model of this format generates: as its author says, up to any of the ends.

        Settings that contradict each other, which transformers ignores but refuses to save, are
        left out: it then decodes greedily, as it did.
        """
        from transformers import GenerationConfig

        config, ends = copy.deepcopy(author), sorted(self.end_ids)
        own = {"bos_token_id": author.bos_token_id, "pad_token_id": self.tokenizer.pad_token_id}
        own["eos_token_id"] = ends if len(ends) > 1 else next(iter(ends), None)
        try:
            config.update(**own)
            config.validate(strict=True)
        except ValueError:
            return GenerationConfig(**own)
        return config

    # -- the template ------------------------------------------------------------------------

    @functools.cached_property
    def _probed(self) -> tuple[str, str, str]:
        """Return a prompt, and what the template writes before and after a response to it.

        Nothing of the latter where no response can follow: such a model generates, at most.
        """
        prompt = self._render(_PROBE, add_generation_prompt=True)
        try:
            _, target = self._texts(_PROBE, _PROBE_RESPONSE)
        except DistilleryError:
            return prompt, "", ""
        lead, _, tail = target.partition(_PROBE_RESPONSE)
        return prompt, lead, tail

    def _texts(self, messages: Conversation, response: str, thoughts: str = "") -> tuple[str, str]:
        """Return the prompt, and what the model has to write after it to give ``response``."""
        prompt = self._render(messages, add_generation_prompt=True)
        if thoughts:
            return prompt, self._thoughtful(prompt, messages, response, thoughts)
        return prompt, self._target(prompt, messages, response)

    def _target(self, prompt: str, messages: Conversation, response: str, **keys: str) -> str:
        """Return what follows ``prompt`` in the finished turn; ``keys`` are further ones of it."""
        turn = {"role": "assistant", "content": response, **keys}
        whole = self._render([*messages, turn], add_generation_prompt=False)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        for shut, found in _thoughts_at_end(prompt):
            if whole.startswith(prompt[: found.start()]):
                rest = whole[found.start() :]
                return rest if found["shut"] else f"{found['space']}{shut}\n\n{rest}"
        # Earlier turns may change once a response follows: Mistral's system turn goes into the last
        # user turn if that is the last of all. The model reads them as the prompt has them.
        asked = messages[-1]["content"].strip()
        ending = asked + prompt.rpartition(asked)[2] if asked in prompt else ""
        if ending and (at := whole.rfind(ending)) >= 0:
            return whole[at + len(ending) :]
        pairs = enumerate(zip(prompt, whole, strict=False))
        border = next((at for at, (a, b) in pairs if a != b), min(len(prompt), len(whole)))
        shown = slice(max(0, border - 20), border + 40)
        raise TrainingError(
            f"the chat template of {self._name!r} renders the prompt differently once the response "
            f"follows: {prompt[shown]!r} becomes {whole[shown]!r}, so the student would learn from "
            "a prompt that it never meets. Name a template whose generation prompt is a prefix of "
            "the finished turn in student.chat_template, or the switch that makes it one in "
            "chat_template_kwargs."
        )

    def _thoughtful(self, prompt: str, messages: Conversation, response: str, thoughts: str) -> str:
        """Return what follows ``prompt`` when ``thoughts`` are written before ``response``."""
        ends = _thoughts_at_end(prompt)
        if any(found["shut"] for _, found in ends):
            raise TrainingError(
                f"the chat template of {self._name!r} ends the thoughts before the response begins "
                f"({prompt[-30:]!r}), so the student cannot learn any. Switch them on in "
                "student.chat_template_kwargs (often enable_thinking: true), or set "
                "training.learn_reasoning to false."
            )
        template = self.tokenizer.get_chat_template()
        start = next((mark for mark in THOUGHT_MARKS if mark in template), "<think>")
        as_text = f"{start}\n{thoughts}\n{THOUGHT_MARKS[start]}\n\n{response}"
        for content, keys in ((response, dict.fromkeys(_THOUGHT_KEYS, thoughts)), (as_text, {})):
            target = self._target(prompt, messages, content, **keys)
            if thoughts in target:
                return target
        if ends:  # the finished turn has no thoughts, but the prompt begins them
            target = self._target(prompt, messages, response)
            return f"{thoughts}\n{target[target.index(ends[0][0]) :]}"
        raise TrainingError(
            f"the chat template of {self._name!r} leaves thoughts out of a response, so the "
            "student cannot learn them. Set training.learn_reasoning to false, or name a template "
            "that keeps them in student.chat_template."
        )

    def _render(self, messages: Conversation, *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        # A template is a program of its own: a filter may meet a type or a key that it cannot take.
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            turns, why = [message["role"] for message in messages], str(error).rstrip(".")
            raise RecipeError(
                f"the chat template of {self._name!r} cannot render turns of {turns}: {why}. "
                "Choose a model whose template can, or change the messages of the data (some "
                "models take no system turn)."
            ) from error
        return text

    # -- the tokenizer -----------------------------------------------------------------------

    def _split(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """Return the tokens of the prompt and those that follow it."""
        prompt_ids, whole_ids = self._ids(prompt), self._ids(prompt + target)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, whole_ids[len(prompt_ids) :]
        # One token reaches over the border: two line breaks, often. At inference the tokens of the
        # prompt are fixed before the response begins.
        target_ids = self._ids(target)
        if self._decode(prompt_ids + target_ids) != self._decode(whole_ids):
            raise TrainingError(
                f"the tokenizer of {self._name!r} cannot write {target!r:.80} after "
                f"{prompt[-40:]!r} without changing the tokens of the prompt, which are fixed at "
                "inference. Choose another model."
            )
        return prompt_ids, target_ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self.tokenizer.decode(
            [token for token in ids if not (skip_special_tokens and token in self._special)],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return text

    @functools.cached_property
    def _special(self) -> dict[int, str]:
        return special_tokens(self.tokenizer)

    def _says(self, target_ids: list[int], response: str) -> bool:
        """Return whether ``target_ids`` hold the response, and read as it does.

        White space around it is nobody's. Some tokenizers put accents and their letters together
        (NFC), which is no other text.
        """
        said, wanted = self.read(target_ids), split_thoughts(response)[1].strip()
        kept, whole = self._decode(target_ids, skip_special_tokens=True), response.strip()
        return any(
            form(said) == form(wanted) and form(whole) in form(kept)
            for form in (str, functools.partial(normalize, "NFC"))
        )

    def _not_kept(self, response: str, target: str, target_ids: list[int]) -> TrainingError:
        """Return what to say of a response that does not come back from its row's tokens."""
        special = [token for token in self._special.values() if token in response]
        kept = self._decode(target_ids, skip_special_tokens=True)
        if special:
            return TrainingError(
                f"the response {response!r:.80} holds {special[0]!r}, a special token of the "
                "student's tokenizer, so the student would end or leave out what is text here. "
                "Leave the row out."
            )
        if response.strip() in target:
            return TrainingError(
                f"the student's tokenizer turns the response {response!r:.80} into {kept!r:.80}, "
                "so the student would learn another text. Choose a model whose tokenizer can "
                "write it."
            )
        return TrainingError(
            f"the chat template does not keep the response {response!r:.80} (it renders "
            f"{kept!r:.80}), so the student would learn another text. Use a template that keeps it."
        )


def refuse_many_not_written(reasons: Mapping[str, str], num_rows: int) -> None:
    """Return when few of ``num_rows`` rows cannot be written in a chat format: 1 %, 1 at least.

    One with a special token in it is dirt; more are the wrong model or template.

    Args:
        reasons: Why each of them cannot be written, by `prompt_id`.
        num_rows: All rows.

    Raises:
        TrainingError: There are more.
    """
    if len(reasons) > max(1, _MOST_NOT_WRITTEN * num_rows):
        first, why = next(iter(reasons.items()))
        raise TrainingError(
            f"{len(reasons)} of {num_rows} rows cannot be learnt, first {first!r}: {why}"
        )


def _thoughts_at_end(prompt: str) -> list[tuple[str, re.Match[str]]]:
    """Return the thought that ends ``prompt``, open or empty, with the tag that shuts its kind."""
    patterns = (
        (shut, rf"{re.escape(start)}(?P<space>\s*)(?P<shut>{re.escape(shut)}\s*)?$")
        for start, shut in THOUGHT_MARKS.items()
    )
    return [(shut, found) for shut, pattern in patterns if (found := re.search(pattern, prompt))]
