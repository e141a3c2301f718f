"""A model split before its output layer, so that the loss can go through it in chunks."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from distillery.models.chat_format import IGNORED
from distillery.models.head import Head

logger = logging.getLogger(__name__)


class SplitModel:
    """A causal LM whose `logits` are the hidden states before its output layer.

    Where the layer is not one linear map with nothing after it (capped or scaled logits, an
    adapter on it), the model stays as it is: its logits are then held whole.

    D = width, N = response tokens.
    """

    def __init__(self, model: Any) -> None:
        """Split ``model``; before a trainer wraps it, as that may change its precision.

        :meth:`join` undoes it.
        """
        layer = self.join(model)
        is_plain = type(layer) is torch.nn.Linear and _is_plain(model, layer)
        self._layer = layer if is_plain else None
        if is_plain:
            # A copy, as weights that are split between processes allow no view of an input.
            vars(layer)["forward"] = lambda hidden: hidden.clone()
        else:
            kind = model.config.model_type
            logger.info("logits of this %s model are held whole: it changes them afterwards", kind)

    @staticmethod
    def join(model: Any) -> Any:
        """Let ``model`` return logits again; return its output layer."""
        layer = model.get_output_embeddings()
        vars(layer).pop("forward", None)
        return layer

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Let the model return logits inside, as it needs to write."""
        forward = None if self._layer is None else vars(self._layer).pop("forward", None)
        try:
            yield
        finally:
            if forward is not None:
                vars(self._layer)["forward"] = forward

    @property
    def holds_logits(self) -> bool:
        """Return whether the model applies its output layer itself, to all tokens at a time."""
        return self._layer is None

    @property
    def head(self) -> Head:
        """Return the output layer; empty where the model applies it itself."""
        return Head(None) if self._layer is None else Head(self._layer.weight, self._layer.bias)


def _is_plain(model: Any, layer: torch.nn.Linear) -> bool:
    """Return whether ``model`` returns what ``layer`` gives, but for a factor.

    A cap shows in that hidden states 64 times as large, a factor without any rounding, do not come
    out 64 times as large; a bias that is scaled shows in the logits.
    """
    ids = torch.arange(2, device=layer.weight.device)[None]
    was_training = model.training
    model.eval()

    def logits(forward: Any = None) -> torch.Tensor:
        if forward is not None:
            vars(layer)["forward"] = forward
        with torch.no_grad():
            given: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return given

    whole = logits()
    try:
        hidden, larger = logits(lambda states: states.clone()), logits(lambda states: 64 * states)
    except (IndexError, RuntimeError, ValueError):
        return False  # it expects as many logits as there are tokens
    finally:
        vars(layer).pop("forward", None)
        model.train(was_training)
    with torch.no_grad():
        # Some models return float32, whatever they compute in.
        states = hidden.to(layer.weight.dtype)
        again = torch.nn.functional.linear(states, layer.weight, layer.bias)
    is_linear = torch.equal(larger, 64 * hidden)
    return is_linear and torch.allclose(again.float(), whole.float(), rtol=1e-2, atol=1e-3)


def response_states(model: Any, batch: dict[str, Any], labels_BT: Any, whose: str = "") -> Any:
    """Return the last hidden states (or logits) at the positions that predict a response token.

    Args:
        model: The model, wrapped or not, split or not.
        batch: Tokens as a collator made them.
        labels_BT: IGNORED where a token is no response.
        whose: "" for the student's tokens, "teacher_" for the teacher's.

    Returns:
        [N, D], in the order of the rows.
    """
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[whose + name] for name in names if whose + name in batch}
    states_BTD = model(**inputs, use_cache=False).logits
    return states_BTD[:, :-1][labels_BT[:, 1:] != IGNORED]
