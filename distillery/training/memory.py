"""What a training will take of a device's memory, known before it starts, and what to change."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

from distillery.training.batches import micro_batch
from schemas.errors import TrainingError
from schemas.training import LoraMethod, TrainingSpec
from schemas.units import bytes_text

_MOST_PROCESSES = 64
# Products, their sum with the mask and the softmax, in float32, of the layer that is computed.
_MAPS_AT_ONCE = 3
_COMPARED = "layers compared"

Held = Callable[[TrainingSpec, int, int, int], int]
"""Bytes that an objective holds of a micro-batch: see `Objective.held_bytes`."""


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """What of a decoder's configuration its memory depends on."""

    layers: int
    width: int
    queries: int  # width of all query heads together
    keys: int  # width of all key heads together
    inner: int  # width inside the feed-forward block, of all experts that one token goes through
    embeddings: int  # parameters of input embedding and output layer
    # Attention heads whose weights are numbers of their own (`eager`); 0 where none are.
    maps: int = 0

    @classmethod
    def of(cls, config: Any, vocab_size: int) -> Self | None:
        """Return the shape that a transformers configuration describes.

        Where layers differ, all count as the largest. None where the configuration does not say, as
        that of a state-space model without attention heads: only trial steps show what those keep.
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
            maps=heads if getattr(config, "_attn_implementation", None) == "eager" else 0,
        )

    @property
    def linear_sizes(self) -> tuple[tuple[int, int], ...]:
        """Return inputs and outputs of the linear layers of one decoder layer."""
        to_inner, to_width = (self.width, self.inner), (self.inner, self.width)
        projections = ((self.width, out) for out in (self.queries, self.keys, self.keys))
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
    """What the teacher that runs beside the student takes, or all of them do."""

    weight_bytes: int  # in the precision in which they are loaded
    # Of the layer that is being computed; nothing is kept for a backward pass. 0 where the
    # configuration does not tell the shape of a layer: weights are the most of what it takes.
    bytes_per_token: int
    num_models: int = 1
    bytes_per_look: int = 0  # of a token at a token of its row, where attention weights are made

    @classmethod
    def of(cls, *models: Any) -> Self:
        """Return the size of loaded transformers models, which compute one after the other."""
        weights, per_token, per_look = 0, [0], [0]
        for model in models:
            shape = ModelShape.of(model.config, 0)
            numbers = 4 * shape.width + max(3 * shape.inner, 4 * shape.queries) if shape else 0
            weights += sum(p.numel() * p.element_size() for p in model.parameters())
            per_token.append(numbers * model.dtype.itemsize)
            per_look.append(_MAPS_AT_ONCE * 4 * shape.maps if shape else 0)
        return cls(weights, max(per_token), len(models), max(per_look))

    def activation_bytes(self, num_rows: int, num_tokens: int) -> int:
        """Return the bytes of a forward pass over rows of so many tokens each."""
        return num_rows * num_tokens * (self.bytes_per_token + num_tokens * self.bytes_per_look)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What one process of a training takes of its device, bytes; no weights are needed to tell.

    Trained weights and their gradients are float32, and so are AdamW's two states; frozen weights
    are in the precision of the forward pass. Attention is PyTorch's own (SDPA), which keeps no
    attention weights, unless the model computes it step by step (`eager`). A feed-forward block is
    taken to be gated; one that is not takes less. It is what tensors take: within a tenth of the
    measured peak of Llamas of 10 M and 60 M parameters. What an allocator keeps of memory that was
    given back comes on top: on a CPU glibc's was seen to hold half as much again, and with adapters
    and checkpointing, whose tensors are short-lived, two to three times as much.
    """

    shape: ModelShape
    num_parameters: int  # of the student, adapters included
    num_trainable: int  # those among them that are trained
    training: TrainingSpec
    max_length: int  # tokens of the longest sequence
    vocab_size: int  # logits that count
    teacher: TeacherSize | None
    teacher_length: int  # tokens of the longest row as that teacher reads it, with its own prompt
    num_processes: int  # each with a device of its own, or a share of the CPU
    chunk_tokens: int  # response tokens whose logits exist at a time
    holds_logits: bool  # all logits of a forward pass exist at a time, as the student changes them
    sequences: int = 1  # of a row, in one forward pass; each with a loss of its own
    response_length: int = 0  # tokens of the longest response
    num_extra: int = 0  # parameters that the objective learns beside; whole in every process
    held: Held | None = None  # what the objective compares, until the backward pass

    @functools.cached_property
    def parts(self) -> dict[str, int]:
        """Return bytes by part."""
        num_frozen = self.num_parameters - self.num_trainable
        weights = 4 * self.num_trainable + self._frozen_itemsize * num_frozen
        # DDP sums gradients over processes in buckets of its own.
        buckets = 4 * self.num_trainable if self.num_processes > self._share else 0
        parts = {
            "weights": weights // self._share + self._weights_in_use() + 4 * self.num_extra,
            "gradients": self._gradient_bytes + buckets,
            "optimizer": 8 * self.num_trainable // self._share + 8 * self.num_extra,
            "activations": self._activations(),
            "logits": self._logits(),
        }
        if self.held is not None:
            responses = min(self.response_length, self.max_length)
            held = self.held(self.training, self.num_sequences, self.max_length, responses)
            parts |= {_COMPARED: held} if held else {}
        if self.teacher is not None:
            activations = self.teacher.activation_bytes(self.rows, self.teacher_length)
            chunks = self.teacher.num_models * self._chunk_bytes
            parts["teacher"] = self.teacher.weight_bytes + activations + chunks
        return parts

    @property
    def total(self) -> int:
        """Return the most bytes that are held at one time.

        All parts, where gradients of earlier micro-batches wait for the later ones. Otherwise
        gradients come as activations go, and the larger of both counts: at the beginning of the
        backward pass all activations and the loss, at its end all gradients and one layer.
        """
        held = sum(self.parts.values())
        if self.rows * self.num_processes < self.training.batch_size:
            return held
        compared = self.parts.get(_COMPARED, 0)
        at_start = self.parts["activations"] + self.parts["logits"] + compared
        at_end = (
            self._gradient_bytes
            + self.num_sequences * self.max_length * self._layer_bytes_per_token
        )
        return held - self._gradient_bytes - at_start + max(at_start, at_end)

    @property
    def sentence(self) -> str:
        """Return the total and its parts in one line."""
        parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in self.parts.items())
        return f"{bytes_text(self.total)} of memory: {parts}"

    def check(self, available_bytes: int, device_name: str) -> None:
        """Return when it fits into what the device has; processes on a CPU share its memory.

        Raises:
            TrainingError: It does not fit; the message says what to change, and what that takes.
        """
        on_cpu = device_name.startswith("cpu")
        room = available_bytes // self.num_processes if on_cpu else available_bytes
        if self.total <= room:
            return
        largest, size = max(self.parts.items(), key=lambda part: part[1])
        each = f" for each of {self.num_processes} processes" * (on_cpu and self.num_processes > 1)
        raise TrainingError(
            f"training takes about {bytes_text(self.total)} of memory, {bytes_text(size)} of it "
            f"{largest}, but {device_name} has {bytes_text(room)}{each}. "
            + _advice(self, room, on_cpu=on_cpu)
        )

    def with_training(self, **changes: Any) -> Self:
        """Return the estimate with other settings of the training."""
        return dataclasses.replace(self, training=self.training.model_copy(update=changes))

    @property
    def rows(self) -> int:
        """Return the rows of a forward pass."""
        return micro_batch(self.training, self.num_processes)

    @property
    def num_sequences(self) -> int:
        """Return the sequences of a forward pass."""
        return self.rows * self.sequences

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
        """Return the bytes of a weight that is not trained, and of a state between two layers."""
        return 4 if self.trains_all else self.itemsize

    @property
    def _share(self) -> int:
        """Return among how many processes weights, gradients and optimizer states are divided."""
        return self.num_processes if self.training.parallelism == "fsdp2" else 1

    @property
    def _gradient_bytes(self) -> int:
        return 4 * self.num_trainable // self._share + 4 * self.num_extra

    def _weights_in_use(self) -> int:
        """Return the bytes of weights besides those that are held all the time."""
        if self._share > 1:
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
        shape, state = self.shape, self._frozen_itemsize * self.shape.width
        # Inner gradients of the layer where the backward pass is, and states on both of its sides.
        passing = 3 * self.itemsize * shape.inner + 2 * state
        # The weights of that layer's attention, and their gradients.
        passing += _MAPS_AT_ONCE * 4 * shape.maps * self.max_length
        # At the end: the last norm, the response's states for the loss, and their gradients.
        ends = 6 * state
        layers = shape.layers * self._layer_bytes_per_token
        if self.training.gradient_checkpointing:
            layers = shape.layers * state + self._layer_bytes_per_token
        return self.num_sequences * self.max_length * (layers + passing + ends)

    @property
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
        attended = self.max_length * (
            self.num_sequences if self.training.batching == "packed" else 1
        )
        # The mask of which token sees which is kept by every layer, as numbers. Step by step it is
        # the softmax in float32 instead, and what is multiplied with the values.
        of_a_look = shape.maps * (4 if size == 4 else 4 + size) if shape.maps else size
        attention = size * 4 * shape.queries + of_a_look * attended
        adapters = 0
        if isinstance(self.training.method, LoraMethod):
            adapters = size * self.training.method.r * len(shape.linear_sizes)
        return inputs + norms + attention + 4 * size * shape.inner + adapters

    def _logits(self) -> int:
        """Return the bytes of one chunk of logits and of the output layer's part in the loss."""
        # Each loss of a row keeps the layer's gradient until the backward pass.
        layer = self.sequences * self.vocab_size * self.shape.width if self.trains_all else 0
        # In bfloat16: the layer's copy in it, and one chunk's part of its gradient.
        copies = 2 * layer if self.itemsize == 2 else 0
        if self.holds_logits:
            # What was capped, the response's part, its gradient and that of all: a Gemma 2 took 16
            # bytes for each in float32, 15 in bfloat16.
            return 4 * 4 * self.num_sequences * self.max_length * self.vocab_size + copies
        return self._chunk_bytes + 4 * layer + 2 * copies

    @property
    def _chunk_bytes(self) -> int:
        """Return the bytes of one chunk of logits: float32, and what they were made in."""
        tokens = min(self.chunk_tokens, self.num_sequences * self.max_length)
        return tokens * self.vocab_size * (4 if self.itemsize == 4 else 4 + 2)


