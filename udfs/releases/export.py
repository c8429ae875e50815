"""One release -> files that need no Delta: Parquet of the four feature tables, a FAISS index of the POI vectors.

    OUT/release.json            the release, rows, the index and its recall
    OUT/user_embeddings/        and poi_embeddings, ranking_scores, poi_candidates: Parquet as `read_release` shows it
    OUT/poi_embeddings.faiss    inner product over the vectors; the number of a vector is its row in
    OUT/poi_embeddings/         (sorted by poi_id, files in the order of their names)

The index is built from the files, so it cannot belong to another release. Its recall is measured against exact search
with users as queries: the share of the 10 best POIs that it returns. Run it with `python -m udfs export --release N
--out FOLDER`; FAISS is the extra `export`.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, SettingsError
from conf.out_folder import check_out_folder, fill_out_folder
from conf.releases import Release, find_release
from conf.tables import FEATURE_TABLES, TABLES
from etl.spark.session import open_session
from models.data.arrays import Float32Array
from udfs.releases.reader import read_release
from udfs.releases.release_log import load_releases

LOGGER = logging.getLogger(__name__)
DESCRIPTION, INDEX_FILE = "release.json", "poi_embeddings.faiss"
SEARCH_BREADTH = 128
"""Nodes that HNSW keeps open, when it is built and when it is searched."""
NUM_TRAINED, NUM_QUERIES, TOP_K = 100_000, 1_000, 10
BATCH_ROWS = 65_536


def run_export(context: JobContext) -> JobSummary:
    """Exports a release; a failed run leaves the folder as it was.

    Raises:
        NoReleaseError: there is no such release.
        MissingInputError: FAISS is not installed.
        SettingsError: the folder holds other files, or FAISS does not know such an index.
    """
    out, spec = context.options.out, context.options.index
    check_out_folder(out)
    faiss = None if spec == "none" else load_faiss()
    spark = open_session(context.settings, "spacetime-gr export")
    root = context.settings.storage.root
    # The release is resolved once: one published meanwhile must not be mixed in.
    release = find_release(load_releases(spark, root), root, context.options.release)
    with fill_out_folder(out, "export") as work:
        notes, steps = write_export(spark, context, release, work, faiss)
    rows = notes["rows"]
    total = sum(rows.values())
    return JobSummary(rows_in=total, rows_out=total, notes=notes, steps=steps)


def write_export(
    spark: SparkSession, context: JobContext, release: Release, folder: Path, faiss: Any
) -> tuple[dict[str, Any], dict[str, float]]:
    """Writes a release to an empty folder; without the index if `faiss` is None.

    Returns:
        The content of `release.json` in addition to the release, and seconds by step.
    """
    rows, steps = {}, {}
    for name in FEATURE_TABLES:
        started = time.perf_counter()
        frame = read_release(spark, context.settings.storage.root, name, release=release.release_id)
        key = [column for column in TABLES[name].key if column not in ("day", "model_version")]
        frame.orderBy(*key).write.parquet(str((folder / name).absolute()))
        rows[name], steps[name] = ds.dataset(folder / name).count_rows(), time.perf_counter() - started
    notes: dict[str, Any] = {
        "release_id": release.release_id,
        "model_version": release.model_version,
        "rows": rows,
    }
    if faiss is not None:
        started = time.perf_counter()
        notes["index"] = export_index(faiss, folder, context.options.index)
        steps["index"] = time.perf_counter() - started
    described = json.dumps({**asdict(release), **notes}, indent=2, sort_keys=True, default=str)
    (folder / DESCRIPTION).write_text(described + "\n")
    return notes, steps


def load_faiss() -> ModuleType:
    """Imports FAISS.

    Raises:
        MissingInputError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingInputError(
            what="the package faiss-cpu",
            where="this environment",
            needed_by="The job export",
            remedy="Install the extra export (pip install 'spacetime-gr[export]'), or give --index none.",
        ) from error
    return faiss


def export_index(faiss: Any, folder: Path, spec: str) -> dict[str, object]:
    """Builds the index of the exported POI vectors, writes it, and measures its recall.

    Args:
        faiss: the module.
        folder: with the exported tables.
        spec: index factory string, for example `HNSW32,Flat` or `IVF4096,PQ32`.

    Returns:
        The entry for `release.json` and the summary: kind, vectors, their length, recall@10 and queries.

    Raises:
        SettingsError: FAISS does not know such an index.
    """
    pois = ds.dataset(folder / "poi_embeddings")
    first = pois.head(NUM_TRAINED, columns=["embedding"])
    if not len(first):
        return {"spec": spec, "vectors": 0}
    sample = to_matrix(first["embedding"])
    try:
        index = faiss.index_factory(sample.shape[1], spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise SettingsError(
            where="the command line", key="--index", problem=str(error).splitlines()[-1]
        ) from error
    if hasattr(index, "hnsw"):
        index.hnsw.efConstruction = index.hnsw.efSearch = SEARCH_BREADTH
    index.train(sample)
    exact = faiss.IndexFlatIP(sample.shape[1])
    queries, query_kind = _sample_queries(folder, sample)
    best = _Best(len(queries), min(TOP_K, pois.count_rows()))
    for vectors in read_vectors(pois):
        index.add(vectors)
        exact.reset()
        exact.add(vectors)
        best.merge(*exact.search(queries, min(TOP_K, len(vectors))), first=index.ntotal - len(vectors))
    _, retrieved = index.search(queries, best.ids.shape[1])
    faiss.write_index(index, str(folder / INDEX_FILE))
    recall = np.mean([np.isin(ids, row).mean() for ids, row in zip(best.ids, retrieved, strict=True)])
    LOGGER.info("%s over %d vectors: recall@%d %.4f", spec, index.ntotal, TOP_K, recall)
    return {
        "spec": spec, "vectors": index.ntotal, "dim": sample.shape[1], "metric": "inner product",
        "recall_at_10": round(float(recall), 4), "queries": f"{len(queries)} {query_kind}",
    }  # fmt: skip


def read_vectors(table: ds.Dataset) -> Iterator[Float32Array]:
    """Yields the vectors of an exported table, (rows, E), in the order of its rows."""
    for batch in table.to_batches(columns=["embedding"], batch_size=BATCH_ROWS):
        if batch.num_rows:
            yield to_matrix(batch.column("embedding"))


def to_matrix(column: pa.Array | pa.ChunkedArray) -> Float32Array:
    """Returns vectors of equal length as a matrix, (rows, E)."""
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.ascontiguousarray(flat.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(
        len(flat), -1
    )


class _Best:
    """Collects the exact best vectors of each query, one block of vectors at a time, to bound memory."""

    def __init__(self, num_queries: int, top_k: int) -> None:
        self.scores = np.full((num_queries, top_k), -np.inf, np.float32)
        self.ids = np.full((num_queries, top_k), -1, np.int64)

    def merge(self, scores: Float32Array, ids: NDArray[np.int64], *, first: int) -> None:
        """Merges in the best of a block whose first vector has the number `first`."""
        scores, ids = np.hstack([self.scores, scores]), np.hstack([self.ids, ids + first])
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.ids.shape[1]]
        self.scores, self.ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def _sample_queries(folder: Path, pois: Float32Array) -> tuple[Float32Array, str]:
    """Returns the vectors of users, since users query the index; those of POIs if there are no users."""
    users = ds.dataset(folder / "user_embeddings").head(NUM_QUERIES, columns=["embedding"])
    return (to_matrix(users["embedding"]), "users") if len(users) else (pois[:NUM_QUERIES], "POIs")
