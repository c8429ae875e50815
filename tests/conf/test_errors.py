"""What people read when something goes wrong: one golden text per error class, in tests/golden/errors.txt.

A new class needs an example here and its text there; the failing test prints the text to review and paste.
"""

from pathlib import Path

import pytest

from conf import errors
from conf.errors import SpacetimeError

GOLDEN = Path(__file__).parents[1] / "golden" / "errors.txt"
DAY = "2026-01-31"
PATH = "warehouse/artifacts/file"

EXAMPLES: dict[str, dict[str, object]] = {
    "SettingsError": {
        "where": "my.yaml",
        "key": "index.cel_km",
        "problem": "no such key",
        "known": ("cell_km", "max_inner"),
    },
    "JavaMissingError": {"found": "there is no java on PATH and JAVA_HOME is not set"},
    "LocaleError": {"key": "source.path", "path": "d\u00f6rf/actions.json", "encoding": "ANSI_X3.4-1968"},
    "JarsMissingError": {"coordinate": "group:delta:1.0", "folder": ".ivy", "log": ".ivy/resolve.log"},
    "MissingInputError": {
        "what": "the file of check-ins",
        "where": "data/checkins.parquet",
        "needed_by": "The job checkins",
        "remedy": "Check source.path.",
    },
    "CorruptInputError": {"path": PATH, "expected": "Parquet", "cause": "no magic bytes at the end"},
    "SchemaError": {
        "table": "raw_actions",
        "column": "poi_id",
        "expected": "string",
        "found": "no such column",
        "example": "12",
        "remedy": "Add it.",
    },
    "EmptyDeliveryError": {
        "path": "raw_actions",
        "day": DAY,
        "refused": 7,
        "reasons": "missing_user 5, time_zero 2",
    },
    "HiddenInputError": {"path": "in/_b.json"},
    "RowsLostError": {
        "table": "cleaned_actions",
        "day": DAY,
        "rows_in": 100,
        "rows_out": 90,
        "rows_refused": 5,
        "rows_dropped": 2,
    },
    "GateFailedError": {
        "table": "user_embeddings",
        "day": DAY,
        "failures": ("2 vectors are not finite", "1 key twice"),
        "docs": PATH,
    },
    "AuditMissingError": {"day": DAY, "record": PATH, "problem": "there is no record of it"},
    "IndexOrderError": {"day": DAY, "last_day": "2026-02-01"},
    "UnlikelyDayError": {"day": "2062-03-04", "problem": "it lies after today, 2026-03-04 UTC"},
    "IndexFullError": {"day": DAY, "block_id": 7, "num_pois": 4097, "max_inner": 4096},
    "ConflictingWriteError": {"table": "poi_index", "day": DAY, "cause": "concurrent append"},
    "FolderInUseError": {"folder": PATH},
    "TablesInUseError": {"job": "udfs vacuum", "holder": "udfs erase (run erase-1)", "lock": PATH},
    "ContractViolatedError": {"table": "poi_index", "day": DAY, "violation": "block_id >= 0 does not hold"},
    "DuplicateKeyError": {
        "table": "poi_index",
        "key": ("index_version", "poi_id"),
        "example": "(1, 'p1')",
        "num_keys": 3,
    },
    "IndexVersionError": {"model_uri": "models:/spacetime-gr/3", "trained_on": 1, "found": 2},
    "CapacityError": {"model_uri": "models:/spacetime-gr/3", "what": "blocks", "capacity": 512, "found": 513},
    "FingerprintError": {"path": PATH, "expected": "00ff00ff00ff00ff", "found": "11ee11ee11ee11ee"},
    "ReleaseWithdrawnError": {
        "root": "warehouse",
        "release_id": 3,
        "reason": "users were erased from raw_actions",
    },
    "StaleReleaseError": {
        "release_id": 3,
        "day": DAY,
        "published_hours": 2.5,
        "data_hours": 40.25,
        "max_age_hours": 36.0,
    },
    "ReleaseOrderError": {"day": DAY, "problem": "readers see release 3 of 2026-03-02, a newer day"},
    "ReleaseDamagedError": {
        "release_id": 3,
        "table": "user_embeddings",
        "version": 7,
        "problem": "2 files are gone or cut, for example part-0.parquet",
    },
    "DeletionRefusedError": {"table": "poi_index", "version": 7, "files": ("part-0.parquet",), "doomed": 3},
    "ErasureUnfinishedError": {"run_id": "erase-1", "num_users": 2, "plan": PATH},
    "ErasureIncompleteError": {"run_id": "erase-1", "places": ("raw_actions: 2 rows",), "record": PATH},
    "ReleaseSkewError": {"day": DAY, "found": "user_embeddings of model 3, poi_embeddings of model 4"},
    "NoLiftError": {"day": DAY, "reason": "the held-out requests lie on 2 days, and three are needed"},
    "MixedModelsError": {
        "rows_by_model": {"spacetime-gr/3": 10, "spacetime-gr/4": 20},
        "example": "request r1 of model spacetime-gr/3 and request r9 of model spacetime-gr/4",
    },
    "MissingBackfillError": {"model_version": "spacetime-gr/4", "known": ("spacetime-gr/3",)},
    "NoReleaseError": {"root": "warehouse", "wanted": "release 9", "known": (1, 2)},
    "NoTrainingDataError": {
        "table": "pretrain_samples",
        "split": "train",
        "day": DAY,
        "remedy": "Run python -m etl samples first.",
    },
    "DamagedModelError": {
        "model_uri": "models:/spacetime-gr@champion",
        "stage": "sft_ranking",
        "problem": "cut",
    },
    "DamagedCheckpointError": {"path": PATH, "problem": "its checksum does not match"},
    "LossNotFiniteError": {"stage": "pretrain", "step": 120, "batch_file": PATH},
    "PromotionRefusedError": {
        "model_version": "4",
        "reasons": ("hr_at_10 0.21 is below the champion's 0.25",),
    },
}


def error_classes() -> list[type[SpacetimeError]]:
    """Every named error, in the order of conf/errors.py."""
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, SpacetimeError) and kind is not SpacetimeError]


def golden_texts() -> dict[str, str]:
    """The golden file: a line `[Class] exit code`, then the text in one line."""
    lines = [line for line in GOLDEN.read_text().splitlines() if line]
    return dict(zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_error_says_what_where_why_and_what_to_do(kind: type[SpacetimeError]) -> None:
    assert kind.__name__ in EXAMPLES, "a new error class needs an example here and a golden text"

    error = kind(**EXAMPLES[kind.__name__])

    head = f"[{kind.__name__}] {kind.exit_code}"
    assert golden_texts().get(head) == str(error), f"\n{head}\n{error}\n"


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_error_keeps_its_facts_as_attributes(kind: type[SpacetimeError]) -> None:
    facts = EXAMPLES.get(kind.__name__, {})

    error = kind(**facts)

    told = {name: value for name, value in facts.items() if name in vars(error)}
    assert told, "at least one fact can be read by a program"
    assert all(getattr(error, name) == value for name, value in told.items())


def test_golden_file_holds_no_text_of_a_class_that_is_gone() -> None:
    assert set(golden_texts()) == {f"[{kind.__name__}] {kind.exit_code}" for kind in error_classes()}
