"""The wire of soft targets: what a vLLM server is asked, and what its replies mean.

    POST {root}/tokenize        messages -> token ids, by the server's own template
    POST {base}/completions     token ids -> `prompt_logprobs` at each of them

    no such route or parameter  CannotShow: soft targets are impossible here
    otherwise                   as `teacher/http/replies.py` says

Source: vLLM 0.32, `entrypoints/serve/tokenize/protocol.py`,
`entrypoints/openai/completion/protocol.py`, `v1/worker/gpu_model_runner.py`.
"""

import json
import re
from typing import Any, NamedTuple

import numpy as np
import yarl
from numpy.typing import NDArray

from distillery.data.chat import Message
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import PassingFault, Reply, check_status, error_of
from schemas.teacher import OpenAITeacher

LEAST_REST = 2.0**-23
"""Least mass that can be told from zero: log-probabilities come in float32."""

BYTES_PER_ENTRY = 80
"""Of one token's entry in the JSON; measured: 66 with ids of 3 digits, 74 with 6."""

_NO_SUCH_ROUTE = (404, 405, 501)
_TOO_MANY = re.compile(r"logprobs of (\d+), which is greater than max allowed: (\d+)")
# More than rounding adds to a sum of probabilities.
_MOST_MASS = 1.001
# Fields of a chat request that decide how its messages become tokens.
_RENDERING = ("add_special_tokens", "chat_template", "chat_template_kwargs", "tools")


class CannotShow(Exception):
    """The server cannot show what soft targets need; the text goes after its address."""


def tokenize_url(endpoint: Endpoint) -> yarl.URL:
    """Return the address of `tokenize`: it is at the root, not below `/v1`."""
    url = endpoint.route("tokenize")
    root = url.path.removesuffix("/tokenize").removesuffix("/v1")
    return url.with_path(f"{root}/tokenize", keep_query=True)


class Probabilities(NamedTuple):
    """The teacher's k most likely tokens at N positions of one row."""

    ids_NK: NDArray[np.int32]
    """Token ids, the most likely first."""

    log_probs_NK: NDArray[np.float32]
    """Their log-probabilities at T = 1, nats."""

    log_rest_N: NDArray[np.float32]
    """Log of the mass of all other tokens, at least log(LEAST_REST)."""


def tokenize_body(
    spec: OpenAITeacher, messages: list[Message], *, add_generation_prompt: bool
) -> dict[str, Any]:
    """Return the body that asks how ``messages`` become tokens, rendered as for a response."""
    rendering = {name: spec.extra_body[name] for name in _RENDERING if name in spec.extra_body}
    return {
        **{name: value for name, value in rendering.items() if value is not None},
        "model": spec.model,
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
    }


def completions_body(spec: OpenAITeacher, prompt: list[int], k: int) -> dict[str, Any]:
    """Return the body that asks for the ``k`` most likely tokens at each token of ``prompt``.

    One token has to be written: vLLM refuses to write none.
    """
    return {
        "model": spec.model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": k,
    }


def check_reply(path: str, reply: Reply) -> None:
    """Return when a reply of ``path`` is what was asked for.

    Raises:
        CannotShow, RefusedRequest, RateLimited, PassingFault, FatalReply: It is not; see
            the table above.
    """
    status, text = reply.status, reply.text if reply.status != 200 else ""
    message = f"status {status}: {error_of(text).message}"
    # vLLM itself says what is missing, such as the model; a router does not.
    if status in _NO_SUCH_ROUTE and '"error"' not in text:
        raise CannotShow(
            f"has no {path} ({message!r}), so it is not a vLLM server or hides it. Serve the "
            "teacher with vLLM, its root reachable, or set training.objective.kind to "
            "hard_targets."
        )
    if status == 400 and (limit := _TOO_MANY.search(text)):
        raise _above_the_limit(k=int(limit[1]), most=int(limit[2]))
    check_status(reply)


def _above_the_limit(*, k: int, most: int) -> CannotShow:
    return CannotShow(
        f"shows at most {most} tokens per position, fewer than training.objective.k={k}. Start "
        f"vLLM with '--max-logprobs {k}', or lower training.objective.k to {most}."
    )


