"""Interest or functional, by category: the rules of `conf/taxonomy.yaml` and how they are applied.

In: a leaf category and its path (levels joined by ' > '). Out: a `Verdict`. `etl/tables/categories.py` applies the
same rules as column expressions, built from `names` and `word_patterns`; a test checks that both give the same
answers.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

LEVEL_SEPARATOR = " > "
TAXONOMY_FILE = Path(__file__).parent / "taxonomy.yaml"

Kind = Literal["interest", "functional"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Words(_Section):
    kind: Kind
    any_of: tuple[str, ...]


class _File(_Section):
    default: Kind
    names: dict[Kind, tuple[str, ...]]
    words: tuple[_Words, ...]
    home: tuple[str, ...]
    work: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one category; `is_known` is False if only the default applied."""

    is_interest: bool
    is_known: bool


@dataclass(frozen=True)
class Taxonomy:
    """The rules, ready to be applied.

    Attributes:
        names: lower-case name of a level -> whether it shows interest.
        word_patterns: (regular expression over the lower-case leaf, whether it shows interest), first match wins.
            The expressions are simple enough to mean the same in Python and Java.
        default_interest: answer for categories that no rule knows.
        home_names: lower-case categories of places where people live.
        work_names: lower-case categories of places where people work.
    """

    names: dict[str, bool]
    word_patterns: tuple[tuple[str, bool], ...]
    default_interest: bool
    home_names: tuple[str, ...]
    work_names: tuple[str, ...]

    def resolve(self, category: str, category_path: str = "") -> Verdict:
        """Decides one category: by its leaf, then its path from the deepest level up, then words."""
        leaf = category.strip().lower()
        for level in (
            leaf,
            *(part.strip().lower() for part in reversed(category_path.split(LEVEL_SEPARATOR))),
        ):
            if level in self.names:
                return Verdict(self.names[level], True)
        for pattern, is_interest in self.word_patterns:
            if re.search(pattern, leaf):
                return Verdict(is_interest, True)
        return Verdict(self.default_interest, False)


@lru_cache
def load_taxonomy(path: Path = TAXONOMY_FILE) -> Taxonomy:
    """Loads the rules; ValueError if a name is listed as both kinds or a key is unknown."""
    content = _File.model_validate(yaml.safe_load(path.read_text()))
    names: dict[str, bool] = {}
    for kind, listed in content.names.items():
        for name in (name.strip().lower() for name in listed):
            if name in names:
                raise ValueError(f"{path}: {name!r} is listed twice; a category has one kind")
            names[name] = kind == "interest"
    patterns = tuple(
        (rf"\b({'|'.join(words.any_of)})s?\b", words.kind == "interest") for words in content.words
    )
    return Taxonomy(
        names=names,
        word_patterns=patterns,
        default_interest=content.default == "interest",
        home_names=tuple(name.lower() for name in content.home),
        work_names=tuple(name.lower() for name in content.work),
    )
