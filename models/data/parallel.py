"""Several processes train as one: each takes its share of every batch, gradients and counts are summed.

The processes are those of `torch.distributed`, started by torchrun or by Spark's TorchDistributor; `joined_group` makes
them one group, gloo for what lies on CPUs and NCCL for GPUs. The first process leads: it pins tables, logs to MLflow,
writes, evaluates and registers; the others follow (`models.training.followers`). Every process holds the whole model
and reads the same batches in the same order, so that the result is that of one process to rounding, as long as dropout
is off; with dropout each draws its own masks, and a resume is exact for one process only. Checkpoints lie where all can
read them.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import nn


@contextmanager
def joined_group() -> Iterator[None]:
    """Joins the processes that torchrun's environment names (RANK, WORLD_SIZE, MASTER_ADDR); alone nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def threads_of_process() -> int:
    """Returns this process's share of the machine's cores, at least one."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def tell_all(message: Mapping[str, Any] | None) -> dict[str, Any]:
    """Sends the first process's message, which JSON must be able to hold, to all; returns it everywhere."""
    if num_processes() == 1:
        return dict(message or {})
    text = json.dumps(message).encode()
    size = torch.tensor([len(text)])
    dist.broadcast(size, 0)
    held = torch.zeros(int(size), dtype=torch.uint8)
    if process_rank() == 0:
        held = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(held, 0)
    found: dict[str, Any] = json.loads(bytes(held.tolist()))
    return found


def process_rank() -> int:
    """Returns the number of this process; 0 = the one that writes checkpoints, or there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def num_processes() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rows(num_rows: int) -> slice:
    """Returns which rows of a batch are this process's: stretches as even as can be, maybe none."""
    first, stop = (num_rows * (process_rank() + more) // num_processes() for more in (0, 1))
    return slice(first, stop)


def own_share(rows: pa.Table) -> pa.Table:
    """Returns this process's rows of a batch."""
    own = own_rows(rows.num_rows)
    return rows.slice(own.start, own.stop - own.start)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sums the gradients of all processes, in place; a parameter that a process did not use counts 0 there."""
    if num_processes() == 1:
        return
    # All must reduce the same parameters: one that a single process left out would hang the others.
    used = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    dist.all_reduce(used)
    for parameter, count in zip(parameters, used.tolist(), strict=True):
        if count:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient)
            parameter.grad = gradient


def sum_over_processes(*numbers: float) -> list[float]:
    """Returns each number summed over all processes, in float64."""
    if num_processes() == 1:
        return list(numbers)
    summed = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.tolist()


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if num_processes() > 1:
        dist.barrier()
