"""One request taken apart: parts add up, agree with the model, and find the habit that was planted."""

import contextlib
import io
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console

from conf.cli import main
from conf.errors import MissingInputError, SettingsError
from models.__main__ import JOBS
from models.config import DecoderConfig, MemoryConfig
from models.data.batch import collate_history, collate_requests
from models.data.catalogue import Catalogue
from models.explain.attribution import Explanation, explain_request
from models.explain.job import build_request, read_history, read_place, read_time
from models.explain.plot import draw_explanation
from models.explain.text import NO_MEMORY, group_by_poi, print_explanation
from models.network.checkpoint import save_stage
from models.network.decoder import SpacetimeDecoder
from models.serving.bundle import save_bundle

DAY = date(2026, 3, 1)
CENTERS = {block: (4.8 + 0.07 * block, 52.31) for block in range(5)}
TOLERANCE = 1e-5


@pytest.fixture
def request_row(city_root: Path) -> pa.RecordBatch:
    """The next request of a user of the city, who keeps going between two POIs."""
    return build_request(read_history(str(city_root), "u3", DAY), None, None, action_type_id=0)


@pytest.fixture
def explain(make_decoder, catalogue: Catalogue, request_row) -> Callable[..., Explanation]:
    """Explains that request by a random decoder, or by another one."""

    def run(*, top_k: int = 100, model: SpacetimeDecoder | None = None, **changes: object) -> Explanation:
        model = model or make_decoder(**changes)
        return explain_request(model, request_row, catalogue, CENTERS, top_k=top_k)

    return run


def planted_decoder(make_decoder: Callable[..., SpacetimeDecoder]) -> SpacetimeDecoder:
    """A decoder as it starts, whose memory is the recency-weighted visit baseline and whose generator knows nothing."""
    config = make_decoder().config
    torch.manual_seed(0)
    return SpacetimeDecoder(DecoderConfig.model_validate(config.model_dump())).eval()


@torch.inference_mode()
def test_blocks_and_pois_have_the_probabilities_of_the_model(explain, make_decoder, catalogue, request_row):
    found = explain()
    model = make_decoder()
    live = catalogue.live_slots(found.timestamp_ms, num_blocks=6, max_inner=10)
    asked = collate_requests(request_row)
    state = model.request_state(model.encode_prefix(collate_history(request_row)), asked, live)
    log_blocks = model.block_log_probs(state)[0]
    rows = [list(catalogue.poi_ids).index(poi.poi_id) for poi in found.pois]
    slots = [torch.from_numpy(ids[rows])[None] for ids in (catalogue.block_ids, catalogue.inner_ids)]

    for block in found.blocks:
        assert block.probability == pytest.approx(log_blocks[block.block_id].exp().item(), abs=TOLERANCE)
    brute = model.poi_log_probs(state, *slots)[0].exp()
    np.testing.assert_allclose([poi.probability for poi in found.pois], brute, atol=TOLERANCE)
    assert len(found.pois) == 35  # all live ones
    assert sum(poi.probability for poi in found.pois) == pytest.approx(1, abs=TOLERANCE)
    assert sum(block.probability for block in found.blocks) == pytest.approx(1, abs=TOLERANCE)


def test_shares_of_generator_and_actions_add_up_to_one(explain):
    for seed in range(4):
        found = explain(seed=seed)
        for shares in (found.block_shares, found.poi_shares):
            assert shares.generator + shares.crowd + shares.actions.sum() == pytest.approx(1, abs=TOLERANCE)
            assert len(shares.actions) == len(found.past) == 60


def test_what_a_poi_has_from_visits_and_from_the_generator_is_its_probability(explain):
    """Over all POIs, copied parts add up to the share of the past in the POI's prediction."""
    found = explain(seed=2)
    copied = sum(poi.probability * poi.from_visits for poi in found.pois)

    assert copied == pytest.approx(found.poi_shares.actions.sum(), abs=TOLERANCE)
    assert all(0 <= poi.from_visits <= 1 for poi in found.pois)
    assert all(poi.from_visits == 0 for poi in found.pois if not poi.num_visits)


def test_the_block_has_at_least_what_is_copied_into_it(explain):
    found = explain(seed=1)
    for block in found.blocks:
        copied = found.block_shares.actions[found.past.block_ids == block.block_id].sum()
        assert block.probability >= copied - TOLERANCE


def test_a_user_who_always_goes_back_to_one_poi_leans_on_those_actions(make_decoder, catalogue, city_root):
    history = read_history(str(city_root), "u3", DAY).to_pylist()[0]
    home = catalogue.find_rows(np.array([1]), np.array([2]))[0]
    for step in range(0, 60, 2):  # every second action goes to p1-2, which u3 visits seldom otherwise
        history["poi_ids"][step], history["block_ids"][step], history["inner_ids"][step] = "p1-2", 1, 2
        history["poi_lons"][step], history["poi_lats"][step] = catalogue.lons[home], catalogue.lats[home]
    table = pa.Table.from_pylist([history], schema=read_history(str(city_root), "u3", DAY).schema)
    request = build_request(table, None, None, action_type_id=0)

    found = explain_request(planted_decoder(make_decoder), request, catalogue, CENTERS, top_k=3)

    assert found.pois[0].poi_id == "p1-2"
    assert found.pois[0].num_visits >= 30
    assert found.pois[0].from_visits > 0.9
    assert found.blocks[0].block_id == 1
    assert {found.past.poi_ids[place] for place in found.leaned_on(5)} == {"p1-2"}
    assert found.block_shares.generator < 0.5


