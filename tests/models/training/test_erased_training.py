"""A training whose rows were erased since says so; after training again, it does not."""

from pathlib import Path

import pytest

from conf.errors import CorruptInputError, MissingInputError
from conf.files import ERASURES_FILE, write_json
from conf.settings import Settings, StorageSettings
from models.config import Recipe
from models.data.pins import Pin
from models.training.pipeline import Training, open_training, refuse_erased


@pytest.mark.operations("15")
@pytest.mark.parametrize(("version", "is_refused"), [(4, True), (5, False)])
def test_rows_that_were_erased_are_named_until_the_tables_are_pinned_again(
    tmp_path: Path, version: int, is_refused: bool
) -> None:
    training = Training(tmp_path, "2026-03-01", Recipe.model_construct(), Settings())
    training.pins = {"pretrain_samples": Pin(version, 10, 0, "00")}
    erased = {"erase-1": {"versions": {"pretrain_samples": 4}, "users": 1}}
    write_json(tmp_path / ERASURES_FILE, erased)

    if is_refused:
        with pytest.raises(
            MissingInputError, match=r"Erasure erase-1.*python -m models train --day 2026-03-01"
        ):
            refuse_erased(training)
    else:
        refuse_erased(training)


@pytest.mark.operations("15")
def test_a_record_of_a_training_that_was_cut_is_named(tmp_path: Path) -> None:
    settings = Settings(storage=StorageSettings(root=str(tmp_path / "w"), artifacts=str(tmp_path)))
    folder = tmp_path / "training" / "2026-03-01"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text('{"pins": {"pretrain_samp')

    with pytest.raises(CorruptInputError, match=r"training.json cannot be read as"):
        open_training(settings, "2026-03-01", Recipe.model_construct(), needs_validation=True)
