"""Training tokens per second of our trunk against transformers' LlamaModel, padding waste, cost by history length.

    python -m tests.bench.train_speed --data FOLDER

FOLDER is a check-in folder; the batches are those of the recipe's training epoch on it. Both models have the same
shape and, at the start, the same weights; both get the same embedded tokens and the same loss, at the states that
predict a target (action and block tokens of the targets); both take the whole step: forward, backward, clipping, AdamW.
One after the other, batch by batch, in one process; CPU seconds of the process, so that a busy machine matters little.
LlamaModel is measured with the attention mask of the padding and without any mask (right padding needs none under
causal attention); the quicker one counts.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from conf.results import record
from conf.tokens import TOKENS_PER_ACTION, TokenLayout
from models.config import DecoderConfig, Recipe, TrainConfig, load_recipe
from models.data.batch import HistoryBatch, collate_history, predicting_tokens, take_rows, target_steps
from models.data.catalogue import day_ms
from models.data.dataset import BatchPlan, SampleBatches, SampleQuery
from models.data.slots import LiveSlots
from models.network.decoder import SpacetimeDecoder
from models.network.trunk import Trunk
from models.protocols.splits import PROTOCOLS, build_rows
from models.protocols.tables import DAY, build_tables, write_samples
from models.training.losses import next_poi_loss
from models.training.optimizer import build_optimizer
from models.training.pretrain import PRETRAIN_COLUMNS

RECIPE = "conf/models/checkins.yaml"
COMMAND = "make bench-train DATA=FOLDER"
SPEED_BAR, WASTE_BAR = ">= 1.2", "< 0.10"
HISTORY_LENGTHS = (64, 128, 256, 512, 1024)
TOKENS_PER_COST_BATCH = 8192
WARM_UP = 2
Step = Callable[[], Tensor]


def epoch_batches(
    folder: Path, protocol: str, recipe: Recipe, scratch: Path
) -> tuple[list[pa.Table], DecoderConfig, LiveSlots]:
    """Returns the batches of the first training epoch on a check-in folder, the sized configuration, and the slots."""
    tables = build_tables(build_rows(PROTOCOLS[protocol], folder), folder)
    written = write_samples(tables, scratch, window_actions=recipe.decoder.window_actions)
    own = recipe.pretrain
    plan = BatchPlan(own.batch_size, own.seed, own.buffer_rows, own.in_memory_rows, own.curriculum)
    query = SampleQuery(written.samples, DAY.isoformat(), "train", PRETRAIN_COLUMNS)
    slots = tables.index.slots
    layout = TokenLayout(
        1,
        num_blocks=tables.index.blocks.num_rows,
        max_inner=max(slots["inner_id"].to_pylist()) + 1,
        num_categories=len(tables.index.categories) + 1,
    )
    batches = list(SampleBatches(query, plan, scratch / "shards").read())
    config = recipe.decoder.with_layout(layout, num_pois=slots.num_rows)
    live = tables.index.catalogue.live_slots(
        day_ms(DAY), num_blocks=config.num_blocks, max_inner=config.max_inner
    )
    return batches, config, live


def padding_shares(batches: Sequence[pa.Table], window: int) -> dict[str, float]:
    """Returns the share of padding in an epoch: of the window's tokens, of past actions, of predicted steps."""
    real, held = [0, 0, 0], [0, 0, 0]
    for rows in batches:
        history = collate_history(rows)
        index_BW, _, is_target_BQ = target_steps(history, window)
        in_window = history.lengths_B.clamp(max=window)
        counts = (in_window.sum(), history.lengths_B.sum(), is_target_BQ.sum())
        for number, (count, size) in enumerate(
            zip(counts, (index_BW.numel(), history.timestamps_BL.numel(), is_target_BQ.numel()), strict=True)
        ):
            real[number] += int(count)
            held[number] += size
    names = ("window", "past", "steps")
    return {name: 1 - own / size for name, own, size in zip(names, real, held, strict=True)}


