"""The contract of every table: grain, key, columns with meaning, unit, bounds and nullability.

This is the one place where a table is described. Derived from it: the Spark schema, Delta's column comments and CHECK
constraints (`etl/delta/storage.py`), the rules that Great Expectations judges (`etl/quality/gate_rules.py`), the Arrow
schema of the UDFs' output (`udfs/`), the pages in `etl/README.md`. Standard library only, so that everything may import
it.

A column named `day` is the day of the job that wrote the row (`--day`): the day of delivery for raw tables, the day
as of which a row was computed for derived ones. `event_date` is the UTC day on which an action happened. Arrays named
in the plural hold one entry per action, oldest first, all of the same length.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

Write = Literal["day", "merge", "log"]


@dataclass(frozen=True)
class Column:
    """One column: its Spark SQL type, what it means (with unit), and the values it may take.

    Attributes:
        name: snake_case; the unit is in the name where it is not obvious.
        type: Spark SQL type, for example `bigint` or `array<float>`.
        doc: one sentence; becomes the Delta column comment.
        nullable: may the value be null; elements of arrays are null in raw tables alone.
        low: smallest value allowed, inclusive; for arrays it holds for every element.
        high: largest value allowed, inclusive.
        allowed: closed list of values, empty = open.
        lineage: says where a row came from, not what it says; left out of table digests.
    """

    name: str
    type: str
    doc: str
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    allowed: tuple[str, ...] = ()
    lineage: bool = False

    @property
    def is_array(self) -> bool:
        return self.type.startswith("array<")


@dataclass(frozen=True)
class TableContract:
    """One table.

    Attributes:
        name: snake_case plural; also the folder (or catalog name) of the Delta table.
        grain: what one row is.
        key: columns that are unique together.
        columns: in the order in which they are written.
        write: how the table changes: `day` replaces the rows of one day, `merge` updates and inserts by key,
            `log` appends one row and never changes another.
        partition_by: partition columns; `day` for every table written by day.
        cluster_by: columns that a file's rows are sorted by, for data skipping.
        page_rows: rows of a Parquet page, where rows of a few keys are looked up and each is large; 0 = Parquet's own.
        equal_lengths: array columns that must have equal lengths in every row.
        raw: delivered from outside: every value may be missing or wrong, so bounds are checked by the cleaning
            rules and not by the table.
        made_by: job that writes the table, where it is not called as the table is.
        program: package whose command has that job.
    """

    name: str
    grain: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    write: Write = "day"
    partition_by: tuple[str, ...] = ("day",)
    cluster_by: tuple[str, ...] = ()
    page_rows: int = 0
    equal_lengths: tuple[tuple[str, ...], ...] = field(default=())
    raw: bool = False
    made_by: str = ""
    program: str = "etl"

    @property
    def job(self) -> str:
        """The job that writes the table, as `python -m etl` or `udfs` calls it."""
        return self.made_by or self.name

    @property
    def command(self) -> str:
        """The command that writes the table, without its day."""
        return f"python -m {self.program} {self.job}"

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """Returns the column called `name`; KeyError if the table has none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name!r}; it has {', '.join(self.column_names)}")

    @property
    def business_columns(self) -> tuple[str, ...]:
        """Columns that say what a row means: all but lineage. Table digests are made of these."""
        return tuple(column.name for column in self.columns if not column.lineage)


# --- columns that many tables share -----------------------------------------------------------------------------------

SPLITS = ("train", "val", "test")
PATTERNS = ("local", "travel", "mixed")
CANDIDATE_SOURCES = ("generator", "crowd", "returned")