def _advice(estimate: MemoryEstimate, room: int, *, on_cpu: bool) -> str:
    """Return the first change with which it fits, several where no single one is enough."""
    for what, changed in _changes(estimate, on_cpu=on_cpu):
        if changed.total <= room:
            return f"Set {what}: about {bytes_text(changed.total)}."
    names, smallest = [], estimate
    for what in _TOGETHER:
        changed = dict(_changes(smallest, on_cpu=True)).get(what, smallest)
        if changed.total < smallest.total:
            names.append(what)
            smallest = changed
        if smallest.total <= room:
            together = ", ".join(names[:-1]) + " and " + names[-1]
            return f"Set {together}: about {bytes_text(smallest.total)}."
    for tokens in range(estimate.max_length - 16, 15, -16):
        changed = dataclasses.replace(estimate, max_length=tokens)
        if changed.total <= room:
            return (
                f"Set training.max_length to {tokens}, which leaves longer rows out: about "
                f"{bytes_text(changed.total)}."
            )
    return (
        "Choose a smaller student: with every setting that saves memory this one would still take "
        f"about {bytes_text(smallest.total)}."
    )


# None leaves rows out or needs more devices.
_TOGETHER = (
    "training.gradient_checkpointing to true",
    "training.micro_batch_size to 1",
    "training.dtype to bfloat16",
    "training.method.kind to lora",
)