def test_all_visits_to_a_poi_have_their_shares_together(explain):
    found = explain(seed=1)
    past = found.past

    grouped = group_by_poi(found, 100)

    assert len(grouped) == len(set(past.poi_ids))
    for own in grouped:
        is_visit = np.array(past.poi_ids) == own.poi_id
        assert own.num_visits == is_visit.sum()
        assert own.of_block == pytest.approx(found.block_shares.actions[is_visit].sum())
        assert own.of_poi == pytest.approx(found.poi_shares.actions[is_visit].sum())
    together = [own.of_block + own.of_poi for own in grouped]
    assert together == sorted(together, reverse=True)


def test_without_a_memory_there_are_blocks_and_pois_only(explain, tmp_path):
    found = explain(memory=MemoryConfig(enabled=False), top_k=4)

    assert not found.has_memory
    assert found.block_shares.generator == found.poi_shares.generator == 1
    assert len(found.leaned_on(5)) == 0
    assert len(found.pois) == 4
    text = io.StringIO()
    print_explanation(found, {}, Console(file=text, width=200))
    assert NO_MEMORY in text.getvalue()
    draw_explanation(found, {}, tmp_path / "a.png", cell_km=5.0)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_request_before_the_first_action_has_no_past(make_decoder, catalogue, city_root, tmp_path):
    history = read_history(str(city_root), "u3", DAY)
    first = history["timestamps_ms"][0].as_py()[0]
    request = build_request(history, first, None, action_type_id=0)

    found = explain_request(make_decoder(), request, catalogue, CENTERS, top_k=3)

    assert len(found.past) == 0
    draw_explanation(found, {}, tmp_path / "a.png", cell_km=5.0)
    assert found.block_shares.generator == pytest.approx(1)
    assert np.isnan(found.pois[0].distance_km)


def test_the_default_request_is_one_usual_gap_after_the_last_action(city_root, request_row):
    last = read_history(str(city_root), "u3", DAY)["timestamps_ms"][0].as_py()[-1]
    assert request_row["request_ts_ms"][0].as_py() == last + 5 * 3_600_000
    assert request_row["user_lon"][0].as_py() == request_row["poi_lons"][0].as_py()[-1]


def test_times_and_places_are_read_or_refused():
    assert read_time("") is None
    assert read_time("1767225600000") == read_time("2026-01-01") == read_time("2026-01-01T01:00+01:00")
    assert read_place("-73.9,40.7") == (-73.9, 40.7)
    for read, text in (
        (read_time, "yesterday"),
        (read_place, "4.9"),
        (read_place, "200,10"),
        (read_place, "nan,0"),
    ):
        with pytest.raises(SettingsError):
            read(text)


def test_an_unknown_user_is_named(city_root):
    with pytest.raises(MissingInputError, match="'nobody'"):
        read_history(str(city_root), "nobody", DAY)


@pytest.fixture
def run(city_settings, make_decoder, tmp_path) -> Callable[..., tuple[int, dict, str]]:
    """Runs the job on a bundle of an untrained decoder; returns exit code, summary and text."""
    model = planted_decoder(make_decoder)
    save_stage(tmp_path / "stage", model)
    content = {"embedding_dim": 8, "is_simulated": True}
    stages = dict.fromkeys(("pretrain", "sft_embedding"), tmp_path / "stage")
    save_bundle(tmp_path / "bundle", stages, layout=model.config.layout, content=content)

    def start(*more: str) -> tuple[int, dict, str]:
        arguments = ["explain", "--day", str(DAY), f"--set=storage.root={city_settings.storage.root}"]
        arguments += [f"--set=storage.artifacts={tmp_path}/artifacts", f"--model={tmp_path}/bundle", *more]
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main("models", "", JOBS, arguments)
        return code, json.loads(stdout.getvalue().splitlines()[-1]), stderr.getvalue()

    return start


def test_the_job_prints_text_and_leaves_a_picture(run, tmp_path):
    code, summary, text = run("--user", "u3", "--top", "5", f"--out={tmp_path}/pictures")

    assert code == 0, summary
    picture = Path(summary["notes"]["picture"])
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert summary["rows_in"] == 60
    assert 0 < summary["notes"]["generator_share_poi"] < 1
    for told in (
        "top POIs",
        "top blocks",
        "leans on",
        "the last 8 of 60",
        "interests:",
        summary["notes"]["top_poi"],
    ):
        assert told in text


def test_a_dry_run_draws_nothing_and_errors_have_their_codes(run, tmp_path):
    code, summary, _ = run("--user", "u3", "--dry-run")
    assert (code, summary["notes"]["picture"]) == (0, None)
    assert not (tmp_path / "artifacts").exists()
    for wrong, message in (
        (("--user", "nobody"), "'nobody'"),
        (("--user", "u3", "--at", "soon"), "--at"),
        (("--user", "u3", "--top", "0"), "--top"),
        (("--user", "u3", "--model", f"{tmp_path}/none"), "bundle"),
    ):
        code, summary, _ = run(*wrong)
        assert code == 2
        assert message in summary["message"]
