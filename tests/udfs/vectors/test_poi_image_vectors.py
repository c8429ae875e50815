"""Pictures become vectors once; one that cannot costs itself alone, and the POI keeps the vector it has."""

import io
import json
from datetime import timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from conf.settings import FeatureSettings
from models.image_encoder import EdgeColourDescriptor
from tests.udfs.feature_city import DAY_1, DAY_2, slot

DAY_3 = DAY_2 + timedelta(days=1)


def picture(colour: str, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def row(poi_id: str | None, digest: str, image: bytes | None = None, **more: object) -> dict[str, object]:
    return {"poi_id": poi_id, "image": image, "content_sha256": digest, "is_simulated": False, **more}


def set_features(city, **changes: object) -> None:
    features = FeatureSettings.model_validate({**city.settings.features.model_dump(), **changes})
    city.settings = city.settings.model_copy(update={"features": features})


def vectors(city, day=None) -> dict[str, list[float] | None]:
    return {found["poi_id"]: found["vector"] for found in city.read("poi_image_vectors", day)}


def refused(city, day) -> dict[str, str]:
    rows = [
        found for found in city.read("quarantined_rows", day) if found["source_table"] == "raw_poi_images"
    ]
    return {str(json.loads(found["payload"])["poi_id"]): found["reason"] for found in rows}


def test_a_picture_becomes_a_vector_once_and_a_changed_one_again(first_night):
    first_night.deliver(
        DAY_1, raw_poi_images=[row("p0", "a", picture("red")), row(" p1 ", "b", picture("blue"))]
    )
    first_night.run("poi_image_vectors", DAY_1)
    digest = first_night.digest("poi_image_vectors")
    first_night.run("poi_image_vectors", DAY_1)
    assert first_night.digest("poi_image_vectors") == digest

    first_night.deliver(DAY_2, raw_poi_images=[row("p1", "c", picture("green"))])
    summary = first_night.run("poi_image_vectors", DAY_2)

    assert summary.rows_out == 1
    assert set(vectors(first_night, DAY_1)) == {"p0", "p1"}
    expected = EdgeColourDescriptor().encode([Image.new("RGB", (8, 8), "green")])[0]
    assert vectors(first_night, DAY_2) == {"p1": expected.tolist()}
    assert {found["encoder"] for found in first_night.read("poi_image_vectors")} == {
        EdgeColourDescriptor.name
    }


def test_bad_pictures_are_refused_alone_and_each_says_why(first_night, tmp_path):
    set_features(first_night, image_root=str(tmp_path), max_image_mib=1, max_image_megapixels=1)
    (tmp_path / "good.png").write_bytes(picture("red"))
    (tmp_path / "large.png").write_bytes(b"x" * (2 << 20))
    first_night.deliver(
        DAY_1,
        raw_poi_images=[
            row("p0", "0", picture("red")),
            row("p1", "1", picture("red")[:40]),
            row("p2", "2", None, image_uri="good.png"),
            row("p3", "3", None, image_uri="../elsewhere.png"),
            row("p4", "4", None, image_uri="large.png"),
            row("p5", "5", picture("red", (2000, 2000))),
            row("p6", "6", b"x" * (2 << 20)),
            row("p7", "7", None),
            row(None, "8", picture("red")),
            row("NULL", "9", picture("red")),
        ],
    )

    summary = first_night.run("poi_image_vectors", DAY_1)

    found = vectors(first_night, DAY_1)
    assert {poi_id for poi_id, vector in found.items() if vector} == {"p0", "p2"}
    assert found["p0"] == found["p2"]
    assert refused(first_night, DAY_1) == {
        "p1": "image_broken",
        "p3": "image_not_found",
        "p4": "image_too_large",
        "p5": "image_too_large",
        "p6": "image_too_large",
        "p7": "image_missing",
        "None": "image_missing_id",
        "NULL": "image_missing_id",
    }
    assert (summary.rows_in, summary.rows_out, summary.rows_refused) == (10, 2, 8)


def test_a_refused_picture_is_not_tried_again_and_leaves_the_earlier_vector(first_night):
    first_night.deliver(DAY_1, raw_poi_images=[row("p0", "a", picture("red"))])
    first_night.run("poi_image_vectors", DAY_1)
    first_night.deliver(DAY_2, raw_poi_images=[row("p0", "b", b"no picture")])

    assert first_night.run("poi_image_vectors", DAY_2).rows_refused == 1
    assert first_night.run("poi_image_vectors", DAY_3).rows_in == 0

    from models.data.dataset import TableAt
    from models.training.multimodal import read_slot_vectors

    tables = (TableAt(f"{first_night.root}/{name}") for name in ("poi_image_vectors", "poi_index"))
    found = read_slot_vectors(*tables, day=str(DAY_3), index_version=1)
    expected = EdgeColourDescriptor().encode([Image.new("RGB", (8, 8), "red")])[0]
    assert found.vectors_NM.numpy().tolist() == [expected.tolist()]


def test_the_picture_of_a_poi_that_the_index_lacks_waits_for_it(first_night):
    first_night.deliver(DAY_1, raw_poi_images=[row("p8", "a", picture("red"))])
    assert first_night.run("poi_image_vectors", DAY_1).rows_in == 0

    first_night.deliver(DAY_2, poi_index=[slot(8, valid_from=DAY_2, indexed_day=DAY_2)])
    first_night.run("poi_image_vectors", DAY_2)

    assert set(vectors(first_night, DAY_2)) == {"p8"}


def test_given_vectors_are_taken_and_those_of_another_length_or_not_finite_refused(first_night):
    given = {
        "p0": [1.0, 2.0],
        "p1": [3.0, 4.0],
        "p2": [5.0],
        "p3": [np.nan, 1.0],
        "p4": [None, 1.0],
        "p5": None,
    }
    rows = [row(poi_id, poi_id, image_vector=vector) for poi_id, vector in given.items()]
    first_night.deliver(DAY_1, raw_poi_images=rows)
    assert "features.image_encoder=given" in str(
        first_night.run("poi_image_vectors", DAY_1).notes["warnings"]
    )

    set_features(first_night, image_encoder="given")
    first_night.run("poi_image_vectors", DAY_1)

    by_encoder = [found for found in first_night.read("poi_image_vectors") if found["encoder"] == "given-2"]
    assert {found["poi_id"]: found["vector"] for found in by_encoder if found["vector"]} == {
        "p0": [1.0, 2.0],
        "p1": [3.0, 4.0],
    }
    assert refused(first_night, DAY_1) == {
        "p2": "image_vector_invalid",
        "p3": "image_vector_invalid",
        "p4": "image_vector_invalid",
        "p5": "image_missing",
    }


def test_an_encoder_that_fails_on_one_picture_costs_this_picture(first_night, tmp_path, monkeypatch):
    Path(tmp_path / "own_encoder.py").write_text(
        "import numpy as np\n"
        "class Own:\n"
        "    name, dim = 'own-1', 2\n"
        "    def encode(self, images):\n"
        "        colours = [image.getpixel((0, 0)) for image in images]\n"
        "        if (255, 0, 0) in colours:\n"
        "            raise RuntimeError('red')\n"
        "        return np.array([[1.0, np.nan if one == (0, 0, 255) else 2.0] for one in colours])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from udfs.vectors.poi_image_vectors import encode_images

    set_features(first_night, image_encoder="own_encoder:Own")
    import pyarrow as pa

    rows = [
        {"day": DAY_1, "image_uri": None, "image_bytes": 1, **row(name, name, picture(name))}
        for name in ("green", "red", "blue", "black")
    ]
    found = pa.Table.from_batches(
        encode_images(iter(pa.Table.from_pylist(rows).to_batches()), settings=first_night.settings.features)
    )
    assert found["vector"].to_pylist() == [[1.0, 2.0], None, None, [1.0, 2.0]]
    failed = "image_encoder_failed"
    assert found["reason"].to_pylist() == [None, failed, failed, None]


def test_without_any_picture_the_job_makes_an_empty_table(first_night):
    summary = first_night.run("poi_image_vectors", DAY_1)

    assert (summary.rows_in, summary.rows_out) == (0, 0)
    assert vectors(first_night) == {}
