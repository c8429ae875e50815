"""Texts become vectors once; a changed text becomes one again, an unchanged one does not."""

from collections.abc import Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from tests.udfs.feature_city import DAY_1, DAY_2, slot
from udfs.vectors import poi_vectors
from udfs.vectors.poi_vectors import encode_texts, pending_texts


def made(city, *rows: tuple[str, date, str]):
    from pyspark.sql import functions as F

    same = {"encoder": "some", "vector": [1.0], "run_id": "test", "is_simulated": True}
    frame = city.frame(
        "poi_vectors",
        [{"poi_id": poi_id, "day": day, "text_sha256": text, **same} for poi_id, day, text in rows],
    )
    return frame.withColumn("text_sha256", F.sha2("text_sha256", 256))


def pending(city, slots: Sequence[dict], made_before) -> set[str]:
    frame = city.frame("poi_index", slots)
    return {row["poi_id"] for row in pending_texts(frame, made_before, day=DAY_2).collect()}


def test_new_and_changed_texts_are_pending_and_closed_pois_are_not(city):
    slots = [
        slot(0),
        slot(1, text="another text"),
        slot(2),
        slot(3, valid_to=DAY_1),
        slot(4, text="back again"),
    ]
    before = made(
        city,
        ("p0", DAY_1, "POI 0"),
        ("p1", DAY_1, "POI 1"),
        ("p4", date(2026, 1, 1), "back again"),
        ("p4", DAY_1, "POI 4"),
    )

    assert pending(city, slots, before) == {"p1", "p2", "p4"}


def test_a_worker_gives_every_row_the_vector_of_its_own_text(monkeypatch):
    class Lengths:
        name, dim = "lengths", 2

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([[len(text), 1.0] for text in texts])

    monkeypatch.setattr(poi_vectors, "_load_once", lambda name: Lengths())
    rows = {
        "poi_id": ["a", "b"],
        "text": ["xyz", ""],
        "text_sha256": ["1", "2"],
        "is_simulated": [True, False],
    }

    found = pa.Table.from_batches(encode_texts(iter([pa.RecordBatch.from_pydict(rows)]), encoder="lengths"))

    assert found.column_names == list(poi_vectors.EMITTED)
    assert found["vector"].to_pylist() == [[3.0, 1.0], [0.0, 1.0]]
    assert found["is_simulated"].to_pylist() == [True, False]


def test_the_job_makes_each_vector_once_and_a_rerun_makes_the_same_rows(first_night):
    pytest.importorskip("wordllama")
    assert first_night.run("poi_vectors", DAY_1).rows_out == 8
    digest = first_night.digest("poi_vectors")
    first_night.run("poi_vectors", DAY_1)
    assert first_night.digest("poi_vectors") == digest

    changed = slot(2, text="A quiet place", changed_day=DAY_2)
    first_night.deliver(DAY_2, poi_index=[slot(8, valid_from=DAY_2, indexed_day=DAY_2), changed])
    first_night.run("poi_vectors", DAY_2)

    assert [row["poi_id"] for row in first_night.read("poi_vectors", DAY_2)] == ["p2", "p8"]