DAY = Column("day", "date", "day of the job that wrote the row (UTC)")
RUN_ID = Column("run_id", "string", "run that wrote the row", lineage=True)
INDEX_VERSION = Column("index_version", "int", "version of the block and inner assignment", low=1)
MODEL_VERSION = Column("model_version", "string", "registered model version that made the row")
USER_ID = Column("user_id", "string", "user, as delivered")
POI_ID = Column("poi_id", "string", "catalogue id of the POI")
REQUEST_ID = Column("request_id", "string", "one call of the recommender, as delivered")
IS_SIMULATED = Column("is_simulated", "boolean", "made by a simulation, not observed")
RECORD = Column(
    "record",
    "string",
    "the record as its file held it: its text, or its columns as JSON; null where no file was read",
    nullable=True,
    lineage=True,
)
TZ_OFFSET = Column("tz_offset_min", "int", "minutes to add to UTC for local time", low=-840, high=840)
USER_LON = Column(
    "user_lon", "double", "longitude of the user, degrees WGS 84", nullable=True, low=-180, high=180
)
USER_LAT = Column(
    "user_lat", "double", "latitude of the user, degrees WGS 84", nullable=True, low=-90, high=90
)
POI_LON = Column("poi_lon", "double", "longitude of the POI, degrees WGS 84", low=-180, high=180)
POI_LAT = Column("poi_lat", "double", "latitude of the POI, degrees WGS 84", low=-90, high=90)
BLOCK_ID = Column("block_id", "int", "dense id of the grid cell that holds the POI", low=0)
INNER_ID = Column("inner_id", "int", "number of the POI inside its block, never reused", low=0)
CATEGORY_ID = Column("category_id", "int", "id of the POI's leaf category; 0 = unknown", low=0)
ACTION_TYPE_ID = Column("action_type_id", "int", "id of the action type, see conf/tokens.py", low=0)
PROFILE_IDS = Column(
    "profile_ids", "array<int>", "hashed profile attributes of the user; empty if none given", low=1
)

HISTORY_COLUMNS = (
    Column("poi_ids", "array<string>", "POI of each action"),
    Column("timestamps_ms", "array<bigint>", "time of each action, epoch milliseconds UTC, never decreasing"),
    Column("tz_offsets_min", "array<int>", "minutes to add to UTC for local time at each action"),
    Column(
        "user_lons",
        "array<float>",
        "longitude of the user when acting, never taken from the action's own POI; NaN = unknown",
    ),
    Column("user_lats", "array<float>", "latitude of the user when acting; NaN = unknown"),
    Column("action_type_ids", "array<int>", "action type of each action", low=0),
    Column("block_ids", "array<int>", "block of each action's POI", low=0),
    Column("inner_ids", "array<int>", "inner id of each action's POI", low=0),
    Column("poi_lons", "array<float>", "longitude of each action's POI", low=-180, high=180),
    Column("poi_lats", "array<float>", "latitude of each action's POI", low=-90, high=90),
    Column("category_ids", "array<int>", "leaf category of each action's POI; 0 = unknown", low=0),
    Column(
        "is_interests", "array<boolean>", "does the action show taste (a loss target) or an errand (context)"
    ),
    Column(
        "is_travels", "array<boolean>", "is the action's POI farther from home than the configured radius"
    ),
)
"""The user's past as parallel arrays; the same columns in sequences and in all samples."""

HISTORY_NAMES = tuple(column.name for column in HISTORY_COLUMNS)

CANDIDATE_COLUMNS = (
    Column("candidate_poi_ids", "array<string>", "POIs shown in the request, in the order of their position"),
    Column("candidate_block_ids", "array<int>", "block of each candidate", low=0),
    Column("candidate_inner_ids", "array<int>", "inner id of each candidate", low=0),
    Column("candidate_lons", "array<float>", "longitude of each candidate", low=-180, high=180),
    Column("candidate_lats", "array<float>", "latitude of each candidate", low=-90, high=90),
    Column("candidate_category_ids", "array<int>", "leaf category of each candidate; 0 = unknown", low=0),
    Column("candidate_positions", "array<int>", "position at which each candidate was shown, from 1", low=1),
)
CANDIDATE_NAMES = tuple(column.name for column in CANDIDATE_COLUMNS)

REQUEST_COLUMNS = (
    REQUEST_ID,
    USER_ID,
    Column("request_ts_ms", "bigint", "time of the request, epoch milliseconds UTC", low=0),
    TZ_OFFSET,
    USER_LON,
    USER_LAT,
)

# --- delivered --------------------------------------------------------------------------------------------------------

