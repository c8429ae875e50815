"""Every exception that the project raises on purpose.

Each class takes facts, keeps them as attributes, and says in this order: what happened, where, why it matters, what
to do. `exit_code` is what the command line returns: 2 wrong usage, settings or input, 3 a data gate failed,
4 versions that do not fit each other, 5 another run was in the way, 1 anything else. Standard library only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path


class SpacetimeError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


# --- usage, settings, machine -----------------------------------------------------------------------------------------


class SettingsError(SpacetimeError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2

    def __init__(self, *, where: str, key: str, problem: str, known: Sequence[str] = ()) -> None:
        self.where, self.key, self.problem = where, key, problem
        hint = f" Known keys here: {', '.join(known)}." if known else ""
        super().__init__(
            f"setting {key!r} in {where} cannot be used: {problem}. Nothing was run, since a setting that is not "
            f"understood would silently change the tables.{hint} python -m conf.settings prints every key, its "
            "default and unit."
        )


class JavaMissingError(SpacetimeError):
    """Spark needs a JDK 17 or 21 and none was found."""

    exit_code = 2

    def __init__(self, *, found: str) -> None:
        self.found = found
        super().__init__(
            f"Spark needs a Java 17 or 21 runtime, but {found}. Without it no table can be read or written. Install "
            "one (Debian and Ubuntu: apt-get install openjdk-17-jdk-headless; macOS: brew install openjdk@17) and put "
            "it on PATH, or point JAVA_HOME at it."
        )


class LocaleError(SpacetimeError):
    """The running JVM cannot name a file whose name holds letters beyond its locale."""

    exit_code = 2

    def __init__(self, *, key: str, path: str, encoding: str) -> None:
        self.key, self.path, self.encoding = key, path, encoding
        super().__init__(
            f"setting {key!r} names {path!r}, but Spark's Java runs in a locale whose file names are {encoding}, which "
            "has not all of these letters. The file would not be found, or another one written, so nothing was run. "
            "Start the command in a UTF-8 locale (export LC_ALL=C.UTF-8), or use a path of ASCII letters."
        )


class JarsMissingError(SpacetimeError):
    """Jars that Spark needs are not cached and could not be fetched."""

    exit_code = 2

    def __init__(self, *, coordinate: str, folder: str | Path, log: str | Path) -> None:
        self.coordinate, self.folder, self.log = coordinate, str(folder), str(log)
        super().__init__(
            f"The jars of {coordinate} are not in {folder} and could not be fetched. Without them no session that "
            "needs them can start, and without Delta's no table can be read. The resolver's messages are in "
            f"{log}. They are fetched once from a Maven repository: run the command again where one can be reached, or "
            "copy the folder from a machine that has it."
        )


# --- input ------------------------------------------------------------------------------------------------------------


class MissingInputError(SpacetimeError):
    """A file or a table that a job reads is not there."""

    exit_code = 2

    def __init__(self, *, what: str, where: str, needed_by: str, remedy: str) -> None:
        self.what, self.where, self.needed_by = what, where, needed_by
        super().__init__(f"{what} was not found at {where}. {needed_by} reads it and wrote nothing. {remedy}")


class CorruptInputError(SpacetimeError):
    """A file exists and cannot be read as what it should be."""

    exit_code = 2

    def __init__(self, *, path: str, expected: str, cause: str) -> None:
        self.path, self.expected, self.cause = path, expected, cause
        super().__init__(
            f"{path} cannot be read as {expected}: {cause}. Nothing was written, since a part of a file would pass for "
            "the whole. Fetch the file again and compare its checksum, then rerun the same command."
        )


class EmptyDeliveryError(SpacetimeError):
    """A source holds no record, or not one of its records was accepted."""

    exit_code = 3

    def __init__(self, *, path: str, day: str, refused: int = 0, reasons: str = "") -> None:
        self.path, self.day, self.refused, self.reasons = path, day, refused, reasons
        what = (
            f"all {refused} rows delivered on {day} were refused ({reasons})"
            if refused
            else f"{path} holds no record for {day}"
        )
        why = (
            "They are in quarantined_rows with a reason each; look at a payload there, repair the export or the "
            "reader's settings, and run the day again."
            if refused
            else "Nothing was written. Check source.path and whether the export has finished, then run the day again."
        )
        super().__init__(
            f"{what}. A night without a single action would leave all features as they were and look like a good one. "
            f"{why}"
        )


class HiddenInputError(SpacetimeError):
    """A file named by hand has a name that Spark leaves out."""

    exit_code = 2

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is there, but Spark leaves out files whose names begin with '_' or '.' (or end with ._COPYING_), "
            "so no row of it would be read and an empty delivery would pass for a delivery. Nothing was written. Give "
            "the file another name, or finish copying it, and run the same command again."
        )


class SchemaError(SpacetimeError):
    """A delivered file or frame lacks a column or has it in a type that cannot be converted."""

    exit_code = 3

    def __init__(
        self, *, table: str, column: str, expected: str, found: str, remedy: str, example: str = ""
    ) -> None:
        self.table, self.column, self.expected, self.found = table, column, expected, found
        self.example = example
        shown = f", for example {example}" if example else ""
        super().__init__(
            f"{table} should have column {column!r} of type {expected}, but found {found}{shown}. Rows read without it "
            f"would all be refused or, worse, mean something else, so nothing was written. {remedy}"
        )


# --- data gates -------------------------------------------------------------------------------------------------------


class RowsLostError(SpacetimeError):
    """Rows in are not rows out + refused + duplicates dropped."""

    exit_code = 3

    def __init__(
        self, *, table: str, day: str, rows_in: int, rows_out: int, rows_refused: int, rows_dropped: int
    ) -> None:
        self.rows_in, self.rows_out, self.rows_refused, self.rows_dropped = (
            rows_in,
            rows_out,
            rows_refused,
            rows_dropped,
        )
        difference = rows_in - rows_out - rows_refused - rows_dropped
        super().__init__(
            f"{table} on {day} does not add up: {rows_in} rows in, {rows_out} accepted, {rows_refused} quarantined, "
            f"{rows_dropped} exact duplicates dropped, so {difference} are unexplained. Rows that vanish bias every "
            "feature made from them, so nothing was committed. Rerun the job; if it persists the input table changed "
            "while it was read."
        )


class GateFailedError(SpacetimeError):
    """An audit found what must not be published."""

    exit_code = 3

    def __init__(self, *, table: str, day: str, failures: Sequence[str], docs: str | Path) -> None:
        self.table, self.day, self.failures = table, day, tuple(failures)
        listed = "; ".join(failures)
        super().__init__(
            f"the audit of {table} for {day} failed: {listed}. Nothing was published and readers still see the last "
            f"release. Look at the failing rows in the Data Docs ({docs}), correct the input or the job, and rerun "
            "the day."
        )


class AuditMissingError(SpacetimeError):
    """A night is to be published that no passed audit vouches for."""

    exit_code = 3

    def __init__(self, *, day: str, record: str | Path, problem: str) -> None:
        self.day, self.record, self.problem = day, str(record), problem
        super().__init__(
            f"the feature tables of {day} cannot be published: {problem} (record {record}). A release shows "
            "exactly what an audit has looked at, so nothing was published and readers still see the last release. Run "
            f"python -m udfs audit --day {day}, then publish again."
        )


class IndexOrderError(SpacetimeError):
    """The index is asked to take in POIs of a day before one that it has already indexed."""

    exit_code = 3

    def __init__(self, *, day: str, last_day: str, source: str = "SOURCE") -> None:
        self.day, self.last_day, self.source = day, last_day, source
        super().__init__(
            f"poi_index cannot index {day}: it already holds {last_day}. Ids are given in order of first sight, so an "
            f"earlier day indexed later would get other ids than a rebuild; nothing was written. Run the night of the "
            f"last day again, or the next one: python -m etl night --source {source} --day {last_day} takes in "
            f"what has not been delivered yet, the rows of {day} among it. To compute {day} again from its raw "
            f"rows, run python -m etl clean_actions --day {day}, then python -m etl action_sequences --day {day}."
        )


class UnlikelyDayError(SpacetimeError):
    """The day of a delivery is implausible."""

    exit_code = 2

    def __init__(self, *, day: str, problem: str) -> None:
        self.day, self.problem = day, problem
        super().__init__(
            f"--day {day} was refused: {problem}. The index runs strictly forward, so a night of a mistyped day would "
            "block every later one; nothing was written. Correct the day, or give --any-day if it is meant."
        )


class IndexFullError(SpacetimeError):
    """A block holds more POIs than there are inner ids."""

    exit_code = 3

    def __init__(self, *, day: str, block_id: int, num_pois: int, max_inner: int) -> None:
        self.day, self.block_id, self.num_pois, self.max_inner = day, block_id, num_pois, max_inner
        super().__init__(
            f"block {block_id} would hold {num_pois} POIs on {day}, but index.max_inner is {max_inner}. A POI without "
            "an inner id could be neither learned nor generated, so nothing was written. Raise index.max_inner and "
            "retrain, or rebuild with a smaller index.cell_km under a new index.version."
        )


class ConflictingWriteError(SpacetimeError):
    """Another run changed the table while this one was writing; a retry cures it."""

    exit_code = 5

    def __init__(self, *, table: str, day: str, cause: str) -> None:
        self.table, self.day = table, day
        super().__init__(
            f"{table} for {day} was changed by another run while this one was writing ({cause}). Exactly one of the "
            "two won, and this one wrote nothing. Run it again (the DAGs do); if it happens often, check that the day "
            "is not run twice at once."
        )


class TablesInUseError(SpacetimeError):
    """A job that deletes old versions and another one would run at the same time; a retry later cures it."""

    exit_code = 5

    def __init__(self, *, job: str, holder: str, lock: object) -> None:
        self.job, self.holder = job, holder
        super().__init__(
            f"{job} cannot start: the tables are in use by {holder} (lock {lock}). Versions would be deleted that the "
            "other job reads or publishes, or rows written again that are being erased; nothing was changed. Run it "
            "again when the other has ended (the DAGs do)."
        )


class FolderInUseError(SpacetimeError):
    """Two runs would fill the same folder; a retry later cures it."""

    exit_code = 5

    def __init__(self, *, folder: str) -> None:
        self.folder = folder
        super().__init__(
            f"another run is filling {folder} at this moment. Two at once would mix their files, so this one wrote "
            "nothing. Run it again when the other has ended, or give each run its own --out."
        )


class ContractViolatedError(SpacetimeError):
    """Rows to be written break a NOT NULL or CHECK constraint of their table."""

    exit_code = 3

    def __init__(self, *, table: str, day: str, violation: str) -> None:
        self.table, self.day, self.violation = table, day, violation
        super().__init__(
            f"rows for table {table} on {day} break its contract: {violation}. Readers rely on these bounds, so "
            "nothing was written. The job that builds the table let through what it should have quarantined: fix it, "
            "or fix the contract in conf/tables.py if the value is right."
        )


class DuplicateKeyError(SpacetimeError):
    """A frame to be merged has the same key twice."""

    exit_code = 3

    def __init__(self, *, table: str, key: Sequence[str], example: str, num_keys: int) -> None:
        self.table, self.key, self.num_keys = table, tuple(key), num_keys
        super().__init__(
            f"{table} would get {num_keys} keys ({', '.join(key)}) more than once, for example {example}. Which row "
            "wins would be left to chance, so nothing was written. Deduplicate the input of the job."
        )


# --- versions ---------------------------------------------------------------------------------------------------------


class IndexVersionError(SpacetimeError):
    """A model meets a POI index other than the one it was trained on."""

    exit_code = 4

    def __init__(self, *, model_uri: str, trained_on: int, found: int) -> None:
        self.model_uri, self.trained_on, self.found = model_uri, trained_on, found
        super().__init__(
            f"model {model_uri!r} was trained on poi_index version {trained_on}, but the table holds version {found}. "
            "Block and inner ids differ between versions, so its scores would be meaningless. Score with "
            f"--set index.version={trained_on}, or retrain."
        )


class CapacityError(SpacetimeError):
    """The index has outgrown the embedding tables of a model."""

    exit_code = 4

    def __init__(self, *, model_uri: str, what: str, capacity: int, found: int) -> None:
        self.model_uri, self.what, self.capacity, self.found = model_uri, what, capacity, found
        super().__init__(
            f"model {model_uri!r} has room for {capacity} {what}, but the index holds {found}. Ids beyond the capacity "
            "would read past the embedding table. Retrain with more headroom (recipe key decoder.headroom)."
        )


class FingerprintError(SpacetimeError):
    """A checkpoint was made for another token layout."""

    exit_code = 4

    def __init__(self, *, path: str | Path, expected: str, found: str) -> None:
        self.path, self.expected, self.found = str(path), expected, found
        super().__init__(
            f"checkpoint {path} carries token fingerprint {found}, but this code and index make {expected}. Its "
            "vectors would be read under the wrong ids. Use the code version that wrote it, or retrain."
        )


class ReleaseSkewError(SpacetimeError):
    """The feature tables to be published were not made by one model on one index."""

    exit_code = 4

    def __init__(self, *, day: str, found: str) -> None:
        self.day, self.found = day, found
        super().__init__(
            f"the feature tables of {day} do not belong together: {found}. Vectors of two models have no common space, "
            "so their dot products would be noise, and nothing was published. Run all four feature jobs of the day "
            "with the same --model, then publish again."
        )


class NoLiftError(SpacetimeError):
    """There are not enough held-out requests to measure what the features give a ranking model."""

    exit_code = 3

    def __init__(self, *, day: str, reason: str) -> None:
        self.day, self.reason = day, reason
        super().__init__(
            f"the lift of the training of {day} cannot be measured: {reason}. A ranking model has to be trained, "
            "stopped and tested on three spans of days that the decoder was not trained on. Deliver impressions of "
            "more days, or raise samples.val_days and samples.test_days, and train again."
        )


class MixedModelsError(SpacetimeError):
    """A training set would hold features of several models."""

    exit_code = 4

    def __init__(self, *, rows_by_model: Mapping[str, int], example: str) -> None:
        self.rows_by_model = dict(rows_by_model)
        counts = ", ".join(f"{count} rows of {model}" for model, count in sorted(rows_by_model.items()))
        super().__init__(
            f"the training set would mix vectors of {len(rows_by_model)} models: {counts}; for example {example}. "
            "Vectors of two models have no common space, so a ranking model would learn noise from them. Compute the "
            "features of all days by one model (python -m udfs backfill --from DAY --to DAY --model URI) and give "
            "model=MODEL_VERSION, or ask for the mixture with allow_mixed=True."
        )


class MissingBackfillError(SpacetimeError):
    """A training set was asked for by a model that has computed no past day."""

    exit_code = 2

    def __init__(self, *, model_version: str, known: Sequence[str]) -> None:
        self.model_version = model_version
        listed = (
            f"Models with backfilled days: {', '.join(known)}." if known else "No model has backfilled a day."
        )
        super().__init__(
            f"model {model_version} has no row in table backfills, so its features of past days do not exist. {listed} "
            "Compute them first: python -m udfs backfill --from DAY --to DAY --model URI."
        )


class NoReleaseError(SpacetimeError):
    """A reader asked for a release that does not exist."""

    exit_code = 2

    def __init__(self, *, root: str, wanted: str, known: Sequence[int] = ()) -> None:
        self.root, self.wanted = root, wanted
        listed = (
            f"Releases there: {', '.join(map(str, known))}." if known else "There is no release there yet."
        )
        super().__init__(
            f"{wanted} was not found in table releases at {root}. {listed} Feature tables are only to be read "
            "through a release, since a half-written night looks the same as a whole one. Publish one with: python -m "
            "udfs publish --day DAY."
        )


class ReleaseWithdrawnError(SpacetimeError):
    """A reader asked for a release whose tables are gone."""

    exit_code = 2

    def __init__(self, *, root: str, release_id: int, reason: str) -> None:
        self.root, self.release_id, self.reason = root, release_id, reason
        super().__init__(
            f"release {release_id} at {root} was withdrawn: {reason}. The table versions that it pins no longer exist, "
            "so it can neither be read nor gone back to. Read the current release; python -m udfs releases lists which "
            "there are."
        )


class ReleaseOrderError(SpacetimeError):
    """A publication would show readers an older day, or what an operator has taken back."""

    exit_code = 3

    def __init__(self, *, day: str, problem: str) -> None:
        self.day, self.problem = day, problem
        super().__init__(
            f"the features of {day} were not published: {problem}. Readers would be set back without a decision, "
            " for example by a retry or a cleared task of an older night. To publish them all the same: "
            f"python -m udfs publish --day {day} --replace; python -m udfs releases lists what was published when."
        )


class ReleaseDamagedError(SpacetimeError):
    """Files that a release shows are gone."""

    exit_code = 4

    def __init__(self, *, release_id: int, table: str, version: int, problem: str) -> None:
        self.release_id, self.table, self.version, self.problem = release_id, table, version, problem
        super().__init__(
            f"release {release_id} shows version {version} of {table}, and of that {problem}. Its readers would fail, "
            "so nothing was changed and they still get the current release. Restore the files from a backup, or go "
            "back to another release (--to N); python -m udfs releases lists them."
        )


class StaleReleaseError(SpacetimeError):
    """Readers have been looking at the same release, or at the same day, for too long."""

    exit_code = 3

    def __init__(
        self, *, release_id: int, day: str, published_hours: float, data_hours: float, max_age_hours: float
    ) -> None:
        self.release_id, self.day, self.max_age_hours = release_id, day, max_age_hours
        self.published_hours, self.data_hours = published_hours, data_hours
        super().__init__(
            f"the current release {release_id} was published {published_hours:.1f} hours ago and its day {day} ended "
            f"{data_hours:.1f} hours ago; {max_age_hours:g} are allowed for either. Readers still get it, but what "
            "users have done since is missing from their features. Look for the nightly run that failed, hangs or "
            "never began and clear it, or for a rollback that was never followed up."
        )


class DeletionRefusedError(SpacetimeError):
    """Files that were about to be deleted belong to a version that must stay readable."""

    exit_code = 4

    def __init__(self, *, table: str, version: int | None, files: Sequence[str], doomed: int) -> None:
        self.table, self.version, self.files, self.doomed = table, version, tuple(files), doomed
        of = (
            "its latest version"
            if version is None
            else f"version {version}, which a release or a training pins"
        )
        super().__init__(
            f"table {table}: {len(self.files)} of {doomed} files that were about to be deleted belong to {of}, for "
            f"example {self.files[0]}. Deleting them would lose rows for good, so no file of the table was touched. "
            "The list of files and Delta's log disagree, which is a fault of this program or of its libraries: keep "
            "the folder as it is, note how its path is spelt, and report both."
        )


class ErasureUnfinishedError(SpacetimeError):
    """An erasure was begun and has not ended."""

    exit_code = 3

    def __init__(self, *, run_id: str, num_users: int, plan: str | Path) -> None:
        self.run_id, self.num_users, self.plan = run_id, num_users, str(plan)
        super().__init__(
            f"the erasure {run_id} of {num_users} users was begun and has not ended (plan {self.plan}). Until it has, "
            "tables may show an older version and readers may still get the users, so nothing else was done. Run the "
            "same erase command once more, with the same users: it goes on where it stopped. Then repeat this command."
        )


class ErasureIncompleteError(SpacetimeError):
    """Something kept still tells of erased users."""

    def __init__(self, *, run_id: str, places: Sequence[str], record: str | Path) -> None:
        self.run_id, self.places, self.record = run_id, tuple(places), str(record)
        super().__init__(
            f"erasure {run_id} is not complete: {'; '.join(places)} still tell of the users (record {record}). They "
            "have a right to be forgotten everywhere, and what was removed so far stays removed. Stop jobs that write "
            "these tables, remove files that are named here by hand, and run the same command again."
        )


# --- training ---------------------------------------------------------------------------------------------------------


class NoTrainingDataError(SpacetimeError):
    """A stage found no sample to learn from."""

    exit_code = 3

    def __init__(self, *, table: str, split: str, day: str, remedy: str) -> None:
        self.table, self.split, self.day = table, split, day
        super().__init__(
            f"table {table} holds no {split} rows as of {day}, so there is nothing to learn from and no model was "
            f"written. {remedy}"
        )


class DamagedCheckpointError(SpacetimeError):
    """No checkpoint in a folder can be read."""

    def __init__(self, *, path: str | Path, problem: str) -> None:
        self.path, self.problem = str(path), problem
        super().__init__(
            f"checkpoint {path} is damaged: {problem}. Training that went on from it would not be the training "
            "that was interrupted. The one before it is used if there is one; else delete the folder and train again."
        )


class DamagedModelError(SpacetimeError):
    """A model that is to be served is not what was registered."""

    exit_code = 4

    def __init__(self, *, model_uri: str, stage: str, problem: str) -> None:
        self.model_uri, self.stage, self.problem = model_uri, stage, problem
        super().__init__(
            f"model {model_uri} is damaged, stage {stage}: {problem}. No row was computed and nothing was written, "
            "since every feature would be wrong. Serve the version before it (--model models:/NAME/VERSION), or train "
            "and register again: python -m models train --day DAY."
        )


class LossNotFiniteError(SpacetimeError):
    """The loss became NaN or infinite."""

    def __init__(self, *, stage: str, step: int, batch_file: str | Path) -> None:
        self.stage, self.step, self.batch_file = stage, step, str(batch_file)
        super().__init__(
            f"the loss of stage {stage} was not finite at step {step}. The weights were not updated with it; the batch "
            f"is kept at {batch_file}. Look there for values out of range, or lower learning_rate of this stage in the "
            "recipe, and train again."
        )


class PromotionRefusedError(SpacetimeError):
    """A challenger does not beat what it has to beat."""

    exit_code = 3

    def __init__(self, *, model_version: str, reasons: Sequence[str]) -> None:
        self.model_version, self.reasons = model_version, tuple(reasons)
        super().__init__(
            f"model version {model_version} was not promoted: {'; '.join(reasons)}. The champion stays as it is. "
            "Compare both in MLflow, retrain, and register again (python -m models register --strict)."
        )
