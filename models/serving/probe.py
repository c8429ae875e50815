"""A fixed batch through every stage of a bundle: a registered model must still give its recorded answers.

Registration writes the answers into the bundle (`probe.json`). A serving job loads every stage once, before the first
row, and compares. A damaged model is then one named error instead of many failing rows.
"""

import logging

import numpy as np
import pyarrow as pa
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from conf.errors import DamagedCheckpointError, DamagedModelError, FingerprintError, MissingInputError
from conf.files import read_json, write_json
from conf.tokens import ACTION_TYPES, PROFILE_BUCKETS, TokenLayout
from conf.units import MS_PER_HOUR
from models.data.batch import collate_candidates, collate_history, collate_requests
from models.network.decoder import SpacetimeDecoder
from models.serving.bundle import STAGE_FOLDERS, ModelBundle

LOGGER = logging.getLogger(__name__)
PROBE_FILE = "probe.json"
NUM_REQUESTS, NUM_CANDIDATES, NUM_ACTIONS = 4, 6, 12
FIRST_MS = 1_735_689_600_000
DECIMALS = 6
TOLERANCE = 1e-3
"""Absolute and relative tolerance: float32 of another processor differs by less, other weights by more."""
Answers = dict[str, list[float]]


def make_probe(layout: TokenLayout) -> pa.RecordBatch:
    """Builds the fixed batch: requests of users with 1 to `NUM_ACTIONS` past actions, and candidates.

    Ids fit the layout. Numbers come from a multiplicative sequence, since a library may change the stream of a random
    generator.
    """

    def spread(count: int, salt: int, below: int) -> np.ndarray:
        return ((np.arange(1, count + 1) * 2654435761 + salt * 40503) % 2**32 % below).astype(np.int64)

    lengths = np.linspace(1, NUM_ACTIONS, NUM_REQUESTS).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    shown = (np.arange(NUM_REQUESTS + 1) * NUM_CANDIDATES).astype(np.int32)

    def lists(values: np.ndarray, edges: np.ndarray, kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(edges), pa.array(values).cast(kind))

    def about(count: int, edges: np.ndarray, salt: int, names: tuple[str, ...]) -> dict[str, pa.Array]:
        sizes = (layout.num_blocks, layout.max_inner, layout.num_categories)
        ids = [spread(count, salt + number, size) for number, size in enumerate(sizes)]
        places = (120.0 + spread(count, salt + 3, 2_000) / 1e3, 30.0 + spread(count, salt + 4, 2_000) / 1e3)
        kinds = (pa.int32(), pa.int32(), pa.int32(), pa.float32(), pa.float32())
        columns = zip(names, (*ids, *places), kinds, strict=True)
        return {name: lists(values, edges, kind) for name, values, kind in columns}

    total, num_shown = int(lengths.sum()), NUM_REQUESTS * NUM_CANDIDATES
    history = about(total, offsets, 10, ("block_ids", "inner_ids", "category_ids", "poi_lons", "poi_lats"))
    times = np.concatenate(
        [FIRST_MS + np.cumsum(spread(length, 20, 30) + 1) * MS_PER_HOUR for length in lengths]
    )
    last = times[offsets[1:] - 1]
    profiles = [[], [1], [], [PROFILE_BUCKETS]]
    return pa.record_batch(
        {
            "user_id": pa.array([f"probe {number}" for number in range(NUM_REQUESTS)]),
            "seq_len": pa.array(lengths, pa.int32()),
            "profile_ids": pa.array(profiles, pa.list_(pa.int32())),
            "timestamps_ms": lists(times, offsets, pa.int64()),
            "tz_offsets_min": lists(np.full(total, 480), offsets, pa.int32()),
            "user_lons": lists(120.0 + spread(total, 21, 2_000) / 1e3, offsets, pa.float32()),
            "user_lats": lists(30.0 + spread(total, 22, 2_000) / 1e3, offsets, pa.float32()),
            "action_type_ids": lists(spread(total, 23, len(ACTION_TYPES)), offsets, pa.int32()),
            **history,
            **about(num_shown, shown, 30, (
                "candidate_block_ids", "candidate_inner_ids", "candidate_category_ids", "candidate_lons",
                "candidate_lats",
            )),
            "request_ts_ms": pa.array(last + MS_PER_HOUR),
            "tz_offset_min": pa.array(np.full(NUM_REQUESTS, 480), pa.int32()),
            "user_lon": pa.array(120.0 + spread(NUM_REQUESTS, 40, 2_000) / 1e3),
            "user_lat": pa.array(30.0 + spread(NUM_REQUESTS, 41, 2_000) / 1e3),
            "action_type_id": pa.array(spread(NUM_REQUESTS, 42, len(ACTION_TYPES)), pa.int32()),
        }
    )  # fmt: skip