RAW_ACTIONS = TableContract(
    name="raw_actions",
    grain="one action as delivered; anything may be wrong",
    key=(),
    raw=True,
    columns=(
        DAY,
        Column("action_id", "string", "id of the action, as delivered", nullable=True),
        Column("user_id", "string", "user, as delivered", nullable=True),
        Column("poi_id", "string", "POI acted on, as delivered", nullable=True),
        Column("action_type", "string", "click, navigate, search, order ...", nullable=True),
        Column("action_ts_ms", "bigint", "13-digit epoch milliseconds, UTC", nullable=True),
        Column(
            "tz_offset_min", "int", "minutes to add to UTC for local time, if the source knows", nullable=True
        ),
        Column("user_lon", "double", "longitude of the user; null if the source has none", nullable=True),
        Column("user_lat", "double", "latitude of the user; null if the source has none", nullable=True),
        Column("poi_lon", "double", "longitude of the POI as logged", nullable=True),
        Column("poi_lat", "double", "latitude of the POI as logged", nullable=True),
        Column("category", "string", "category as logged", nullable=True),
        Column(
            "corrupt_record", "string", "the raw text, where the record could not be parsed", nullable=True
        ),
        RECORD,
        IS_SIMULATED,
    ),
)

RAW_POIS = TableContract(
    name="raw_pois",
    grain="one POI new or changed in the day's delivery of the catalogue; anything may be wrong",
    key=(),
    raw=True,
    columns=(
        DAY,
        Column("poi_id", "string", "catalogue id of the POI", nullable=True),
        Column("name", "string", "name of the POI", nullable=True),
        Column("address", "string", "address in one line", nullable=True),
        Column("category", "string", "leaf category", nullable=True),
        Column("category_path", "string", "levels of the category joined by ' > '", nullable=True),
        Column("poi_lon", "double", "longitude in degrees, WGS 84", nullable=True),
        Column("poi_lat", "double", "latitude in degrees, WGS 84", nullable=True),
        Column("description", "string", "free text", nullable=True),
        Column(
            "first_seen_date",
            "date",
            "day from which the POI is known to exist; null = the day of delivery",
            nullable=True,
        ),
        Column("is_closed", "boolean", "the POI has closed on this day", nullable=True),
        Column(
            "is_derived",
            "boolean",
            "the place is where the POI's logged actions lie, no catalogue says it; null = false",
            nullable=True,
        ),
        RECORD,
        IS_SIMULATED,
    ),
)

RAW_POI_IMAGES = TableContract(
    name="raw_poi_images",
    grain="one picture of a POI, new or changed in the day's delivery of the catalogue (optional input); anything may "
    "be wrong",
    key=(),
    raw=True,
    columns=(
        DAY,
        Column("poi_id", "string", "catalogue id of the POI", nullable=True),
        Column("image", "binary", "the picture: bytes of a JPEG, PNG, BMP, GIF or WebP file", nullable=True),
        Column("image_uri", "string", "where the picture is, below features.image_root", nullable=True),
        Column(
            "image_vector",
            "array<float>",
            "a ready vector of the picture, used where features.image_encoder is `given`",
            nullable=True,
        ),
        Column(
            "content_sha256",
            "string",
            "SHA-256 over picture, URI and vector: tells whether they have changed",
        ),
        IS_SIMULATED,
    ),
)

RAW_PROFILES = TableContract(
    name="raw_profiles",
    grain="one attribute of one user, new or changed on the day (optional input); anything may be wrong",
    key=(),
    raw=True,
    columns=(
        DAY,
        Column("user_id", "string", "user, as delivered", nullable=True),
        Column("attribute", "string", "name of the attribute, for example age_group", nullable=True),
        Column("value", "string", "value of the attribute", nullable=True),
    ),
)

RAW_REQUEST_COLUMNS = tuple(replace(column, nullable=True, low=None, high=None) for column in REQUEST_COLUMNS)

RAW_IMPRESSIONS = TableContract(
    name="raw_impressions",
    grain="one POI shown in one request; anything may be wrong",
    key=(),
    raw=True,
    columns=(
        DAY,
        *RAW_REQUEST_COLUMNS,
        Column("poi_id", "string", "POI that was shown, as delivered", nullable=True),
        Column("position", "int", "position at which the POI was shown, from 1", nullable=True),
        Column("label", "int", "1 clicked, 0 shown", nullable=True),
        IS_SIMULATED,
    ),
)

