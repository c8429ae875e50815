"""Token contract: how an action becomes tokens, which ids exist, and the fingerprint that a checkpoint carries.

Source: paper 3.2.1 and design section 4. Standard library only.
"""

from dataclasses import asdict, dataclass
from enum import IntEnum

from conf.files import digest_json


class Slot(IntEnum):
    """The tokens of one action, in the order in which the decoder reads them."""

    SPACETIME = 0
    ACTION = 1
    BLOCK = 2
    INNER = 3


TOKENS_PER_ACTION = len(Slot)

PAD, USR, SEP, CAND = range(4)
NUM_SPECIAL = 4
"""Special ids come first in every vocabulary; ids of real things are shifted by this, inside the model only."""

IGNORE_INDEX = -100
"""Label of a position without loss; torch's own default."""

ACTION_TYPES = ("click", "navigate", "search", "order", "favorite", "share", "call", "checkin")
"""Closed list of action types; the position is `action_type_id`. Append only: ids are in checkpoints."""

UNKNOWN_CATEGORY = 0
PROFILE_BUCKETS = 1024
"""Profile attributes are hashed into ids 1 to this."""


def action_type_id(action_type: str) -> int:
    """Returns the id of an action type; ValueError if it is not in `ACTION_TYPES`."""
    if action_type not in ACTION_TYPES:
        raise ValueError(f"unknown action type {action_type!r}; known: {', '.join(ACTION_TYPES)}")
    return ACTION_TYPES.index(action_type)


@dataclass(frozen=True)
class TokenLayout:
    """The properties that must agree between a table of samples and a checkpoint.

    Attributes:
        index_version: version of the block and inner assignment.
        num_blocks: capacity of the block vocabulary (with headroom), special ids not counted.
        max_inner: capacity of the inner vocabulary.
        num_categories: capacity of the category vocabulary.
    """

    index_version: int
    num_blocks: int
    max_inner: int
    num_categories: int

    def fingerprint(self) -> str:
        """Returns 16 hex digits over the layout: slot order, special ids, action types, capacities, version."""
        content = {
            "slots": [slot.name for slot in Slot],
            "num_special": NUM_SPECIAL,
            "action_types": ACTION_TYPES,
            "profile_buckets": PROFILE_BUCKETS,
            **asdict(self),
        }
        return digest_json(content)

    def holds(self, *, num_blocks: int, max_inner: int, num_categories: int) -> bool:
        """Tells whether an index of this size fits into the capacities."""
        return (
            num_blocks <= self.num_blocks
            and max_inner <= self.max_inner
            and num_categories <= self.num_categories
        )
