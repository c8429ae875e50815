"""Frozen text encoders for POI vectors: texts in, one vector each out.

An encoder is named by `module:function`; the function takes nothing and returns a `TextEncoder`. The default
is a small static sentence encoder, token vectors distilled from a large language model and averaged, whose
weights lie in the installed package: nothing is downloaded when it runs.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from conf.errors import MissingInputError

DEFAULT_ENCODER = "models.text_encoder:load_wordllama"
WORDLLAMA_DIM = 256


class TextEncoder(Protocol):
    """An encoder of texts; equal texts get equal vectors in any batch.

    Attributes:
        name: name with version; stored in every row, since vectors of two encoders must not be mixed.
        dim: length of a vector.
    """

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns unit vectors, (texts, dim); zero for empty texts."""
        ...


class WordLlamaEncoder:
    """WordLlama of 256 dimensions: averaged token vectors of unit length."""

    def __init__(self) -> None:
        try:
            import wordllama
        except ImportError as error:
            raise MissingInputError(
                what="the text encoder wordllama",
                where="the environment",
                needed_by="The job poi_vectors",
                remedy="It is a package of this project: run make setup, or name another encoder: "
                "--set features.text_encoder=MODULE:FUNCTION.",
            ) from error
        # WordLlama's default look-up misses the tokenizer in the package; with the folder it finds both files.
        folder = Path(wordllama.__file__).parent
        self._model = wordllama.WordLlama.load(dim=WORDLLAMA_DIM, cache_dir=folder, disable_download=True)
        self.name, self.dim = f"wordllama-{wordllama.__version__}-{WORDLLAMA_DIM}", WORDLLAMA_DIM

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns unit vectors, (texts, 256); zero for empty texts."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        nonempty = [row for row, text in enumerate(texts) if text and text.strip()]
        if nonempty:
            vectors[nonempty] = self._model.embed([texts[row] for row in nonempty])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def load_wordllama() -> TextEncoder:
    """Returns the default encoder."""
    return WordLlamaEncoder()


def load_encoder(name: str = DEFAULT_ENCODER) -> TextEncoder:
    """Returns the encoder that `module:function` names.

    Raises:
        MissingInputError: there is no such module or function, or the encoder's package is not installed.
    """
    module, _, function = name.partition(":")
    try:
        encoder: TextEncoder = getattr(importlib.import_module(module), function)()
    except (ModuleNotFoundError, AttributeError) as error:
        raise MissingInputError(
            what=f"the text encoder {name}",
            where="settings features.text_encoder",
            needed_by="The job poi_vectors",
            remedy="Name it as module:function, for example " + DEFAULT_ENCODER + ".",
        ) from error
    return encoder
