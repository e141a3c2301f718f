"""What each part of a training takes of memory, from settings and counts alone."""

import dataclasses
import functools
from typing import Any

from distillery.training.arguments import micro_batch
from schemas.training import LoraMethod, TrainingSpec


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """What of a decoder's configuration its memory depends on."""

    layers: int
    width: int
    queries: int
    """Width of all query heads together."""

    keys: int
    """Width of all key heads together."""

    inner: int
    """Width inside the feed-forward block, for the experts that one token goes through."""

    embeddings: int
    """Parameters of input embedding and output layer."""

    @classmethod
    def of(cls, config: Any, vocab_size: int) -> "ModelShape | None":
        """Return the shape that a transformers configuration describes.

        Where layers differ, all count as the largest. None where the configuration does not tell:
        a state-space or recurrent model has no attention heads.
        """
        config = config.get_text_config(decoder=True)
        width, heads = _largest(config, "hidden_size"), _largest(config, "num_attention_heads")
        layers = _largest(config, "num_hidden_layers")
        if width is None or heads is None or layers is None:
            return None
        head = _largest(config, "head_dim") or width // heads
        inner = _largest(config, "intermediate_size") or 4 * width
        if experts := _largest(config, "num_experts_per_tok"):
            inner = experts * (_largest(config, "moe_intermediate_size") or inner)
        rows = _largest(config, "vocab_size") or vocab_size
        return cls(
            layers=layers,
            width=width,
            queries=heads * head,
            keys=(_largest(config, "num_key_value_heads") or heads) * head,
            inner=inner,
            embeddings=rows * width * (1 if getattr(config, "tie_word_embeddings", False) else 2),
        )

    @property
    def linear_sizes(self) -> tuple[tuple[int, int], ...]:
        """Return inputs and outputs of the linear layers of one decoder layer."""
        to_inner, to_width = (self.width, self.inner), (self.inner, self.width)
        attention = (self.queries, self.keys, self.keys)
        projections = tuple((self.width, out) for out in attention)
        return (*projections, (self.queries, self.width), to_inner, to_inner, to_width)


def _largest(config: Any, name: str) -> int | None:
    """Return a number of a configuration, over all layers; None where it is not there."""
    # transformers refuses to read from the whole what it knows for each layer.
    if name in (getattr(config, "per_layer_attributes", None) or ()):
        values = [getattr(layer, name, None) for layer in config.per_layer_config]
    else:
        value = getattr(config, name, None)
        values = list(value) if isinstance(value, list | tuple) else [value]
    return max((value for value in values if isinstance(value, int) and value > 0), default=None)


