"""Recipes of models: the shape of the decoder and the training of each stage; read from `conf/models/*.yaml`.

A recipe does not describe data. Vocabulary sizes come from the POI index through `conf.tokens.TokenLayout`, so the same
recipe serves a small city and a country.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from conf.settings import Section, load_model
from conf.tokens import TokenLayout

PreferenceKind = Literal["dpo", "s-dpo", "ipo"]
"""Losses that learn from a chosen POI and rejected ones."""


class MemoryConfig(Section):
    """The history copy (docs/design.md 4, ours); off = the paper's model."""

    removed: ClassVar[Mapping[str, object]] = {"table_rate": 10.0, "large_table_rate": 2.0}

    enabled: bool = Field(
        True, description="mix copies of the user's own past POIs into the generator's distribution"
    )
    key_dim: int = Field(64, ge=1, description="width of the content match between a step and a past action")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="on the input embeddings that keys of past actions and slots are made of"
    )
    clock_tables: bool = Field(True, description="learned tables over pairs of hours and of weekdays")
    routine_tables: bool = Field(
        False,
        description="learned tables over routines: equal runs of actions, place in the day, visits to the POI today",
    )


class CrowdConfig(Section):
    """The crowd copy (ours): copies POIs that other users' rows suggest; off = the user's own history only."""

    enabled: bool = Field(
        False, description="mix crowd candidates into the distribution of the next POI, where some are given"
    )
    num_followers: int = Field(8, ge=0, description="crowd candidates that follow the current POI")
    num_near: int = Field(72, ge=0, description="crowd candidates near the user that fit user and hour")
    start: float = Field(-4.0, description="start of every crowd candidate's score")
    ranking_weight: float = Field(
        0.0,
        ge=0,
        description="of the cross-entropy of new POIs among new candidates, added to the loss of pre-training",
    )
    mlp_dim: int = Field(
        0,
        ge=0,
        description="width of a small network that scores candidates by the numbers behind their buckets; 0 = off",
    )

    @property
    def num_slots(self) -> int:
        """Crowd candidates of a request."""
        return self.num_followers + self.num_near


class InterestMatchConfig(Section):
    """The interest match (ours): candidates against the user's past, for towers and click head; off = the paper's."""

    removed: ClassVar[Mapping[str, object]] = {"match_rate": 1.0, "head_rate": 10.0}

    enabled: bool = Field(
        False,
        description="add the match to both towers; give the click head the match and the generator's log P(POI)",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="on the input embeddings that are matched")
    distinct: bool = Field(
        False,
        description="give the click head a second match: the sum of distinct past POIs over the root of their number",
    )
    towers: bool = Field(
        False,
        description="give the click head the cosine of both towers, too; worth it if pre-training trains them",
    )