def _changes(estimate: MemoryEstimate, *, on_cpu: bool) -> Iterator[tuple[str, MemoryEstimate]]:
    """Yield single changes and the estimate with each, the cheapest first."""
    if not estimate.training.gradient_checkpointing:
        yield _TOGETHER[0], estimate.with_training(gradient_checkpointing=True)
    for rows in range(estimate.rows - 1, 0, -1):
        changed = estimate.with_training(micro_batch_size=rows)
        if changed.rows == rows:  # the batch can be made of it
            yield f"training.micro_batch_size to {rows}", changed
    if estimate.itemsize == 4:
        yield _TOGETHER[2], estimate.with_training(dtype="bfloat16")
    if estimate.trains_all:
        method, shape = LoraMethod(), estimate.shape
        adapters = shape.layers * method.r * sum(map(sum, shape.linear_sizes))
        total, lora = estimate.num_parameters + adapters, estimate.with_training(method=method)
        lora = dataclasses.replace(lora, num_parameters=total, num_trainable=adapters)
        yield _TOGETHER[3], lora
    for count in range(max(2, estimate.num_processes), 0 if on_cpu else _MOST_PROCESSES + 1):
        if estimate.training.batch_size % count == 0:
            split = estimate.with_training(parallelism="fsdp2", num_processes=count)
            what = f"training.parallelism to fsdp2 and training.num_processes to {count}"
            yield f"{what}, on as many GPUs", dataclasses.replace(split, num_processes=count)
