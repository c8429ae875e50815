"""Which model a worker gets, on which device; no Spark session."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from conf.errors import CapacityError, FingerprintError, IndexVersionError
from models.serving.bundle import Serving, digest_folder, load_bundle
from udfs.features import model_cache
from udfs.features.model_cache import ServedModel, check_index, load_model, task_device


class Counter:
    """Stands for Spark's accumulator."""

    value = 0

    def add(self, number: int) -> None:
        self.value += number


@pytest.fixture
def served(bundle, monkeypatch) -> ServedModel:
    """The small bundle as a worker gets it, in a process that has loaded nothing yet."""
    monkeypatch.setattr(model_cache, "_loaded", {})
    layout = load_bundle(bundle).layout
    return ServedModel(
        uri=str(bundle), folder=str(bundle), is_shipped=False, model_version="m/1", layout=layout,
        digest=digest_folder(bundle), is_simulated=False, loads=Counter(),
    )  # fmt: skip


def test_a_process_loads_a_model_once(served):
    assert load_model(served) is load_model(served)
    assert served.loads.value == 1


def test_another_model_takes_the_place_of_the_last(served, other_bundle):
    first = load_model(served)
    other = replace(served, folder=str(other_bundle), digest=digest_folder(other_bundle))

    assert load_model(other) is not first
    assert len(model_cache._loaded) == 1  # memory holds one model, not every one of the week


def test_a_folder_that_changed_since_the_driver_looked_is_refused(served):
    with pytest.raises(FingerprintError):
        load_model(replace(served, digest="0" * 16))


def test_an_index_of_the_models_version_and_size_passes(served):
    check_index(served, index_version=1, num_blocks=4, max_inner=8, num_categories=8)


def test_an_index_of_another_version_is_refused(served):
    with pytest.raises(IndexVersionError):
        check_index(served, index_version=2, num_blocks=4, max_inner=8, num_categories=8)


@pytest.mark.parametrize(
    ("size", "what"),
    [((5, 8, 8), "4 blocks"), ((4, 9, 8), "8 inner ids"), ((4, 8, 9), "8 categories")],
)
def test_an_index_beyond_a_capacity_is_refused(served, size, what):
    num_blocks, max_inner, num_categories = size
    with pytest.raises(CapacityError, match=what):
        check_index(
            served, index_version=1, num_blocks=num_blocks, max_inner=max_inner, num_categories=num_categories
        )


@pytest.mark.parametrize(
    ("dtype", "device", "has_units", "is_bfloat16"),
    [
        ("bfloat16", "cuda:1", True, True),
        ("bfloat16", "cuda:1", False, False),  # an older GPU
        ("bfloat16", "cpu", True, False),
        ("float32", "cuda:1", True, False),
    ],
)
def test_bfloat16_is_computed_in_where_it_is_wanted_and_the_device_has_it(
    served, monkeypatch, dtype, device, has_units, is_bfloat16
):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: has_units)

    bundle = load_model(replace(served, serving=Serving(dtype)))

    assert bundle.computes_bfloat16(device) is is_bfloat16


def test_a_task_takes_the_gpu_that_spark_gave_it(monkeypatch):
    context = SimpleNamespace(resources=lambda: {"gpu": SimpleNamespace(addresses=["3"])})
    monkeypatch.setattr(model_cache.TaskContext, "get", lambda: context)

    assert task_device() == "cuda:3"


def test_a_task_without_a_gpu_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(model_cache.TaskContext, "get", lambda: SimpleNamespace(resources=dict))

    assert task_device() == "cpu"