def copy_to_llama(trunk: Trunk) -> LlamaModel:
    """Returns a LlamaModel of the trunk's shape with its weights."""
    own = trunk.config
    llama = LlamaModel(
        LlamaConfig(  # type: ignore[call-arg]
            vocab_size=8, hidden_size=own.hidden_dim, intermediate_size=own.ffn_dim, use_cache=False,
            num_hidden_layers=own.num_layers, num_attention_heads=own.num_heads, rms_norm_eps=own.norm_eps,
            num_key_value_heads=own.num_kv_heads, rope_theta=own.rope_theta, attn_implementation="sdpa",
        )
    )  # fmt: skip
    head = own.hidden_dim // own.num_heads
    sizes = [own.num_heads * head, own.num_kv_heads * head, own.num_kv_heads * head]
    with torch.no_grad():
        for ours, theirs in zip(trunk.layers, llama.layers, strict=True):
            attention = theirs.self_attn
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            for linear, part in zip(
                projections, ours.attention.query_key_value.weight.split(sizes), strict=True
            ):
                linear.weight.copy_(part)
            attention.o_proj.weight.copy_(ours.attention.output.weight)
            for linear, part in zip(
                (theirs.mlp.gate_proj, theirs.mlp.up_proj), ours.ffn.gate_up.weight.chunk(2), strict=True
            ):
                linear.weight.copy_(part)
            theirs.mlp.down_proj.weight.copy_(ours.ffn.down.weight)
    return llama


class Contest:
    """One model of each kind, trained on the same embedded tokens."""

    def __init__(self, config: DecoderConfig, train_config: TrainConfig) -> None:
        torch.manual_seed(0)
        self.config = config.model_copy(update={"dropout": 0.0, "embedding_dropout": 0.0})
        self.trunk = Trunk(self.config)
        self.models: dict[str, nn.Module] = {
            "ours": self.trunk,
            "llama-mask": copy_to_llama(self.trunk),
            "llama": copy_to_llama(self.trunk),
        }
        self.layers = nn.ModuleList([self.trunk.layers, self.trunk.norm])
        self.optimizers = {
            name: build_optimizer(self.layers if name == "ours" else model, train_config)
            for name, model in self.models.items()
        }
        self.seconds: dict[str, list[float]] = {name: [] for name in self.models}
        self.tokens: list[int] = []
        self.gap = 0.0

    def run(self, history: HistoryBatch) -> None:
        """Takes one step of every model on a batch."""
        index_BW, window_BQ, is_target_BQ = target_steps(history, self.config.window_actions)
        real_BW = torch.arange(index_BW.shape[1]) < history.lengths_B[:, None]
        valid_BT = nn.functional.pad(real_BW.repeat_interleave(TOKENS_PER_ACTION, dim=1), (1, 0), value=True)
        embedded = torch.randn(*valid_BT.shape, self.config.hidden_dim)
        wanted_BN = 1 + predicting_tokens(window_BQ)  # behind the user token
        counts_BN1 = torch.cat([is_target_BQ, is_target_BQ], dim=1)[..., None]
        goals = torch.randn(*wanted_BN.shape, self.config.hidden_dim)
        positions = torch.arange(valid_BT.shape[1])[None]
        found: dict[str, Tensor] = {}
        for name, model in self.models.items():
            own = (
                embedded.clone().requires_grad_()
            )  # embeddings are learned: their gradient is part of a step
            started = time.process_time()
            if name == "ours":
                states, _ = self.trunk.run(own, positions, None, None, wanted_BN)
            else:
                mask = valid_BT.long() if name == "llama-mask" else None
                output = model(inputs_embeds=own, attention_mask=mask, position_ids=positions)
                states = take_rows(output.last_hidden_state, wanted_BN)
            loss = ((states - goals).square() * counts_BN1).sum() / counts_BN1.sum().clamp(min=1)
            loss.backward()
            optimizer = self.optimizers[name]
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.seconds[name].append(time.process_time() - started)
            found[name] = states.detach() * counts_BN1
        self.tokens.append(int(valid_BT.sum()))
        if len(self.tokens) == 1:  # the same weights: the same states, or the contest is void
            self.gap = max(float((states - found["ours"]).abs().max()) for states in found.values())

    def rates(self) -> dict[str, float]:
        """Returns the tokens per CPU second of every model, warm-up left out."""
        tokens = sum(self.tokens[WARM_UP:])
        return {name: tokens / sum(seconds[WARM_UP:]) for name, seconds in self.seconds.items()}

    def ratio_spread(self) -> tuple[float, float]:
        """Returns the smallest and the middle ratio of single batches to the quicker LlamaModel."""
        ratios = [
            min(masked, plain) / ours
            for ours, masked, plain in zip(
                *(seconds[WARM_UP:] for seconds in self.seconds.values()), strict=True
            )
        ]
        return min(ratios), median(ratios)


