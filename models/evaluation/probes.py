"""Probes: how well a linear classifier predicts classes from frozen vectors of pre-training.

In a simulated city every POI but homes and offices has one attribute, which decides clicks and which only its text
names. Pre-training sees neither texts nor clicks: how well a linear classifier reads the attribute off the vectors of
POIs says how much of it was learned from visits alone.
"""

# Shape letters: N = POIs, D = width of vectors.

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.data.arrays import Float64Array
from models.evaluation.release_split import draw_evenly
from models.network.decoder import SpacetimeDecoder
from models.serving.inference import collate_pois

FOLDS = 5
MAX_POIS = 5_000
"""POIs that are probed, evenly drawn: more make the figure no better."""
STRENGTH = 0.05
"""Inverse strength of the classifier's regularisation: there are few POIs for each dimension."""
ATTRIBUTE = re.compile(r"\bA ([a-z ]+?) place:")
"""How a simulated city's texts name the attribute (`etl/city/pois.py`)."""


def find_attributes(texts: Sequence[str]) -> NDArray[np.str_]:
    """Returns the attribute that each text of a simulated city names, (N,); "" = none."""
    found = (ATTRIBUTE.search(text or "") for text in texts)
    return np.array([match.group(1) if match else "" for match in found], dtype=np.str_)


def probe_classes(vectors: Float64Array, classes: NDArray[np.str_]) -> float:
    """Returns the share of rows whose class a linear classifier of the other rows reads off their vector.

    Args:
        vectors: (rows, D).
        classes: (rows,).

    Returns:
        Accuracy of predictions across folds; nan if a class has fewer rows than there are folds.
    """
    # Takes a second, which commands that probe nothing need not wait.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    _, counts = np.unique(classes, return_counts=True)
    if len(counts) < 2 or counts.min() < FOLDS:
        return float("nan")
    scaled = (vectors - vectors.mean(axis=0)) / np.maximum(vectors.std(axis=0), 1e-9)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = LogisticRegression(C=STRENGTH, max_iter=500)
    return float((cross_val_predict(model, scaled, classes, cv=folds) == classes).mean())


@torch.no_grad()
def embed_pois(decoder: SpacetimeDecoder, pois: pa.RecordBatch) -> Float64Array:
    """Returns the input embeddings of POIs as the interest match compares them, (N, D); columns as in `poi_index`."""
    embedded_N1D = decoder.trunk.embed_candidates(collate_pois(pois))
    if decoder.interest_match is not None:
        embedded_N1D = decoder.interest_match.norm(embedded_N1D)
    return embedded_N1D[:, 0].double().numpy()


def probe_attribute(decoder: SpacetimeDecoder, index: pa.Table) -> float:
    """Returns how well vectors of a simulated city's POIs predict their attribute; nan = there is none.

    Args:
        decoder: a pre-trained decoder in evaluation mode.
        index: rows of `poi_index`, with `text`.
    """
    index = index.take(draw_evenly(index.num_rows, MAX_POIS))
    attributes = find_attributes(index["text"].to_pylist())
    has_one = attributes != ""
    pois = index.drop_columns("text").filter(pa.array(has_one)).combine_chunks()
    return (
        probe_classes(embed_pois(decoder, pois.to_batches()[0]), attributes[has_one])
        if has_one.any()
        else np.nan
    )
