"""Data-parallel training: each process takes its share of every batch; gradients and counts are summed.

The processes belong to `torch.distributed`, started by torchrun or by Spark's TorchDistributor. `joined_group` joins
them into one group, with gloo for CPU tensors and NCCL for GPU tensors. The first process leads: it pins tables, logs
to MLflow, writes, evaluates and registers; the other processes follow (`models.training.followers`). Every process
holds the whole model and reads the same batches in the same order. Without dropout the result equals that of one
process to rounding. With dropout each process draws separate masks, and a resume is exact for one process only. All
processes must be able to read the checkpoints.
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
    """Joins the processes in torchrun's environment (RANK, WORLD_SIZE, MASTER_ADDR); a single process does nothing."""
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


def broadcast_message(message: Mapping[str, Any] | None) -> dict[str, Any]:
    """Broadcasts the first process's message, which must be JSON-serialisable; returns it in every process."""
    if num_processes() == 1:
        return dict(message or {})
    text = json.dumps(message).encode()
    size = torch.tensor([len(text)])
    dist.broadcast(size, 0)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if process_rank() == 0:
        buffer = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(buffer, 0)
    received: dict[str, Any] = json.loads(bytes(buffer.tolist()))
    return received


def process_rank() -> int:
    """Returns the rank of this process; 0 = the only process, or the one that writes checkpoints."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def num_processes() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rows(num_rows: int) -> slice:
    """Returns this process's slice of a batch; slices are as even as possible and may be empty."""
    first, stop = (num_rows * (process_rank() + more) // num_processes() for more in (0, 1))
    return slice(first, stop)


def own_share(rows: pa.Table) -> pa.Table:
    """Returns this process's rows of a batch."""
    span = own_rows(rows.num_rows)
    return rows.slice(span.start, span.stop - span.start)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sums the gradients of all processes, in place; a parameter without a gradient in a process counts as 0 there."""
    if num_processes() == 1:
        return
    # All processes must reduce the same parameters: if one skipped a parameter, the rest would hang.
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
    """Blocks until every process has reached this call."""
    if num_processes() > 1:
        dist.barrier()