class DecoderConfig(Section):
    """Shape of the decoder; most keys have an obvious twin in transformers' LlamaConfig."""

    renamed: ClassVar[Mapping[str, str]] = {"others": "crowd", "taste": "interest_match"}
    removed: ClassVar[Mapping[str, object]] = {
        "geo_scales_km": (100.0, 25.0, 5.0, 1.0, 0.25),
        "geo_waves_km": (20_000.0, 4_000.0, 800.0, 160.0, 32.0, 8.0, 2.0),
    }

    hidden_dim: int = Field(64, ge=2, description="model width")
    ffn_dim: int = Field(192, ge=1, description="inner width of the SwiGLU")
    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(4, ge=1)
    num_kv_heads: int = Field(4, ge=1, description="heads of keys and values; a divisor of num_heads")
    rope_theta: float = Field(10_000.0, gt=0)
    norm_eps: float = Field(1e-6, gt=0)
    dropout: float = Field(
        0.2, ge=0, lt=1, description="on the output of each attention and feed-forward part"
    )
    embedding_dropout: float = Field(0.3, ge=0, lt=1, description="on token embeddings")
    window_actions: int = Field(
        50, ge=2, description="actions the transformer reads, the predicted one included"
    )
    embedding_dim: int = Field(64, ge=2, description="length of user and POI vectors")
    memory: MemoryConfig = MemoryConfig()
    crowd: CrowdConfig = CrowdConfig()
    interest_match: InterestMatchConfig = InterestMatchConfig()
    spacetime: bool = Field(
        True, description="time and place in the tokens; off = the paper's ablation: neither, in any token"
    )
    hide_request_time: bool = Field(
        False, description="the time of the step is not known: its clock is that of the action before"
    )
    poi_vectors: Literal["off", "exact", "hashed"] = Field(
        "exact",
        description="vector of a POI's own beside the shared inner vector: one row each, or hashed rows",
    )
    place_std: float = Field(
        0.0,
        ge=0,
        description="spread of block and POI vectors at the start, a tenth of it for geo: so one place of the past"
        " can be told from another, and copied, before its vector is learned; 0 = blocks and geo as all else, POI"
        " vectors zero",
    )
    poi_rows: int = Field(0, ge=0, description="rows of POI vectors; 0 = filled in from the index")
    tie_embeddings: bool = Field(True, description="output vectors are the input vectors")
    tie_side_information: bool = Field(
        False,
        description="output vectors are the whole input vectors, place (blocks) and category and place (POIs) included;"
        " off = the vectors of block and inner id, and the POI's own, alone",
    )
    multimodal_dim: int = Field(0, ge=0, description="length of given POI vectors (text, image); 0 = off")
    multimodal_rows: int = Field(
        0, ge=0, description="given POI vectors that the model carries; filled in where they are fused"
    )
    geo_buckets: int = Field(2048, ge=2, description="hash buckets per scale of geo cells")
    holidays: tuple[str, ...] = Field(
        ("01-01", "12-24", "12-25", "12-26", "12-31"), description="fixed-date holidays, MM-DD, local"
    )
    headroom: float = Field(
        1.25, ge=1, description="capacities over what the index holds now, so that it can grow"
    )
    index_version: int = Field(1, ge=1, description="filled in from the token layout")
    num_blocks: int = Field(0, ge=0, description="capacity; filled in from the token layout")
    max_inner: int = Field(0, ge=0, description="capacity; filled in from the token layout")
    num_categories: int = Field(0, ge=0, description="capacity; filled in from the token layout")

    @model_validator(mode="after")
    def _check_parts(self) -> "DecoderConfig":
        if self.hidden_dim % self.num_heads or (self.hidden_dim // self.num_heads) % 2:
            raise ValueError("hidden_dim / num_heads must be a whole even number")
        if self.num_heads % self.num_kv_heads:
            raise ValueError("num_kv_heads must divide num_heads")
        if self.tie_side_information and (not self.tie_embeddings or self.interest_match.enabled):
            # Candidates of ranking SFT come without the live slots that such outputs need.
            raise ValueError("tie_side_information needs tie_embeddings, and goes without interest_match")
        return self

    @property
    def layout(self) -> TokenLayout:
        """The token layout whose capacities this configuration has."""
        return TokenLayout(self.index_version, self.num_blocks, self.max_inner, self.num_categories)

    def describe(self) -> dict[str, object]:
        """Returns what digests are made of; keys younger than trainings are left out while they are off."""
        younger = {name for name in ("distinct", "towers") if not getattr(self.interest_match, name)}
        crowd = {name for name in ("mlp_dim", "ranking_weight") if not getattr(self.crowd, name)}
        return self.model_dump(mode="json", exclude={"interest_match": younger, "crowd": crowd})

    def with_layout(self, layout: TokenLayout, *, num_pois: int = 0) -> "DecoderConfig":
        """Returns a copy with the capacities of `layout`.

        Args:
            layout: capacities, headroom included (see `size_layout`).
            num_pois: slots in the index; the default number of rows of POI vectors depends on it.
        """
        # Every block gets its share rounded up, which takes up to one more row per block.
        rows = self.poi_rows or math.ceil(num_pois * self.headroom) + 2 * layout.num_blocks
        return self.model_copy(
            update={
                "index_version": layout.index_version,
                "num_blocks": layout.num_blocks,
                "max_inner": layout.max_inner,
                "num_categories": layout.num_categories,
                "poi_rows": 0 if self.poi_vectors == "off" else rows,
            }
        )


class TrainConfig(Section):
    """How one stage is trained."""

    removed: ClassVar[Mapping[str, object]] = {"ema_decay": 0.0, "beta1": 0.9, "beta2": 0.98}
    added: ClassVar[tuple[str, ...]] = ("criterion",)
    """Keys that are younger than trainings that may be resumed."""

    epochs: int = Field(4, ge=0, description="passes over the training split")
    max_steps: int = Field(0, ge=0, description="optimiser steps at most; 0 = as many as the epochs need")
    batch_size: int = Field(16, ge=1, description="samples per optimiser step")
    micro_batch_size: int = Field(0, ge=0, description="samples per forward pass; 0 = batch_size")
    learning_rate: float = Field(2e-3, gt=0)
    min_learning_rate: float = Field(1e-5, ge=0, description="end of the cosine")
    warmup_steps: int = Field(60, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    seed: int = 1
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 = autocast where the device has it"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...; auto = cuda if there is one")
    val_every: int = Field(0, ge=0, description="optimiser steps between validations; 0 = once an epoch")
    patience: int = Field(2, ge=1, description="validations without a better one before training stops")
    criterion: Literal["loss", "misranked"] = Field(
        "loss",
        description="validation figure whose minimum chooses the weights; misranked = 1 - AUC, of both SFTs only, for a"
        " loss that also measures how far scores are spread",
    )
    validate_start: bool = Field(
        False, description="validate before the first step: the start may be the best"
    )
    checkpoint_every: int = Field(200, ge=1, description="optimiser steps between checkpoints")
    curriculum: bool = Field(
        True, description="local and travel samples before mixed ones in the first epoch (pre-training)"
    )
    in_memory_rows: int = Field(
        200_000, ge=0, description="tables up to this size are kept in memory; larger ones stream"
    )
    buffer_rows: int = Field(
        8_192, ge=1, description="rows in memory while streaming; the span of length buckets"
    )

    def describe(self) -> dict[str, object]:
        """Returns the configuration for digests: `added` keys are left out at their defaults, so old digests hold."""
        fields = type(self).model_fields
        usual = {name for name in self.added if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=usual)


class InterestConfig(Section):
    """Interest pre-training (ours): two terms added to the next-POI loss; off = the paper's model."""

    enabled: bool = Field(
        False,
        description="train both towers, and the interest match with one POI left out, from the first stage on",
    )
    tower_weight: float = Field(0.5, ge=0, description="weight of the towers' cross-entropy over all slots")
    match_weight: float = Field(
        1.0, ge=0, description="weight of the match of a POI among those of its category and block"
    )
    centre_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the squared mean of the match over the POIs of a category and block, which holds it near"
        " 0, so that matches can be compared between groups",
    )
    poi_rate: float = Field(5.0, gt=0, description="factor on the learning rate of POI vectors")
    max_slots: int = Field(
        1024,
        ge=2,
        description="largest number of slots for an exact softmax of the towers; with more slots, the number of"
        " sampled negatives",
    )
    max_alternatives: int = Field(
        64, ge=1, description="largest number of alternatives of a matched POI; larger groups are sampled"
    )


