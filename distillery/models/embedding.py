"""Texts as vectors: the mean hidden state of an encoder, of length one."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from distillery.models.hardware import resolve_device
from distillery.models.loading import ModelFiles
from distillery.storage.fingerprint import model_identity
from schemas.errors import RecipeError
from schemas.prompt_filters import EmbeddingModel

# Fixed, as padding changes the last bits of a vector.
_BATCH_ROWS = 64

Vectors = npt.NDArray[np.float32]


def embedding_identity(spec: EmbeddingModel) -> str:
    """Return what tells the encoder from others; see :func:`model_identity`."""
    return model_identity(spec.model, spec.revision, role="embedding")


def check_embedding(spec: EmbeddingModel) -> None:
    """Return when the encoder's small files can be read and its device is there.

    Raises:
        RecipeError: The model is not there, or not pinned, or has no tokenizer; or no such device.
    """
    embedding_identity(spec)
    files = ModelFiles(spec.model, spec.revision)
    files.config()
    files.tokenizer()
    resolve_device(spec.device)


class Encoder(NamedTuple):
    """A model that is loaded, with its tokenizer."""

    tokenizer: Any
    model: Any
    max_length: int

    @classmethod
    def load(cls, spec: EmbeddingModel) -> Self:
        """Return the encoder in float32.

        Raises:
            RecipeError: It cannot be loaded, or lacks weights; a pooler's do not count.
        """
        files = ModelFiles(spec.model, spec.revision)
        tokenizer = files.tokenizer()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(tokenizer, files.encoder().to(resolve_device(spec.device)), spec.max_length)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, N x width, each of length one.

        Mean pooling over the tokens, as sentence encoders are trained (Reimers and Gurevych 2019,
        arXiv:1908.10084). Texts of like length share a batch.
        """
        import torch

        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        made = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), _BATCH_ROWS):
            of_batch = order[start : start + _BATCH_ROWS]
            tokens = self.tokenizer(
                [texts[at] for at in of_batch],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.inference_mode():
                hidden_NTD = self.model(**tokens).last_hidden_state
            is_token_NT1 = tokens["attention_mask"].unsqueeze(-1)
            summed_ND = (hidden_NTD * is_token_NT1).sum(dim=1)
            made[of_batch] = torch.nn.functional.normalize(summed_ND, dim=-1).float().cpu().numpy()
        if not np.isfinite(made).all():
            raise RecipeError(
                f"the embedding model {self.model.name_or_path!r} makes vectors that are not "
                "finite. Name another one."
            )
        return made
