"""raw_poi_images -> poi_image_vectors: the picture of every POI as a vector, computed once per new or changed picture.

In: the pictures delivered up to the day, of POIs that are live as of it, and the vectors that this encoder computed on
earlier days. Out: rows of the day for POIs without a vector of their latest picture. A picture that is missing, broken,
too large or out of reach is refused alone (`quarantined_rows`), and the POI keeps the vector it has. The encoder is
frozen and pluggable (setting `features.image_encoder`); with `given` the vectors of the catalogue are taken.
Post-training fuses the vectors (`models.training.multimodal`). Run it before a training, with
`python -m udfs poi_image_vectors --day D`; it needs no model.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np
import pyarrow as pa
from PIL.Image import Image
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from conf.cli import JobContext, JobSummary
from conf.settings import FeatureSettings
from conf.tables import POI_IMAGE_VECTORS, QUARANTINED_ROWS
from etl.columns.poi_slots import is_live, keep_known
from etl.columns.refusal import is_empty, is_placeholder, trimmed
from etl.jobs.runner import JobRun
from etl.spark.session import compute_once, open_session
from models.image_encoder import ImageEncoder, TooManyPixelsError, decode_image, load_image_encoder
from udfs.features.isolation import MAX_ERROR_CHARS, RowFailure, run_isolated
from udfs.features.outcomes import Refusal, build_refused, outcome_schema, vector_column, with_refusals
from udfs.vectors.image_files import ImageRefusedError, ImageRoot, open_root

EMITTED = ("poi_id", "content_sha256", "vector", "is_simulated")
GIVEN = "given"
PAYLOAD = ("day", "poi_id", "image_uri", "content_sha256", "image_bytes")
"""What the quarantine keeps of a picture."""
Row = dict[str, object]
ROWS_PER_BATCH = 16
"""Pictures per Arrow batch: each may hold `features.max_image_mib`."""


def run_poi_image_vectors(context: JobContext) -> JobSummary:
    """Computes the vectors of the day.

    Raises:
        MissingInputError: there is no index, or no such encoder.
    """
    settings = context.settings.features
    spark = open_session(context.settings, f"spacetime-gr {context.job} {context.day}")
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", ROWS_PER_BATCH)
    run = JobRun(context, spark)
    delivered = run.read_or_empty("raw_poi_images").where(F.col("day") <= context.day)
    images = delivered.withColumn("poi_id", trimmed("poi_id"))
    slots = keep_known(
        run.read("poi_index", made_by="poi_index"),
        day=context.day,
        index_version=context.settings.index.version,
    )
    live = slots.where(is_live(F.lit(context.day))).select("poi_id").distinct()
    vectors = run.read_or_empty("poi_image_vectors").where(F.col("day") < context.day)
    dim = _usual_length(images) if settings.image_encoder == GIVEN else 0
    name = _name_encoder(settings, dim)  # on the driver too: a wrong name fails before a task starts
    pending = pending_images(images, vectors.where(F.col("encoder") == name), live)
    todo = bound_images(pending, max_bytes=settings.max_image_mib << 20)
    encode = (
        partial(check_vectors, dim=dim)
        if settings.image_encoder == GIVEN
        else partial(encode_images, settings=settings)
    )
    outcomes = compute_once(todo.mapInArrow(encode, outcome_schema(POI_IMAGE_VECTORS, EMITTED)))
    nameless = _refuse_nameless(delivered.where(F.col("day") == context.day), outcomes.schema)
    with run.step("count"):
        counted = outcomes.unionByName(nameless).groupBy("reason").count().collect()
    reasons = {row["reason"]: row["count"] for row in counted}
    run.summary.rows_out = reasons.pop(None, 0)
    run.summary.rows_refused = sum(reasons.values())
    run.summary.rows_in = run.summary.rows_out + run.summary.rows_refused
    run.summary.notes |= {"encoder": name, "reasons": reasons, "warnings": _warn(images, settings)}
    stamped = outcomes.withColumns(
        {"day": F.lit(context.day), "encoder": F.lit(name), "run_id": F.lit(context.run_id)}
    )
    run.replace(stamped.select(*POI_IMAGE_VECTORS.column_names), "poi_image_vectors")
    refused = build_refused(outcomes.unionByName(nameless), day=context.day, source_table="raw_poi_images")
    run.replace(refused, QUARANTINED_ROWS.name, where="source_table = 'raw_poi_images'")
    return run.summary


def pending_images(images: DataFrame, encoded: DataFrame, live: DataFrame) -> DataFrame:
    """Finds the live POIs whose latest picture has no vector yet and was not refused.

    Of several pictures that one delivery brings for a POI, the one with the largest digest counts.

    Args:
        images: rows of `raw_poi_images` with trimmed ids.
        encoded: rows of `poi_image_vectors` of one encoder that count as done.
        live: poi_id of the POIs that count. Pictures of others wait until the index has them.

    Returns:
        Columns of `raw_poi_images`, one row per POI.
    """
    keys = images.select("poi_id", "day", "content_sha256").join(live, "poi_id", "left_semi")
    newest = keys.groupBy("poi_id").agg(F.max(F.struct("day", "content_sha256")).alias("last"))
    done = encoded.groupBy("poi_id").agg(F.max_by("content_sha256", "day").alias("done_sha256"))
    latest = newest.select("poi_id", "last.day", "last.content_sha256").join(done, "poi_id", "left")
    todo = latest.where(~F.col("done_sha256").eqNullSafe(F.col("content_sha256"))).drop("done_sha256")
    # Rows with one digest hold one picture, so that either may stand for both.
    return images.join(todo, ["poi_id", "day", "content_sha256"]).dropDuplicates(["poi_id"])


def bound_images(images: DataFrame, *, max_bytes: int) -> DataFrame:
    """Adds `image_bytes`, and leaves out the bytes of pictures that are too large: they never reach a worker."""
    size = F.coalesce(F.length("image"), F.lit(0))
    return images.withColumns({"image_bytes": size, "image": F.when(size <= max_bytes, F.col("image"))})


def encode_images(
    batches: Iterator[pa.RecordBatch], *, settings: FeatureSettings
) -> Iterator[pa.RecordBatch]:
    """Encodes pictures in a worker, which loads the encoder once; a picture that fails costs its own row alone.

    Args:
        batches: rows of `bound_images`.
        settings: the encoder, and the bounds of pictures.

    Returns:
        Batches of `EMITTED` and the refusal columns.
    """
    encoder = _load_once(settings.image_encoder)
    for batch in batches:
        rows = batch.to_pylist()
        yield _outcome(batch, rows, _encode([_decode(row, settings) for row in rows], encoder))


def check_vectors(batches: Iterator[pa.RecordBatch], *, dim: int) -> Iterator[pa.RecordBatch]:
    """Takes the vectors that the catalogue brought; those of another length or not finite are refused."""
    for batch in batches:
        rows = batch.to_pylist()
        yield _outcome(batch, rows, [_check(row["image_vector"], dim) for row in rows])


def _decode(row: Row, settings: FeatureSettings) -> Image | ImageRefusedError:
    """Returns a picture, or why there is none."""
    try:
        content = _read(row, ImageRoot(settings.image_root, settings.max_image_mib << 20))
        return decode_image(content, max_pixels=settings.max_image_megapixels * 10**6)
    except ImageRefusedError as refusal:
        return refusal
    except TooManyPixelsError as error:
        return ImageRefusedError("image_too_large", str(error))
    except (
        Exception
    ) as error:  # bytes from outside: Pillow's decoders raise many kinds, none of which may stop others
        return ImageRefusedError("image_broken", f"{type(error).__name__}: {error}")


def _encode(
    decoded: Sequence[Image | ImageRefusedError], encoder: ImageEncoder
) -> list[np.ndarray | ImageRefusedError]:
    """Returns the vectors of pictures, encoded together; a picture on which the encoder fails is refused."""

    def compute(part: pa.RecordBatch) -> list[np.ndarray | RowFailure]:
        vectors = np.asarray(encoder.encode([images[number] for number in part.column("number").to_pylist()]))
        if vectors.shape != (part.num_rows, encoder.dim):
            raise ValueError(f"shape {vectors.shape}, not ({part.num_rows}, {encoder.dim})")
        return [one if np.isfinite(one).all() else RowFailure("not finite") for one in vectors]

    images = [one for one in decoded if not isinstance(one, ImageRefusedError)]
    numbers = pa.RecordBatch.from_pydict({"number": pa.array(range(len(images)), pa.int64())})
    encoded = iter(run_isolated(compute, numbers, micro_batch=ROWS_PER_BATCH))
    results: list[np.ndarray | ImageRefusedError] = []
    for one in decoded:
        found = one if isinstance(one, ImageRefusedError) else next(encoded)
        if isinstance(found, RowFailure):
            found = ImageRefusedError("image_encoder_failed", found.error)
        results.append(found)
    return results


def _read(row: Row, root: ImageRoot) -> bytes:
    """Returns the bytes of a picture: those of the row, else those that its URI names."""
    content, uri, size = row["image"], row["image_uri"], row["image_bytes"]
    if isinstance(content, bytes) and content:
        return content
    if size:
        raise ImageRefusedError("image_too_large", f"{size} bytes")
    if isinstance(uri, str) and uri.strip():
        return root.read(uri.strip())
    raise ImageRefusedError("image_missing", "neither image nor image_uri")


def _check(values: object, dim: int) -> np.ndarray | ImageRefusedError:
    """Returns a given vector, or why it is refused."""
    if not isinstance(values, list) or not values:
        return ImageRefusedError("image_missing", "no image_vector")
    if len(values) != dim:
        return ImageRefusedError("image_vector_invalid", f"{len(values)} numbers, others have {dim}")
    vector = np.array([np.nan if value is None else value for value in values], dtype=np.float32)
    if not np.isfinite(vector).all():
        return ImageRefusedError("image_vector_invalid", "a number is null, NaN or infinite")
    return vector


def _outcome(
    batch: pa.RecordBatch, rows: Sequence[Row], results: Sequence[np.ndarray | ImageRefusedError]
) -> pa.RecordBatch:
    vectors = [RowFailure(str(one)) if isinstance(one, ImageRefusedError) else one for one in results]
    refusals: list[Refusal] = [
        (one.reason, str(one)[:MAX_ERROR_CHARS], _payload(row))
        if isinstance(one, ImageRefusedError)
        else (None, None, None)
        for row, one in zip(rows, results, strict=True)
    ]
    column = vector_column(vectors)
    return with_refusals(
        {name: column if name == "vector" else batch.column(name) for name in EMITTED}, refusals
    )


def _payload(row: Row) -> str:
    """Returns a refused row as JSON; the picture itself stays in `raw_poi_images`, under its digest."""
    return json.dumps({name: row[name] for name in PAYLOAD}, default=str, ensure_ascii=False)


def _refuse_nameless(delivered: DataFrame, schema: StructType) -> DataFrame:
    """Returns refused outcomes for the day's pictures without a POI."""
    poi_id = trimmed("poi_id")
    kept = F.struct(*PAYLOAD)
    outcome = {
        "poi_id": F.col("poi_id"),
        "content_sha256": F.col("content_sha256"),
        "vector": F.lit(None),
        "is_simulated": F.col("is_simulated"),
        "reason": F.lit("image_missing_id"),
        "detail": F.concat(F.lit("poi_id="), F.coalesce("poi_id", F.lit("null"))),
        "payload": F.to_json(kept, {"ignoreNullFields": "false"}),
    }
    has_none: Column = is_empty(poi_id) | F.coalesce(is_placeholder(poi_id), F.lit(False))
    nameless = bound_images(delivered.where(has_none), max_bytes=0)
    return nameless.select(*(outcome[field.name].cast(field.dataType).alias(field.name) for field in schema))


def _usual_length(images: DataFrame) -> int:
    """Returns the length of most given vectors; the smaller one if two are equally frequent; 0 = there are none."""
    sizes = images.where(F.size("image_vector") > 0).groupBy(F.size("image_vector").alias("dim")).count()
    row = sizes.orderBy(F.desc("count"), "dim").first()
    return 0 if row is None else int(row["dim"])


def _name_encoder(settings: FeatureSettings, dim: int) -> str:
    if settings.image_encoder == GIVEN:
        return f"{GIVEN}-{dim}"
    if settings.image_root:
        open_root(settings.image_root)
    return load_image_encoder(settings.image_encoder).name


def _warn(images: DataFrame, settings: FeatureSettings) -> list[str]:
    """Warns of ready vectors that are not used."""
    if settings.image_encoder == GIVEN:
        return []
    unused = F.col("image").isNull() & F.col("image_uri").isNull() & (F.size("image_vector") > 0)
    count = images.where(unused).count()
    if not count:
        return []
    return [
        f"{count} rows of raw_poi_images bring a ready vector and no picture: to use them, set "
        f"features.image_encoder={GIVEN}"
    ]


@cache
def _load_once(name: str) -> ImageEncoder:
    return load_image_encoder(name)