class PretrainConfig(TrainConfig):
    """Pre-training with next-POI cross-entropy."""

    added: ClassVar[tuple[str, ...]] = (*TrainConfig.added, "interests")

    criterion: Literal["loss"] = "loss"
    interests: InterestConfig = InterestConfig()

    def describe(self) -> dict[str, object]:
        """As of every stage; a weight of interests that is younger than the others is left out while it is 0."""
        found = super().describe()
        if "interests" in found and not self.interests.centre_weight:
            found["interests"] = self.interests.model_dump(mode="json", exclude={"centre_weight"})
        return found


class EmbeddingSftConfig(TrainConfig):
    """Embedding SFT: two towers, InfoNCE."""

    removed: ClassVar[Mapping[str, object]] = {
        **TrainConfig.removed, "learn_temperature": True, "sampling_correction": False,
    }  # fmt: skip

    temperature: float = Field(0.07, gt=0, description="InfoNCE tau at the start; it is learned")
    drop_request: float = Field(0.3, ge=0, le=1, description="share of training requests made neutral")


class RankingSftConfig(TrainConfig):
    """Ranking SFT: click logits of isolated candidates."""

    added: ClassVar[tuple[str, ...]] = (*TrainConfig.added, "fit_head")

    fit_head: int = Field(
        0,
        ge=0,
        description="training requests on whose frozen evidence the click head is fitted before the first step; with a"
        " validation split the criterion never ends above that of this start; 0 = the state alone, from a random start",
    )