@torch.inference_mode()
def ask_probe(model: SpacetimeDecoder) -> Answers:
    """Returns a stage's answers to the probe: flat user and POI unit vectors and click logits, rounded."""
    rows = make_probe(model.config.layout)
    request, candidates = collate_requests(rows), collate_candidates(rows)
    prefix = model.encode_prefix(collate_history(rows))
    answers = {
        "users": model.user_state(prefix),
        "users_at_request": model.user_state(prefix, request),
        "pois": model.poi_state(candidates),
        "clicks": model.click_logits(model.candidate_states(prefix, request, candidates)),
    }
    return {
        name: np.round(values.flatten().numpy().astype(np.float64), DECIMALS).tolist()
        for name, values in answers.items()
    }


def record_answers(bundle: ModelBundle) -> None:
    """Writes the answers of every stage into the bundle; keeps stored answers that still hold.

    A bundle that cannot answer stores none: the gate or the next load reports the problem.
    """
    path = bundle.folder / PROBE_FILE
    try:
        answers = {stage: ask_probe(bundle.model(stage)) for stage in bundle.stage_names}
    except (DamagedCheckpointError, MissingInputError) as error:
        LOGGER.warning("no probe is kept with %s: %s", bundle.folder, error)
        return
    # This file is part of the bundle's digest, which identifies a registered version: rounding on another
    # processor must not make the same model a new version.
    if path.is_file() and not _describe_difference(
        read_json(path, expected="a model's answers to the probe"), answers
    ):
        return
    write_json(path, answers)


def check_bundle(bundle: ModelBundle, *, uri: str) -> None:
    """Loads every stage once and checks it before serving.

    It checks checksums, names and shapes of the weights, finite weights, the length of vectors, and the answers to the
    probe that were stored at registration (an unregistered bundle has none).

    Raises:
        DamagedModelError: a stage is damaged or gives other answers.
        FingerprintError: a stage was written for another token layout.
    """
    path = bundle.folder / PROBE_FILE
    stored = read_json(path, expected="a model's answers to the probe") if path.is_file() else None
    for stage in bundle.stage_names:
        if stage not in STAGE_FOLDERS:
            known = ", ".join(STAGE_FOLDERS)
            raise DamagedModelError(
                model_uri=uri, stage=stage, problem=f"there is no such stage, only {known}"
            )
        try:
            model = bundle.model(stage)
        except FingerprintError:
            raise
        except (DamagedCheckpointError, MissingInputError) as error:
            raise DamagedModelError(model_uri=uri, stage=stage, problem=str(error).split(". ")[0]) from error
        except (SafetensorError, ValidationError, RuntimeError, ValueError, KeyError, OSError) as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise DamagedModelError(
                model_uri=uri, stage=stage, problem=f"it cannot be loaded ({first})"
            ) from error
        problem = find_problem(model, bundle)
        if problem:
            raise DamagedModelError(model_uri=uri, stage=stage, problem=problem)
        if stored is not None:
            difference = _describe_difference(stored, {stage: ask_probe(model)})
            if difference:
                raise DamagedModelError(model_uri=uri, stage=stage, problem=difference)


def find_problem(model: SpacetimeDecoder, bundle: ModelBundle) -> str:
    """Returns a text on what is wrong with the weights of a stage; empty = nothing."""
    # Buffers are not checked: the centre of a block outside the index is NaN.
    for name, weights in model.named_parameters():
        if not bool(torch.isfinite(weights).all()):
            num_bad = int((~torch.isfinite(weights)).sum())
            return f"{num_bad} of {weights.numel()} weights of {name} are not finite numbers"
    if model.config.layout != bundle.layout:
        return f"it was made for {model.config.layout}, the bundle for {bundle.layout}"
    if model.config.embedding_dim != bundle.embedding_dim:
        return f"its vectors have length {model.config.embedding_dim}, those of the bundle {bundle.embedding_dim}"
    return ""


def _describe_difference(stored: dict[str, Answers], answers_now: dict[str, Answers]) -> str:
    """Returns a text on how answers differ from the stored ones; empty = they agree."""
    for stage, answers in answers_now.items():
        for name, values in answers.items():
            was = stored.get(stage, {}).get(name)
            if was is None or len(was) != len(values):
                return f"its probe answers ({name}) were not stored when it was registered"
            if not np.allclose(was, values, rtol=TOLERANCE, atol=TOLERANCE):
                largest = float(np.max(np.abs(np.subtract(was, values))))
                return f"it answers the probe otherwise than when it was registered ({name} up to {largest:.3g} apart)"
    return ""