def cost_by_length(config: DecoderConfig, live: LiveSlots, length: int) -> float:
    """Returns CPU milliseconds of a training step per sequence: a window at the end of a history of some length."""
    torch.manual_seed(0)
    sequences = max(1, TOKENS_PER_COST_BATCH // (TOKENS_PER_ACTION * length))
    model = SpacetimeDecoder(config).train()
    history = draw_history(config, live, sequences, length)
    seconds = []
    for _ in range(WARM_UP + 1):
        started = time.process_time()
        loss, count = next_poi_loss(model.next_poi_log_probs(history, live))
        (loss / count).backward()
        model.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - started)
    return 1000 * min(seconds) / sequences


def draw_history(config: DecoderConfig, live: LiveSlots, sequences: int, length: int) -> HistoryBatch:
    """Returns random pasts of one length; the last window's actions are targets."""

    def draw(high: int) -> Tensor:
        return torch.randint(0, high, (sequences, length))

    lengths = torch.full((sequences,), length)
    blocks, inners = (ids[draw(len(live.keys_N))] for ids in live.ids())
    places = torch.rand(sequences, length, 2) * 0.2
    return HistoryBatch(
        lengths_B=lengths,
        num_context_B=(lengths - config.window_actions).clamp(min=0),
        timestamps_BL=(draw(90) * 600_000).cumsum(dim=1),
        tz_offsets_BL=torch.zeros(sequences, length, dtype=torch.int64),
        user_lonlat_BL2=places,
        action_types_BL=draw(8),
        blocks_BL=blocks,
        inners_BL=inners,
        poi_lonlat_BL2=places,
        categories_BL=draw(max(config.num_categories, 1)),
        is_targets_BL=torch.ones(sequences, length, dtype=torch.bool),
        profile_ids_BP=torch.zeros(sequences, 0, dtype=torch.int64),
    )


def describe_costs(config: DecoderConfig, live: LiveSlots) -> str:
    """Returns the cost per history length of the memory and of the transformer, one text."""
    told = []
    for length in HISTORY_LENGTHS:
        memory = cost_by_length(config, live, length)
        whole = cost_by_length(_without_memory(config, window=length), live, length)
        told.append(f"{length}: {memory:.0f} / {whole:.0f}")
    return (
        "CPU ms of a training step per sequence by actions of history, window of "
        f"{config.window_actions} and the rest in the memory / all of it in the transformer and a target: "
        + ", ".join(told)
    )


def _without_memory(config: DecoderConfig, *, window: int) -> DecoderConfig:
    memory = config.memory.model_copy(update={"enabled": False})
    return config.model_copy(update={"memory": memory, "window_actions": window})


def main() -> int:
    """Measures and records."""
    parser = argparse.ArgumentParser(
        description="Measures training speed, padding and cost per history length."
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="check-in folder")
    parser.add_argument("--protocol", default="nyc-table6")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--batches", type=int, default=40, help="batches of the epoch that are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        batches, config, live = epoch_batches(options.data, options.protocol, recipe, Path(scratch))
    shares = padding_shares(batches, config.window_actions)
    contest = Contest(config, recipe.pretrain)
    for rows in batches[: options.batches]:
        contest.run(collate_history(rows))
    costs = describe_costs(config, live)
    about = (
        f"{options.protocol}, recipe {recipe.name}, {options.threads} CPU threads, torch {torch.__version__}"
    )
    rates = contest.rates()
    ratio = rates["ours"] / max(rates["llama"], rates["llama-mask"])
    smallest, middle = contest.ratio_spread()
    notes = (
        f"tokens per CPU second: ours {rates['ours']:.0f}, LlamaModel without mask {rates['llama']:.0f} and with the "
        f"mask of the padding {rates['llama-mask']:.0f}; {len(contest.tokens) - WARM_UP} batches of {about}; single "
        f"batches: middle {middle:.2f}, smallest {smallest:.2f}; before the first step their states differ by "
        f"{contest.gap:.0e} at most; ours computes the last layer for the tokens that predict a target only; {costs}"
    )
    record("train-vs-hf-llama", round(ratio, 3), "", SPEED_BAR, COMMAND, notes, options.results)
    notes = (
        f"share of padded tokens in the transformer's windows, {len(batches)} batches of an epoch; of past actions "
        f"(memory) {shares['past']:.3f}, of predicted steps {shares['steps']:.3f}; {about}"
    )
    record("padding-waste", round(shares["window"], 4), "", WASTE_BAR, COMMAND, notes, options.results)
    sys.stdout.write(
        f"train-vs-hf-llama {ratio:.3f} {SPEED_BAR}, padding-waste {shares['window']:.4f}\n{costs}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
