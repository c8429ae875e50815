"""Fusion of POI vectors: from the tables `poi_vectors` and `poi_image_vectors` to a decoder that carries them.

The post-training stages start from the pre-trained weights. With vectors the model gets an additional projection that
starts at zero: it starts as the pre-trained model and learns the weight of texts and pictures. Both make one vector,
one after the other, since a projection of the two together is the sum of a projection of each.
"""

from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import torch
from torch import Tensor, nn

from models.data.dataset import TableAt, read_table
from models.network.decoder import SpacetimeDecoder
from models.training.pretrain import load_pretrained

_PLACE_BUFFERS = ("block_centers_V2", "starts_V1")
"""Buffers with the centres of blocks and the rows of their POI vectors: geography, not weights."""


class SlotVectors(NamedTuple):
    """Vectors of slots: block and inner ids (N,), int64, and vectors (N, M), float32."""

    block_ids: Tensor
    inner_ids: Tensor
    vectors_NM: Tensor


NO_VECTORS = SlotVectors(
    torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
)


def read_slot_vectors(
    vectors: TableAt, poi_index: TableAt, *, day: str, index_version: int, encoder: str | None = None
) -> SlotVectors:
    """Reads the newest vector of every POI up to a day, for every slot of the POI, past slots included.

    Args:
        vectors: `poi_vectors` or `poi_image_vectors`; rows without a vector do not count.
        poi_index: table of the slots.
        day: last day of the rows, YYYY-MM-DD.
        index_version: index version of the slots.
        encoder: name of the encoder; None = the encoder of the newest rows.

    Raises:
        MissingInputError: there is no such table.
    """
    until = date.fromisoformat(day)
    is_known = (pds.field("day") <= until) & pds.field("vector").is_valid()
    rows = read_table(vectors, ("poi_id", "day", "encoder", "vector"), is_known)
    rows = rows.sort_by([("day", "ascending"), ("poi_id", "ascending")])
    if rows.num_rows:
        wanted = encoder or rows["encoder"][-1].as_py()
        rows = rows.filter(pds.field("encoder") == wanted)
    newest = _numbered(rows.select(["poi_id"]), "row").group_by("poi_id").aggregate([("row", "max")])
    condition = (pds.field("index_version") == index_version) & (pds.field("indexed_day") <= until)
    slots = _numbered(read_table(poi_index, ("poi_id", "block_id", "inner_id"), condition), "slot")
    slots = slots.join(newest, "poi_id", join_type="inner").sort_by("slot")  # a join keeps no order
    newest_vectors = rows["vector"].take(slots["row_max"])
    if not slots.num_rows:
        return NO_VECTORS
    flat = np.array(newest_vectors.combine_chunks().flatten(), dtype=np.float32)
    ids = [torch.from_numpy(slots[name].to_numpy().astype(np.int64)) for name in ("block_id", "inner_id")]
    return SlotVectors(ids[0], ids[1], torch.from_numpy(flat.reshape(slots.num_rows, -1)))


def _numbered(rows: pa.Table, name: str) -> pa.Table:
    return rows.append_column(name, pa.array(np.arange(rows.num_rows)))


def join_vectors(parts: Iterable[SlotVectors]) -> SlotVectors:
    """Joins vectors of several kinds to one vector per slot that has any of them, in the order of block and inner id.

    A slot without one of the kinds gets the mean of those that have it, which is zero once they are standardised.
    """
    filled = [part for part in parts if len(part.block_ids)]
    if not filled:
        return NO_VECTORS
    every = torch.cat([torch.stack([part.block_ids, part.inner_ids], dim=1) for part in filled])
    slots_N2, rows = every.unique(dim=0, return_inverse=True)
    joined, start = [], 0
    for part in filled:
        vectors = part.vectors_NM.mean(dim=0).repeat(len(slots_N2), 1)
        vectors[rows[start : start + len(part.block_ids)]] = part.vectors_NM
        joined.append(vectors)
        start += len(part.block_ids)
    return SlotVectors(slots_N2[:, 0], slots_N2[:, 1], torch.cat(joined, dim=1))


def start_posttraining(
    pretrained: Path, *, vectors: SlotVectors | None = None, from_scratch: bool = False
) -> SpacetimeDecoder:
    """Returns the model that a post-training stage starts from.

    Args:
        pretrained: folder of the pre-training stage.
        vectors: POI vectors, fused through a new projection; None = no vectors.
        from_scratch: True = new weights in the shape of the pre-trained model, for comparison.
    """
    model = load_pretrained(pretrained)
    config = model.config
    if vectors is not None and len(vectors.block_ids):
        rows, dim = vectors.vectors_NM.shape
        config = config.model_copy(update={"multimodal_dim": dim, "multimodal_rows": rows})
    if config is model.config and not from_scratch:
        return model
    fresh = SpacetimeDecoder(config)
    learned = {
        name: value
        for name, value in model.state_dict().items()
        if not from_scratch or name.endswith(_PLACE_BUFFERS)
    }
    fresh.load_state_dict(learned, strict=False)
    embedding = fresh.embedding
    if vectors is not None and embedding.given_vectors is not None and embedding.multimodal is not None:
        embedding.given_vectors.set_vectors(*vectors)
        nn.init.zeros_(embedding.multimodal.weight)
        if fresh.interest_match is not None:
            fresh.interest_match.start_texts(embedding.given_vectors.vectors_RM[: len(vectors.block_ids)])
    return fresh
