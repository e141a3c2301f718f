"""An output layer, and the same layer for a chunk of tokens at a time.

Shapes: N = tokens, C = tokens of a chunk, V = vocabulary, D = width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """An output layer, as far as a loss needs it."""

    weight_VD: Tensor | None
    """None: what stands for the hidden states are logits already."""
    bias_V: Tensor | None = None


class ChunkedHead:
    """Makes the logits of a chunk of tokens in one buffer, and takes their gradient from there."""

    def __init__(
        self,
        hidden_ND: Tensor,
        head: Head,
        vocab_size: int,
        chunk: int,
        wanted: Sequence[bool] = (False, False, False),
    ) -> None:
        """Cast the weight once; make the buffers, and the gradients that are wanted.

        Args:
            hidden_ND: Hidden states; logits where the head has no weight.
            head: The output layer.
            vocab_size: Logits beyond it are never made, and their gradients stay 0.
            chunk: The most tokens at a time.
            wanted: Whether hidden states, weight and bias need a gradient.
        """
        weight_VD, bias_V = head
        dtype, device = hidden_ND.dtype, hidden_ND.device.type
        if dtype == torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # as an ordinary output layer would
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        self._hidden_ND, self.vocab_size, self._dtype = hidden_ND, vocab_size, dtype
        self._weight_VD = None if weight_VD is None else weight_VD[:vocab_size].to(dtype)
        self._bias_V = None if bias_V is None else bias_V[:vocab_size].to(exact)
        self._logits_CV = hidden_ND.new_empty((chunk, vocab_size), dtype=exact)
        self._product_CV = self._logits_CV
        if dtype != exact and weight_VD is not None:
            self._product_CV = hidden_ND.new_empty((chunk, vocab_size), dtype=dtype)
        # In bfloat16 a sum over chunks would lose what a chunk adds to it.
        self.gradients = [
            None if t is None or not want else torch.zeros_like(t, dtype=sum_dtype)
            for t, want, sum_dtype in zip(
                (hidden_ND, *head), wanted, (hidden_ND.dtype, exact, exact), strict=True
            )
        ]

    def empty(self, *shape: int) -> Tensor:
        """Return a tensor in the precision of the logits."""
        return self._logits_CV.new_empty(shape)

    def logits(self, rows: slice) -> Tensor:
        """Return the logits of some tokens, in the buffer that the next call uses again."""
        hidden_CD = self._hidden_ND[rows]
        logits_CV = self._logits_CV[: len(hidden_CD)]
        if self._weight_VD is None:
            return logits_CV.copy_(hidden_CD[:, : self.vocab_size])
        product_CV = self._product_CV[: len(hidden_CD)]
        torch.mm(hidden_CD.to(self._dtype), self._weight_VD.T, out=product_CV)
        if self._product_CV is not self._logits_CV:
            logits_CV.copy_(product_CV)
        return logits_CV if self._bias_V is None else logits_CV.add_(self._bias_V)

    def add_gradients(self, rows: slice, gradient_CV: Tensor) -> None:
        """Pass the gradient with respect to these logits on to what made them."""
        hidden_ND, weight_VD, bias_V = self.gradients
        if self._weight_VD is None:
            if hidden_ND is not None:
                hidden_ND[rows, : self.vocab_size] = gradient_CV
            return
        product_CV = self._product_CV[: len(gradient_CV)]
        if self._product_CV is not self._logits_CV:
            product_CV.copy_(gradient_CV)
        if hidden_ND is not None:
            hidden_ND[rows] = product_CV @ self._weight_VD
        if weight_VD is not None:
            hidden_CD = self._hidden_ND[rows].to(self._dtype)
            sum_VD = weight_VD[: self.vocab_size]
            if sum_VD.dtype == self._dtype:
                sum_VD.addmm_(product_CV.T, hidden_CD)
            else:
                sum_VD += product_CV.T @ hidden_CD
        if bias_V is not None:
            bias_V[: self.vocab_size] += gradient_CV.sum(0)
