"""Ranking scores with the user part read once per request, against a pass over everything for each pair.

    python -m tests.bench.prefix_sharing

Shared: `score_candidates`, what the feature job calls. Naive: one causal pass per pair over past, request and
candidate, without any cache, in the quickest batch size of those tried; as in ours, its last layer makes those states
only that the click head reads. Both on one thread, which is what a Spark task has. Records `prefix-sharing-speedup`
(rows/s over rows/s) and `prefix-sharing-memory` (peak above the loaded model, each in a process of its own).
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from conf.results import record
from models.data.batch import collate_candidates, collate_history, collate_requests, window_index
from models.network.decoder import CANDIDATE_TOKENS, REQUEST_TOKENS, SpacetimeDecoder
from models.network.trunk import Cache, CandidateStates, Prefix, past_of
from models.serving.bundle import ModelBundle
from models.serving.inference import score_candidates
from tests.bench.serving_city import SERVING, random_decoder, random_histories, random_requests

COMMAND = "make bench-prefix"
NUM_ACTIONS, NUM_CANDIDATES, NUM_REQUESTS = 300, 64, 4
NAIVE_BATCHES = (1, 4, 16)
MAX_DIFFERENCE = 1e-4


@torch.inference_mode()
def score_pairs(model: SpacetimeDecoder, pairs: pa.RecordBatch) -> np.ndarray:
    """Returns the click logit of each pair of a request and one candidate, read in one causal pass; equal lengths."""
    history, request, candidates = collate_history(pairs), collate_requests(pairs), collate_candidates(pairs)
    trunk = model.trunk
    spacetime, inner = trunk.embed_history(history)
    index, valid = window_index(history.lengths_B, NUM_ACTIONS, model.config.window_actions - 1)
    past, _, _ = trunk._embed_window(history, spacetime, inner, index)
    memory = (
        None
        if model.history_copy is None
        else model.history_copy.remember(past_of(history), spacetime, inner)
    )
    asked, sources = model._ask(Prefix(Cache((), valid, history.lengths_B), history, memory), request)
    shown = [trunk.embedding.embed_blocks(candidates.blocks_BC), trunk.embed_candidates(candidates)]
    tokens = torch.cat([past, asked, *shown], dim=1)
    num_tokens = tokens.shape[1]
    wanted = torch.arange(num_tokens - 3, num_tokens).expand(len(tokens), 3)
    states, _ = trunk.run(tokens, torch.arange(num_tokens)[None], None, None, wanted)
    features = states.new_zeros(*candidates.blocks_BC.shape, 2)
    if model.history_copy is not None and sources.memory is not None and sources.pairs is not None:
        features = model.history_copy.log_shares(
            (states[:, :1], states[:, 1:2]),
            candidates.blocks_BC,
            candidates.inners_BC,
            sources.memory,
            sources.pairs,
        )
    return model.click_logits(CandidateStates(states[:, 2:], features))[:, 0].numpy()


def make_pairs(requests: pa.RecordBatch) -> pa.RecordBatch:
    """Makes one row per request and candidate."""
    rows = pa.array(np.repeat(np.arange(requests.num_rows), NUM_CANDIDATES))
    columns = {}
    for name in requests.schema.names:
        column = requests.column(name)
        if name.startswith("candidate_"):
            offsets = pa.array(np.arange(len(rows) + 1), pa.int32())
            columns[name] = pa.ListArray.from_arrays(offsets, column.flatten())
        else:
            columns[name] = column.take(rows)
    return pa.record_batch(columns)


def score_all_pairs(model: SpacetimeDecoder, pairs: pa.RecordBatch, batch: int) -> np.ndarray:
    """Returns the logits of all pairs, so many in a pass."""
    return np.concatenate(
        [score_pairs(model, pairs.slice(at, batch)) for at in range(0, pairs.num_rows, batch)]
    )


def measure_speed(
    bundle: ModelBundle, requests: pa.RecordBatch, *, repeats: int
) -> tuple[float, dict[str, float]]:
    """Returns the speed-up, median of interleaved repeats, and what else is worth telling."""
    model, pairs = bundle.model("sft_ranking"), make_pairs(requests)
    few = pairs.slice(0, max(NAIVE_BATCHES))
    seconds_of = {
        batch: clock(lambda own=batch: score_all_pairs(model, few, own))[0] for batch in NAIVE_BATCHES
    }
    best = min(seconds_of, key=seconds_of.__getitem__)
    ratios, shared_rate, naive_rate, difference = [], [], [], 0.0
    for number in range(repeats):
        one = requests.slice(number % requests.num_rows, 1)
        shared_s, shared = clock(lambda own=one: score_candidates(bundle, own, micro_batch=1))
        naive_s, naive = clock(lambda own=one: score_all_pairs(model, make_pairs(own), best))
        difference = max(difference, float(np.abs(shared[0] - naive).max()))
        ratios.append(naive_s / shared_s)
        shared_rate.append(NUM_CANDIDATES / shared_s)
        naive_rate.append(NUM_CANDIDATES / naive_s)
    if difference > MAX_DIFFERENCE:
        raise SystemExit(f"the two ways differ by {difference:.1e}: their speeds cannot be compared")
    return statistics.median(ratios), {
        "naive pairs in a pass": best,
        "shared rows/s": statistics.median(shared_rate),
        "naive rows/s": statistics.median(naive_rate),
        "lowest ratio": min(ratios),
        "largest difference of a logit": difference,
    }


def measure_same_user(bundle: ModelBundle, requests: pa.RecordBatch) -> float:
    """Returns what sharing among requests brings on top: four requests of one past against four of four pasts."""
    same = requests.take(pa.array([0] * requests.num_rows))
    columns = {
        name: (requests if name.startswith(("candidate_", "request_", "user_l")) else same).column(name)
        for name in requests.schema.names
        if name not in ("user_lons", "user_lats")
    } | {name: same.column(name) for name in ("user_lons", "user_lats")}
    together = pa.record_batch(columns)
    apart_s, _ = clock(lambda: score_candidates(bundle, requests))
    together_s, _ = clock(lambda: score_candidates(bundle, together))
    return apart_s / together_s


def clock(call: Callable[[], object]) -> tuple[float, object]:
    """Returns seconds and result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def peak_mib(call: Callable[[], object]) -> float:
    """Returns by how much resident memory grows at most during the call; Linux."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure_peak(way: str) -> float:
    """Returns the peak of a way in a process of its own: a request at once, or a pair at once."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench.prefix_sharing", "--peak", way],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(run.stdout))