@dataclasses.dataclass(frozen=True)
class TeacherSize:
    """What a teacher that runs beside the student takes."""

    weight_bytes: int
    """Its weights, in the precision in which they are loaded."""

    bytes_per_token: int
    """Of the layer that is being computed; nothing is kept for a backward pass. 0 where the
    configuration does not tell the shape of a layer: weights are the most of what it takes."""

    @classmethod
    def of(cls, model: Any) -> "TeacherSize":
        """Return the size of a loaded transformers model."""
        shape = ModelShape.of(model.config, 0)
        numbers = 4 * shape.width + max(3 * shape.inner, 4 * shape.queries) if shape else 0
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        return cls(weights, numbers * model.dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """All that an estimate depends on."""

    shape: ModelShape
    num_parameters: int
    num_trainable: int
    training: TrainingSpec
    max_length: int
    vocab_size: int
    teacher: TeacherSize | None
    num_processes: int
    chunk_tokens: int
    holds_logits: bool

    @property
    def rows(self) -> int:
        """Return the rows of a forward pass."""
        return micro_batch(self.training, self.num_processes)

    @property
    def is_split(self) -> bool:
        """Return whether weights, gradients and optimizer states are divided by the processes."""
        return self.training.parallelism == "fsdp2" and self.num_processes > 1

    @property
    def itemsize(self) -> int:
        """Return the bytes of a number in the forward pass."""
        return 2 if self.training.dtype == "bfloat16" else 4

    @property
    def trains_all(self) -> bool:
        """Return whether no weight is frozen."""
        return not isinstance(self.training.method, LoraMethod)

    @property
    def _frozen_itemsize(self) -> int:
        """Return the bytes of a weight that is not trained."""
        return 4 if self.trains_all else self.itemsize

    @property
    def _state_bytes(self) -> int:
        """Return the bytes of one token between two layers: in the precision of the embedding."""
        return self._frozen_itemsize * self.shape.width

    @property
    def _share(self) -> int:
        """Return among how many processes weights, gradients and optimizer states are divided."""
        return self.num_processes if self.is_split else 1

    @property
    def _gradient_bytes(self) -> int:
        return 4 * self.num_trainable // self._share

    @functools.cached_property
    def parts(self) -> dict[str, int]:
        """Return bytes by part, for one process."""
        num_frozen = self.num_parameters - self.num_trainable
        weights = 4 * self.num_trainable + self._frozen_itemsize * num_frozen
        parts = {
            "weights": weights // self._share + self._weights_in_use(),
            "gradients": self._gradient_bytes + self._bucket_bytes(),
            "optimizer": 8 * self.num_trainable // self._share,
            "activations": self._activations(),
            "logits": self._logits(),
        }
        if self.teacher is not None:
            activations = self.rows * self.max_length * self.teacher.bytes_per_token
            parts["teacher"] = self.teacher.weight_bytes + activations + self._chunk_bytes()
        return parts

    @property
    def peak(self) -> int:
        """Return the most bytes that are held at one time.

        All parts, where gradients of earlier micro-batches wait for the later ones. Otherwise
        gradients come as activations go, and the larger of both counts: at the beginning of the
        backward pass all activations and the loss, at its end all gradients and one layer.
        """
        held = sum(self.parts.values())
        if self.rows * self.num_processes < self.training.batch_size:
            return held
        at_start = self.parts["activations"] + self.parts["logits"]
        at_end = self._gradient_bytes + self.rows * self.max_length * self._layer_bytes_per_token()
        return held - self._gradient_bytes - at_start + max(at_start, at_end)

    def _bucket_bytes(self) -> int:
        """Return the bytes in which DDP sums gradients over processes."""
        return 4 * self.num_trainable if self.num_processes > 1 and not self.is_split else 0

    def _weights_in_use(self) -> int:
        """Return the bytes of weights besides those that are held all the time."""
        if self.is_split:
            layer = sum(inputs * outputs for inputs, outputs in self.shape.linear_sizes)
            return self.itemsize * (self.shape.embeddings + layer)
        # Autocast's copies of what is trained, which the backward pass needs too; checkpointing
        # makes them anew.
        if self.itemsize == 4 or self.training.gradient_checkpointing:
            return 0
        uncopied = self.shape.embeddings if self.trains_all else 0  # the loss casts its own
        return 2 * max(0, self.num_trainable - uncopied)

    def _activations(self) -> int:
        """Return the bytes that the backward pass needs of the forward pass."""
        shape, state = self.shape, self._state_bytes
        # Inner gradients of the layer where the backward pass is, and states on both of its sides.
        passing = 3 * self.itemsize * shape.inner + 2 * state
        # At the end: the last norm, the response's states for the loss, and their gradients.
        ends = 6 * state
        layers = shape.layers * self._layer_bytes_per_token()
        if self.training.gradient_checkpointing:
            layers = shape.layers * state + self._layer_bytes_per_token()
        return self.rows * self.max_length * (layers + passing + ends)

    def _layer_bytes_per_token(self) -> int:
        """Return the bytes that one layer keeps of one token.

        As in Korthikanti et al., arXiv:2205.05198, section 4.1, but for layers as they are now:
        norms in float32, a gated feed-forward block, and attention that keeps queries, keys (as
        many as queries once they are repeated), values and its output in place of its weights.
        """
        shape, size = self.shape, self.itemsize
        # Autocast casts the input of each of five linear layers; in float32 they share two.
        inputs = shape.width * (5 * 2 if size == 2 else 2 * 4)
        # Input of each norm; and its result before the scale, when that is learnt.
        norms = 4 * shape.width * (4 if self.trains_all else 2)
        attended = self.max_length * (self.rows if self.training.batching == "packed" else 1)
        # The mask of which token sees which is kept by every layer, as numbers.
        attention = size * (4 * shape.queries + attended)
        adapters = 0
        if isinstance(self.training.method, LoraMethod):
            adapters = size * self.training.method.r * len(shape.linear_sizes)
        return inputs + norms + attention + 4 * size * shape.inner + adapters

    def _logits(self) -> int:
        """Return the bytes of one chunk of logits and of the output layer's part in the loss."""
        layer = self.vocab_size * self.shape.width if self.trains_all else 0
        # In bfloat16: the layer's copy in it, and one chunk's part of its gradient.
        copies = 2 * layer if self.itemsize == 2 else 0
        if self.holds_logits:
            # What was capped, the response's part, its gradient and that of all: a Gemma 2 took 16
            # bytes for each in float32, 15 in bfloat16.
            return 4 * 4 * self.rows * self.max_length * self.vocab_size + copies
        gradient = 4 * layer + copies
        return self._chunk_bytes() + copies + gradient

    def _chunk_bytes(self) -> int:
        """Return the bytes of one chunk of logits: float32, and what they were made in."""
        tokens = min(self.chunk_tokens, self.rows * self.max_length)
        return tokens * self.vocab_size * (4 if self.itemsize == 4 else 4 + 2)

    def with_training(self, **changes: Any) -> "MemoryPlan":
        """Return the plan with other settings of the training."""
        return dataclasses.replace(self, training=self.training.model_copy(update=changes))

    def with_lora(self) -> "MemoryPlan":
        """Return the plan with adapters at all linear layers of the decoder."""
        method = LoraMethod()
        adapters = self.shape.layers * method.r * sum(map(sum, self.shape.linear_sizes))
        return dataclasses.replace(
            self.with_training(method=method),
            num_parameters=self.num_parameters + adapters,
            num_trainable=adapters,
        )