RANKING_REQUESTS = TableContract(
    name="ranking_requests",
    grain="one request to be scored tonight; anything may be wrong",
    key=(),
    raw=True,
    columns=(
        DAY,
        *RAW_REQUEST_COLUMNS,
        Column(
            "action_type",
            "string",
            "action type to predict; null = the one the model was made for",
            nullable=True,
        ),
        Column(
            "candidate_poi_ids",
            "array<string>",
            "POIs to score; null or empty = generate candidates only",
            nullable=True,
        ),
        IS_SIMULATED,
    ),
)

# --- cleaned ----------------------------------------------------------------------------------------------------------

QUARANTINED_ROWS = TableContract(
    name="quarantined_rows",
    grain="one refused row of a raw table, with its first reason",
    key=("day", "source_table", "row_hash", "duplicate_no"),
    partition_by=("day", "source_table"),
    columns=(
        DAY,
        Column("source_table", "string", "table that the row was delivered in"),
        Column("reason", "string", "reason code, see the rules of conf/rules.py"),
        Column("detail", "string", "the offending value, as text"),
        Column("payload", "string", "the whole row as delivered, JSON"),
        Column("row_hash", "string", "SHA-256 of the payload"),
        Column("duplicate_no", "int", "0, 1, 2 ... for rows with equal payload", low=0),
    ),
)

CLEANED_ACTIONS = TableContract(
    name="cleaned_actions",
    grain="one accepted action",
    key=("action_id",),
    cluster_by=("user_id", "action_ts_ms"),
    made_by="clean_actions",
    columns=(
        DAY,
        Column("action_id", "string", "id of the action, as delivered or derived from its content"),
        USER_ID,
        Column("action_ts_ms", "bigint", "time of the action, epoch milliseconds UTC", low=0),
        Column("event_date", "date", "UTC day of action_ts_ms"),
        TZ_OFFSET,
        USER_LON,
        USER_LAT,
        POI_ID,
        INDEX_VERSION,
        BLOCK_ID,
        INNER_ID,
        POI_LON,
        POI_LAT,
        CATEGORY_ID,
        ACTION_TYPE_ID,
        Column("is_interest", "boolean", "does it show taste (t_i of the paper) or an errand"),
        Column("repairs", "array<string>", "codes of what was repaired or flagged, sorted; empty if nothing"),
        IS_SIMULATED,
    ),
)

USER_PLACES = TableContract(
    name="user_places",
    grain="one user active on the day: home and work as inferred from actions up to the day",
    key=("day", "user_id"),
    made_by="clean_actions",
    columns=(
        DAY,
        USER_ID,
        Column(
            "home_lon",
            "double",
            "longitude of the inferred home; null = not enough evidence",
            nullable=True,
            low=-180,
            high=180,
        ),
        Column("home_lat", "double", "latitude of the inferred home", nullable=True, low=-90, high=90),
        Column("home_days", "int", "days of evidence for the home", low=0),
        Column(
            "work_lon",
            "double",
            "longitude of the inferred work place; null = not enough evidence",
            nullable=True,
            low=-180,
            high=180,
        ),
        Column("work_lat", "double", "latitude of the inferred work place", nullable=True, low=-90, high=90),
        Column("work_days", "int", "days of evidence for the work place", low=0),
    ),
)

# --- index ------------------------------------------------------------------------------------------------------------

BLOCKS = TableContract(
    name="blocks",
    grain="one grid cell that holds or held a POI, in one index version",
    key=("index_version", "block_id"),
    write="merge",
    partition_by=(),
    made_by="poi_index",
    columns=(
        INDEX_VERSION,
        BLOCK_ID,
        Column("cell_x", "int", "column of the cell within its row, eastwards from 180 W", low=0),
        Column("cell_y", "int", "row of the cell, northwards from the south pole", low=0),
        Column("center_lon", "double", "longitude of the cell's centre, degrees", low=-180, high=180),
        Column("center_lat", "double", "latitude of the cell's centre, degrees", low=-90, high=90),
        Column("first_day", "date", "day of the job that added the block"),
    ),
)