def read_tokens(content: bytes) -> tuple[list[int], int | None]:
    """Return the token ids in a reply of `/tokenize`, and the server's context where it is told.

    Raises:
        PassingFault: It holds none.
    """
    try:
        body = json.loads(content)
        ids = body["tokens"]
        most = body.get("max_model_len")
        if not (isinstance(ids, list) and ids and all(type(token) is int for token in ids)):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _unreadable("token ids", content) from None
    return ids, most if type(most) is int else None


def read_probabilities(content: bytes, prompt: list[int], start: int, k: int) -> Probabilities:
    """Return the probabilities of the prompt's tokens from ``start`` on.

    Objects become arrays while they are read: as dictionaries they take several times the text.

    Args:
        content: A reply of `/v1/completions`.
        prompt: The token ids that were sent.
        start: The first position that counts, at least 1: nothing comes before position 0, so
            nothing predicts it.
        k: Tokens kept per position. The server adds the prompt's own token, which is left out
            unless it is among them.

    Raises:
        PassingFault: The body is not a completion of this prompt.
        CannotShow: It holds no log-probabilities, or too few.
    """
    try:
        choices = json.loads(content, object_hook=_compact)["choices"]
        positions = choices[0].get("prompt_logprobs")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise _unreadable("completion of the prompt", content) from None
    if positions is None:
        raise CannotShow(
            "answers without prompt_logprobs, so it shows no probabilities. Serve the teacher "
            "with vLLM, or set training.objective.kind to hard_targets."
        )
    if not isinstance(positions, list) or len(positions) != len(prompt):
        raise PassingFault(f"probabilities that do not go with the {len(prompt)} tokens sent")
    kept = positions[start:]
    if any(type(position) is not _Position for position in kept):
        raise PassingFault("positions without probabilities")
    if (fewest := min(len(position.ids) for position in kept)) < k:
        raise _above_the_limit(k=k, most=fewest)
    for token, position in zip(prompt[start:], kept, strict=True):
        if token not in position.ids:
            raise PassingFault(f"probabilities without the token {token}, which was sent")
    ids_NK = np.stack([position.ids[:k] for position in kept])
    log_probs_NK = np.stack([position.log_probs[:k] for position in kept])
    return Probabilities(ids_NK, log_probs_NK, log_rest(log_probs_NK))


class _Position(NamedTuple):
    """What is shown at one position, the best rank first: k entries, or one more."""

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]


def _compact(found: dict[str, Any]) -> Any:
    """Return a JSON object; as a tuple when it is one token's entry, a position when it has those.

    JSON itself never gives tuples.
    """
    if "logprob" in found:
        return (found["rank"], found["logprob"])
    if not found or any(type(value) is not tuple for value in found.values()):
        return found
    ranked = sorted((*entry, int(token)) for token, entry in found.items())
    return _Position(
        np.array([token for _, _, token in ranked], np.int32),
        np.array([log_prob for _, log_prob, _ in ranked], np.float32),
    )


def log_rest(log_probs_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the log of the mass beyond the given tokens: log(1 - sum of exp), [N].

    The sum is exact to the float32 of its terms only: a rest below LEAST_REST is rounding, often
    negative, and becomes LEAST_REST. No loss can tell that from the truth.

    Raises:
        CannotShow: These are not log-probabilities: their mass is above 1, or not finite.

    >>> half = np.log(np.array([[0.25, 0.25], [0.5, 0.5]], np.float32))
    >>> log_rest(half).round(2).tolist()
    [-0.6899999976158142, -15.9399995803833]
    """
    mass_N = np.exp(log_probs_NK.astype(np.float64)).sum(axis=1)
    if not (mass_N < _MOST_MASS).all():
        raise CannotShow(
            f"shows numbers that are not log-probabilities: their mass is {mass_N.max():.3g}. "
            "Start vLLM with --logprobs-mode raw_logprobs, its default."
        )
    rest_N: NDArray[np.float64] = np.maximum(1.0 - mass_N, LEAST_REST)
    return np.log(rest_N).astype(np.float32)


def _unreadable(wanted: str, content: bytes) -> PassingFault:
    said = error_of(content[:2000].decode("utf-8", "replace")).message
    return PassingFault(f"a body without {wanted}: {said}", status=200)
