"""A model split before its output layer, so that the loss can go through it in chunks."""

from typing import Any

import torch

from distillery.models import IGNORED
from distillery.training.losses import Head


class SplitModel:
    """A causal LM whose `logits` are the hidden states before its output layer.

    Where the layer is not one linear map with nothing after it (capped or scaled logits, an
    adapter on it), the model stays as it is: its logits are then held whole.

    D = width, N = response tokens.
    """

    def __init__(self, model: Any) -> None:
        """Split ``model``, unless it is already; :meth:`join` undoes it."""
        layer = self.join(model)
        self._layer = None
        if type(layer) is not torch.nn.Linear:
            return
        ids = torch.arange(2, device=layer.weight.device)[None]
        was_training = model.training
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
            # A copy, as weights that are split between processes allow no view of an input.
            vars(layer)["forward"] = lambda hidden: hidden.clone()
            hidden = model(input_ids=ids, use_cache=False).logits
            again = torch.nn.functional.linear(hidden, layer.weight, layer.bias)
        model.train(was_training)
        if torch.allclose(again.float(), logits.float(), rtol=1e-2, atol=1e-3):
            self._layer = layer
        else:
            self.join(model)

    @staticmethod
    def join(model: Any) -> Any:
        """Let ``model`` return logits again; return its output layer."""
        layer = model.get_output_embeddings()
        vars(layer).pop("forward", None)
        return layer

    @property
    def head(self) -> Head:
        """Return the output layer; empty where the model applies it itself."""
        return Head(None) if self._layer is None else Head(self._layer.weight, self._layer.bias)


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