CATEGORIES = TableContract(
    name="categories",
    grain="one leaf category, in one index version; ids are append-only from 1",
    key=("index_version", "category_id"),
    write="merge",
    partition_by=(),
    made_by="poi_index",
    columns=(
        INDEX_VERSION,
        CATEGORY_ID,
        Column("category", "string", "leaf category as delivered"),
        Column("category_path", "string", "levels joined by ' > '; the leaf alone if the source has no path"),
        Column("is_interest", "boolean", "interest or functional, by conf/taxonomy.yaml"),
        Column("first_day", "date", "day of the job that added the category"),
    ),
)

POI_INDEX = TableContract(
    name="poi_index",
    grain="one slot: a POI at one place, in one index version",
    key=("index_version", "poi_id", "valid_from"),
    write="merge",
    partition_by=(),
    cluster_by=("poi_id",),
    columns=(
        INDEX_VERSION,
        POI_ID,
        BLOCK_ID,
        INNER_ID,
        POI_LON,
        POI_LAT,
        CATEGORY_ID,
        Column("valid_from", "date", "first day on which the slot is live"),
        Column(
            "valid_to", "date", "first day on which it is no longer live; null = still live", nullable=True
        ),
        Column("indexed_day", "date", "day of the job that assigned the slot"),
        Column("closed_day", "date", "day of the job that closed the slot; null = still live", nullable=True),
        Column("name", "string", "name of the POI as last delivered; empty if none"),
        Column(
            "text",
            "string",
            "name, category path, address and description as last delivered, for text encoders",
        ),
        Column("changed_day", "date", "day of the job that last changed anything in the row"),
        Column(
            "past_details",
            "array<struct<replaced_day:date,changed_day:date,name:string,text:string,category_id:int>>",
            "what the row said before each change of a later day (replaced_day), oldest first; null = never changed",
            nullable=True,
        ),
        IS_SIMULATED,
    ),
)

# --- sequences and samples --------------------------------------------------------------------------------------------

ACTION_SEQUENCES = TableContract(
    name="action_sequences",
    grain="one user active on the day: the history up to and including the day",
    key=("day", "user_id"),
    cluster_by=("user_id",),
    page_rows=1000,
    equal_lengths=(HISTORY_NAMES,),
    columns=(
        DAY,
        USER_ID,
        INDEX_VERSION,
        Column("num_actions", "bigint", "all accepted actions of the user up to the day", low=1),
        Column("seq_len", "int", "actions in the arrays (the last ones)", low=1),
        Column(
            "richness",
            "double",
            "effective number of interest POIs, exp(Shannon entropy of visits); 0 = none",
            low=0,
        ),
        Column("pattern", "string", "local, travel or mixed", allowed=PATTERNS),
        PROFILE_IDS,
        *HISTORY_COLUMNS,
        IS_SIMULATED,
    ),
)

PRETRAIN_SAMPLES = TableContract(
    name="pretrain_samples",
    grain="one window of a user's actions in one split, as of the day",
    key=("day", "sample_id"),
    partition_by=("day", "split"),
    equal_lengths=((*HISTORY_NAMES, "is_targets"),),
    columns=(
        DAY,
        Column("split", "string", "train, val or test, by the time of the targets", allowed=SPLITS),
        Column("sample_id", "string", "user, split and number of the window"),
        USER_ID,
        INDEX_VERSION,
        Column("pattern", "string", "local, travel or mixed, of the window's targets", allowed=PATTERNS),
        Column("richness", "double", "richness of the user's training actions", low=0),
        Column("seq_len", "int", "actions in the arrays: context, then window", low=1),
        Column("num_context", "int", "leading actions that are context only", low=0),
        Column("is_targets", "array<boolean>", "is the action a loss target: in the window and of interest"),
        PROFILE_IDS,
        *HISTORY_COLUMNS,
        IS_SIMULATED,
    ),
)

RANKING_SAMPLES = TableContract(
    name="ranking_samples",
    grain="one request with its exposed POIs and the user's history strictly before it, as of the day",
    key=("day", "request_id"),
    partition_by=("day", "split"),
    equal_lengths=(HISTORY_NAMES, (*CANDIDATE_NAMES, "labels")),
    columns=(
        DAY,
        Column("split", "string", "train, val or test, by the time of the request", allowed=SPLITS),
        *REQUEST_COLUMNS,
        INDEX_VERSION,
        ACTION_TYPE_ID,
        *CANDIDATE_COLUMNS,
        Column("labels", "array<int>", "1 clicked, 0 shown", low=0, high=1),
        Column("seq_len", "int", "actions in the history arrays", low=0),
        PROFILE_IDS,
        *HISTORY_COLUMNS,
        IS_SIMULATED,
    ),
)