def make_city() -> tuple[ModelBundle, pa.RecordBatch]:
    """Returns the model and the requests."""
    model = random_decoder(SERVING)
    bundle = ModelBundle(Path(), model.config.layout, ("sft_ranking",), model.config.embedding_dim, True, {})
    bundle._loaded["sft_ranking", "cpu"] = model
    rows = random_histories([NUM_ACTIONS] * NUM_REQUESTS) | random_requests(NUM_REQUESTS, NUM_CANDIDATES)
    return bundle, pa.record_batch(rows)


def report_peak(way: str) -> None:
    """Prints the peak of a way, MiB; a short past has gone through all code before."""
    bundle, requests = make_city()
    one = requests.slice(0, 1)
    pair, model = make_pairs(one).slice(0, 1), bundle.model("sft_ranking")
    calls = {"shared": lambda: score_candidates(bundle, one), "naive": lambda: score_pairs(model, pair)}
    print(json.dumps(peak_mib(calls[way])))


def main() -> int:
    """Measures, records, and returns 0 if the bars are reached."""
    parser = argparse.ArgumentParser(description="Records what sharing the user part brings in results/.")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument(
        "--peak", choices=("shared", "naive"), help="print the peak memory of one way and end"
    )
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        report_peak(options.peak)
        return 0
    bundle, requests = make_city()
    clock(lambda: score_candidates(bundle, requests))
    speedup, told = measure_speed(bundle, requests, repeats=options.repeats)
    told["four requests of one past, times faster still"] = measure_same_user(bundle, requests)
    past = 1 + 4 * NUM_ACTIONS
    own = REQUEST_TOKENS + CANDIDATE_TOKENS
    limit = NUM_CANDIDATES * (past + own) / (past + REQUEST_TOKENS + NUM_CANDIDATES * CANDIDATE_TOKENS)
    shape = (
        f"random weights, {SERVING.num_layers} layers, width {SERVING.hidden_dim}, history copy on, float32, one "
        f"thread; {NUM_ACTIONS} actions, {NUM_CANDIDATES} candidates"
    )
    figures = "; ".join(f"{name} {value:.3g}" for name, value in told.items())
    speed = record(
        "prefix-sharing-speedup", round(speedup, 2), "", ">= 20", COMMAND,
        f"{shape}; by tokens the limit is {limit:.1f}; {figures}", options.results,
    )  # fmt: skip
    peaks = {way: measure_peak(way) for way in ("shared", "naive")}
    memory = record(
        "prefix-sharing-memory", round(peaks["shared"] / peaks["naive"], 3), "", "<= 1.5", COMMAND,
        f"{shape}; peak above the loaded model: all candidates of a request {peaks['shared']:.0f} MiB, one pair "
        f"{peaks['naive']:.0f} MiB", options.results,
    )  # fmt: skip
    print(f"{speed}\n{memory}")
    return 0 if speed.holds and memory.holds else 1


if __name__ == "__main__":
    sys.exit(main())
