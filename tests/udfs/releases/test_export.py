"""An exported release: the rows that readers see, and an index that finds the POIs of its own files."""

import json
import sys

import numpy as np
import pyarrow.dataset as ds
import pytest

from conf.errors import MissingInputError, NoReleaseError, SettingsError
from conf.tables import FEATURE_TABLES
from udfs.releases.export import export_index, to_matrix
from udfs.releases.reader import read_release


@pytest.mark.spark
def test_an_export_holds_the_rows_of_its_release_and_no_others(published_twice, tmp_path):
    out = tmp_path / "out"

    summary = published_twice.run("export", None, release=1, out=out, index="none")

    for name in FEATURE_TABLES:
        shown = read_release(None, published_twice.root, name, release=1)
        exported = ds.dataset(out / name).to_table().select(shown.schema.names)
        assert sorted(map(str, exported.to_pylist())) == sorted(map(str, shown.to_pylist()))
    told = json.loads((out / "release.json").read_text())
    assert (told["release_id"], told["rows"]) == (1, summary.notes["rows"])
    published_twice.run("export", None, release=2, out=out, index="none")  # in its place
    assert json.loads((out / "release.json").read_text())["release_id"] == 2


@pytest.mark.operations("7")
@pytest.mark.spark
def test_an_export_of_no_release_or_over_other_files_is_refused(published, tmp_path):
    with pytest.raises(NoReleaseError, match="release 7"):
        published.run("export", None, release=7, out=tmp_path / "out", index="none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")

    with pytest.raises(SettingsError, match="no job wrote"):
        published.run("export", None, release=1, out=tmp_path / "mine", index="none")

    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_without_faiss_the_extra_is_named(monkeypatch, tmp_path):
    from udfs.releases.export import load_faiss

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingInputError, match=r"spacetime-gr\[export\]"):
        load_faiss()


@pytest.fixture
def exported(tmp_path):
    """Vectors of 400 POIs in two files, and of 30 users, as an export writes them."""
    rng = np.random.default_rng(0)
    for name, size in (("poi_embeddings", 400), ("user_embeddings", 30)):
        vectors = rng.normal(size=(size, 8)).astype(np.float32)
        write_vectors(tmp_path / name, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return tmp_path


def write_vectors(folder, vectors):
    """Writes vectors as two Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for number, half in enumerate(np.array_split(vectors, 2)):
        pq.write_table(pa.table({"embedding": list(half)}), folder / f"part-{number}.parquet")


def test_an_exact_index_has_recall_one_and_numbers_vectors_by_row(exported):
    faiss = pytest.importorskip("faiss")

    told = export_index(faiss, exported, "Flat")

    assert (told["vectors"], told["dim"], told["recall_at_10"], told["queries"]) == (400, 8, 1.0, "30 users")
    pois = to_matrix(ds.dataset(exported / "poi_embeddings").to_table()["embedding"])
    _, found = faiss.read_index(str(exported / "poi_embeddings.faiss")).search(pois[[7, 399]], 1)
    assert found.ravel().tolist() == [7, 399]


def test_a_coarse_index_is_told_by_its_recall(exported, monkeypatch):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr("udfs.releases.export.BATCH_ROWS", 64)  # exact search goes over many blocks

    good, coarse = (export_index(faiss, exported, spec)["recall_at_10"] for spec in ("HNSW32,Flat", "PQ2x4"))

    assert good > 0.95 > 0.8 > coarse


def test_an_unknown_kind_of_index_is_refused(exported):
    with pytest.raises(SettingsError, match="--index"):
        export_index(pytest.importorskip("faiss"), exported, "HNSV32")