PREFERENCE_PAIRS = TableContract(
    name="preference_pairs",
    grain="one chosen POI of a request with the POIs rejected beside it, as of the day",
    key=("day", "pair_id"),
    partition_by=("day", "split"),
    equal_lengths=(
        HISTORY_NAMES,
        (
            "rejected_poi_ids",
            "rejected_block_ids",
            "rejected_inner_ids",
            "rejected_lons",
            "rejected_lats",
            "rejected_category_ids",
        ),
    ),
    columns=(
        DAY,
        Column("split", "string", "train, val or test, by the time of the request", allowed=SPLITS),
        Column("pair_id", "string", "request and chosen POI"),
        Column("rule", "string", "what made the pair: clicks, or the name of a rule"),
        *REQUEST_COLUMNS,
        INDEX_VERSION,
        ACTION_TYPE_ID,
        Column("chosen_poi_id", "string", "POI that was clicked"),
        Column("chosen_block_id", "int", "its block", low=0),
        Column("chosen_inner_id", "int", "its inner id", low=0),
        Column("chosen_lon", "float", "its longitude", low=-180, high=180),
        Column("chosen_lat", "float", "its latitude", low=-90, high=90),
        Column("chosen_category_id", "int", "its leaf category", low=0),
        Column("rejected_poi_ids", "array<string>", "POIs shown and not clicked"),
        Column("rejected_block_ids", "array<int>", "their blocks", low=0),
        Column("rejected_inner_ids", "array<int>", "their inner ids", low=0),
        Column("rejected_lons", "array<float>", "their longitudes", low=-180, high=180),
        Column("rejected_lats", "array<float>", "their latitudes", low=-90, high=90),
        Column("rejected_category_ids", "array<int>", "their leaf categories", low=0),
        Column("seq_len", "int", "actions in the history arrays", low=0),
        PROFILE_IDS,
        *HISTORY_COLUMNS,
        IS_SIMULATED,
    ),
)

TRAINING_VISITS = TableContract(
    name="training_visits",
    grain="visits of one user to one slot at one local hour, over the training period as of the day",
    key=("day", "user_id", "block_id", "inner_id", "local_hour"),
    cluster_by=("user_id",),
    made_by="training_others",
    columns=(
        DAY,
        USER_ID,
        INDEX_VERSION,
        BLOCK_ID,
        INNER_ID,
        Column("local_hour", "int", "hour of the day on the user's clock", low=0, high=23),
        Column("visits", "bigint", "actions that may be loss targets", low=1),
        IS_SIMULATED,
    ),
)

TRAINING_TRANSITIONS = TableContract(
    name="training_transitions",
    grain="how much one user went from one slot to another, over the training period as of the day",
    key=("day", "user_id", "block_id", "inner_id", "next_block_id", "next_inner_id"),
    cluster_by=("user_id",),
    made_by="training_others",
    columns=(
        DAY,
        USER_ID,
        INDEX_VERSION,
        Column("block_id", "int", "block of the POI that the user came from", low=0),
        Column("inner_id", "int", "its inner id", low=0),
        Column("next_block_id", "int", "block of the POI one to three actions later", low=0),
        Column("next_inner_id", "int", "its inner id", low=0),
        Column("weight", "double", "1 over one step, .5 over two, .25 over three, summed", low=0.25),
        IS_SIMULATED,
    ),
)

# --- features ---------------------------------------------------------------------------------------------------------

USER_EMBEDDINGS = TableContract(
    name="user_embeddings",
    grain="one user as of one day, by one model; the latest row up to a day is the user's vector",
    key=("day", "model_version", "user_id"),
    columns=(
        DAY,
        USER_ID,
        Column("embedding", "array<float>", "unit vector of the user tower after the user's last action"),
        Column("sequence_day", "date", "day of the action_sequences row that it was made from"),
        MODEL_VERSION,
        INDEX_VERSION,
        RUN_ID,
        IS_SIMULATED,
    ),
)