class AlignConfig(TrainConfig):
    """DPO, S-DPO or IPO."""

    criterion: Literal["loss"] = "loss"
    validate_start: bool = True
    beta: float = Field(0.1, gt=0, description="DPO beta")
    chosen_weight: float = Field(
        0.0,
        ge=0,
        description="of the cross-entropy of chosen POIs beside the preference loss, which alone lowers their"
        " probability together with that of the rejected ones; 0 = the paper's",
    )
    loss: PreferenceKind = Field(
        "dpo",
        description="s-dpo: all rejected POIs of a request in one term; ipo: a log ratio of 1 / (2 beta) nats is aimed"
        " at, for rules that say nothing about some requests",
    )


class Recipe(Section):
    """A decoder and how its stages are trained."""

    name: str = "tiny"
    fuse_poi_vectors: bool = Field(
        False,
        description="both SFTs take in the table poi_vectors (text of POIs) through a learned projection",
    )
    fuse_poi_images: bool = Field(
        False,
        description="both SFTs take in the table poi_image_vectors (pictures of POIs), as they do texts",
    )
    decoder: DecoderConfig = DecoderConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft_embedding: EmbeddingSftConfig = EmbeddingSftConfig()
    sft_ranking: RankingSftConfig = RankingSftConfig()
    align_dpo: AlignConfig = AlignConfig()

    @model_validator(mode="after")
    def _check_interests(self) -> "Recipe":
        decoder = self.decoder
        # Without the history copy the model reads the end of a history only: at another place in training than in
        # serving, which the towers would see.
        needed = decoder.interest_match.enabled, decoder.memory.enabled, decoder.poi_vectors != "off"
        if self.pretrain.interests.enabled and not all(needed):
            raise ValueError(
                "pretrain.interests needs decoder.interest_match.enabled, decoder.memory.enabled and "
                "decoder.poi_vectors"
            )
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Loads a recipe and applies `a.b=value` overrides; raises the errors of `conf.settings.load_model`."""
    return load_model(Recipe, [path], overrides)


def size_layout(
    *, index_version: int, num_blocks: int, max_inner: int, num_categories: int, headroom: float
) -> TokenLayout:
    """Sizes the vocabularies of a new model.

    Args:
        index_version: version of the block and inner assignment.
        num_blocks: largest block id + 1 in the index.
        max_inner: largest inner id + 1 in the index.
        num_categories: largest category id + 1.
        headroom: factor by which the index may grow before a new model is needed.
    """
    return TokenLayout(
        index_version=index_version,
        num_blocks=math.ceil(num_blocks * headroom) + 1,
        max_inner=math.ceil(max_inner * headroom) + 1,
        num_categories=math.ceil(num_categories * headroom) + 1,
    )