POI_EMBEDDINGS = TableContract(
    name="poi_embeddings",
    grain="one live POI as of one day, by one model; the latest row up to a day is the POI's vector",
    key=("day", "model_version", "poi_id"),
    columns=(
        DAY,
        POI_ID,
        Column("embedding", "array<float>", "unit vector of the POI tower"),
        Column("changed_day", "date", "changed_day of the poi_index row that it was made from"),
        MODEL_VERSION,
        INDEX_VERSION,
        RUN_ID,
        IS_SIMULATED,
    ),
)

POI_VECTORS = TableContract(
    name="poi_vectors",
    program="udfs",
    grain="one POI whose text is new or changed on the day, by one encoder; the latest row up to a day is the POI's",
    key=("day", "encoder", "poi_id"),
    columns=(
        DAY,
        POI_ID,
        Column("encoder", "string", "name and version of the frozen encoder; never mix two"),
        Column("text_sha256", "string", "SHA-256 of the text that the vector was made of"),
        Column(
            "vector",
            "array<float>",
            "unit vector of name, category path, address and description; zero = no text",
        ),
        RUN_ID,
        IS_SIMULATED,
    ),
)

POI_IMAGE_VECTORS = TableContract(
    name="poi_image_vectors",
    program="udfs",
    grain="one POI whose picture is new or changed on the day, by one encoder; the latest vector up to a day is the "
    "POI's",
    key=("day", "encoder", "poi_id"),
    columns=(
        DAY,
        POI_ID,
        Column("encoder", "string", "name and version of the frozen encoder; never mix two"),
        Column(
            "content_sha256",
            "string",
            "of the delivered picture (raw_poi_images) that the vector was made of",
        ),
        Column(
            "vector",
            "array<float>",
            "vector of the picture; null = the picture was refused, see quarantined_rows, and the earlier vector holds",
            nullable=True,
        ),
        RUN_ID,
        IS_SIMULATED,
    ),
)

RANKING_SCORES = TableContract(
    name="ranking_scores",
    grain="one candidate of one request of the day",
    key=("day", "request_id", "poi_id"),
    columns=(
        DAY,
        REQUEST_ID,
        USER_ID,
        POI_ID,
        Column("click_logit", "float", "log-odds of a click"),
        Column("score", "float", "click probability", low=0, high=1),
        MODEL_VERSION,
        INDEX_VERSION,
        RUN_ID,
        IS_SIMULATED,
    ),
)

POI_CANDIDATES = TableContract(
    name="poi_candidates",
    grain="one generated POI of one request of the day",
    key=("day", "request_id", "rank"),
    columns=(
        DAY,
        REQUEST_ID,
        USER_ID,
        Column("rank", "int", "1 = most probable", low=1),
        POI_ID,
        Column(
            "log_probability",
            "float",
            "log P(POI | history, request) in nats, after the shift of `features.new_logit`",
            high=0,
        ),
        Column(
            "source",
            "string",
            "where the POI comes from: the user's own past, else crowd candidates, else the generator alone; null in"
            " rows of earlier versions",
            nullable=True,
            allowed=CANDIDATE_SOURCES,
        ),
        Column(
            "p_new",
            "float",
            "probability that the request's next POI is new to the user, before the shift; the same in all rows of a"
            " request",
            nullable=True,
            low=0,
            high=1,
        ),
        MODEL_VERSION,
        INDEX_VERSION,
        RUN_ID,
        IS_SIMULATED,
    ),
)

TABLE_STATISTICS = TableContract(
    name="table_statistics",
    grain="one figure of one table on one day, as a passed audit counted it; what later days are compared with",
    key=("day", "table_name", "column_name", "statistic"),
    columns=(
        DAY,
        Column("table_name", "string", "table that was looked at"),
        Column("column_name", "string", "column, or columns joined by ', '; empty for the whole table"),
        Column(
            "statistic",
            "string",
            "what was counted: rows, nulls, true ..., see etl/quality/table_statistics.py",
        ),
        Column(
            "value",
            "double",
            "number of rows, days since 1970-01-01 where it is a date; null = no row to look at",
            nullable=True,
        ),
    ),
)

RELEASES = TableContract(
    name="releases",
    grain="one published release; the largest release_id is the current one",
    key=("release_id",),
    write="log",
    partition_by=(),
    columns=(
        Column("release_id", "bigint", "1, 2, 3 ...", low=1),
        DAY,
        Column("published_ts_ms", "bigint", "when it became visible, epoch milliseconds UTC", low=0),
        Column(
            "table_versions",
            "map<string,bigint>",
            "Delta version of every feature table and of what it was made from",
        ),
        Column("model_version", "string", "registered model version behind every row"),
        Column("index_version", "int", "index version behind every row", low=1),
        Column(
            "rollback_of", "bigint", "release that this one takes back; null for a new one", nullable=True
        ),
        RUN_ID,
        IS_SIMULATED,
    ),
)

BACKFILLS = TableContract(
    name="backfills",
    grain="one range of days whose features one model computed later, to train on and not to publish",
    key=("run_id", "model_version", "first_day", "last_day"),
    write="log",
    partition_by=(),
    columns=(
        Column("model_version", "string", "registered model version that computed the rows"),
        Column("first_day", "date", "first UTC day of the requests that the features are for"),
        Column("last_day", "date", "last UTC day of these requests"),
        Column("computed_ts_ms", "bigint", "when the rows were complete, epoch milliseconds UTC", low=0),
        INDEX_VERSION,
        Column("run_id", "string", "run that wrote the row"),
        IS_SIMULATED,
    ),
)
BACKFILLED_USERS = replace(
    USER_EMBEDDINGS,
    name="backfilled_user_embeddings",
    grain="one user as of one past day, by one model; the latest row of a backfill up to a day is the user's vector",
    made_by="backfill",
)
BACKFILLED_POIS = replace(
    POI_EMBEDDINGS,
    name="backfilled_poi_embeddings",
    grain="one POI as of one past day, by one model; the latest row of a backfill up to a day is the POI's vector",
    made_by="backfill",
)
BACKFILLED_SCORES = replace(
    RANKING_SCORES,
    name="backfilled_ranking_scores",
    grain="one POI shown in one request of a past day, by one model",
    key=("day", "model_version", "request_id", "poi_id"),
    made_by="backfill",
)

WITHDRAWALS = TableContract(
    name="withdrawals",
    grain="one release that can no longer be read, and why",
    key=("release_id",),
    write="log",
    partition_by=(),
    columns=(
        Column("release_id", "bigint", "release that was withdrawn", low=1),
        Column("withdrawn_ts_ms", "bigint", "when, epoch milliseconds UTC", low=0),
        Column("reason", "string", "why the versions that it pins are gone, in words"),
        RUN_ID,
    ),
)

ERASED_USERS = TableContract(
    name="erased_users",
    grain="one user who was erased and must not come back with an export that still holds him",
    key=("user_digest",),
    write="log",
    partition_by=(),
    columns=(
        Column("user_digest", "string", "SHA-256 of the normalised id, hexadecimal"),
        Column("erased_ts_ms", "bigint", "when, epoch milliseconds UTC", low=0),
        RUN_ID,
    ),
)

TABLES: dict[str, TableContract] = {
    table.name: table
    for table in (
        RAW_ACTIONS,
        RAW_POIS,
        RAW_POI_IMAGES,
        RAW_PROFILES,
        RAW_IMPRESSIONS,
        RANKING_REQUESTS,
        QUARANTINED_ROWS,
        BLOCKS,
        CATEGORIES,
        POI_INDEX,
        CLEANED_ACTIONS,
        USER_PLACES,
        ACTION_SEQUENCES,
        PRETRAIN_SAMPLES,
        RANKING_SAMPLES,
        PREFERENCE_PAIRS,
        TRAINING_VISITS,
        TRAINING_TRANSITIONS,
        POI_VECTORS,
        POI_IMAGE_VECTORS,
        USER_EMBEDDINGS,
        POI_EMBEDDINGS,
        RANKING_SCORES,
        POI_CANDIDATES,
        TABLE_STATISTICS,
        RELEASES,
        BACKFILLS,
        BACKFILLED_USERS,
        BACKFILLED_POIS,
        BACKFILLED_SCORES,
        WITHDRAWALS,
        ERASED_USERS,
    )
}
FEATURE_TABLES = ("user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates")
