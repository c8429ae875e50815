"""Does a task of a real standalone cluster compute on the GPU that Spark has given to it? No GPU is needed.

    python -m tests.bench.gpu_tasks

A master and a worker are started. The worker's discovery script tells of two GPUs, as a script around nvidia-smi would;
each executor gets one, and each of its tasks asks `task_device`, what the feature jobs pass to torch. Records
`gpu-address-mismatches`: tasks whose device is not the address of their executor's GPU, plus GPUs that no task used.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyspark
from pyspark import TaskContext
from pyspark.sql import SparkSession

from conf.results import record
from udfs.features.model_cache import task_device

COMMAND = "make bench-gpu"
ADDRESSES = ("0", "3")
"""Not 0 and 1: a device counted from 0 would pass unseen."""
NUM_TASKS, TASK_SECONDS, PATIENCE_SECONDS = 8, 1.0, 90
ROOT = Path(__file__).parents[2]


def tell_devices(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Returns, per task, the addresses that Spark gave it and the device that the feature jobs would use."""
    for _ in batches:
        time.sleep(TASK_SECONDS)  # long enough that both executors get tasks
        context = TaskContext.get()
        assert context is not None
        yield pa.RecordBatch.from_pydict(
            {"given": [",".join(context.resources()["gpu"].addresses)], "device": [task_device()]}
        )


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Runs a master and a worker with two GPUs; yields the master's URL."""
    script = folder / "gpus.sh"
    names = ", ".join(f'"{address}"' for address in ADDRESSES)
    script.write_text(f'#!/bin/sh\necho \'{{"name": "gpu", "addresses": [{names}]}}\'\n')
    script.chmod(0o755)
    properties = folder / "worker.conf"
    properties.write_text(
        f"spark.worker.resource.gpu.amount {len(ADDRESSES)}\nspark.worker.resource.gpu.discoveryScript {script}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, package = f"spark://127.0.0.1:{port}", "org.apache.spark.deploy"
    master = [f"{package}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]
    worker = [
        f"{package}.worker.Worker",
        "--properties-file",
        str(properties),
        "--webui-port",
        "0",
        "--cores",
        "2",
    ]
    worker += ["--memory", "2g", "--work-dir", str(folder / "work"), url]
    processes = [_start(command, folder) for command in (master, worker)]
    try:
        yield url
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "SPARK_NO_DAEMONIZE": "1",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "PYTHONPATH": str(ROOT),
        "PYSPARK_PYTHON": sys.executable,
    }
    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    with (folder / f"{command[0].rpartition('.')[2]}.log").open("wb") as log:
        return subprocess.Popen([str(spark_class), *command], env=env, stdout=log, stderr=subprocess.STDOUT)


def ask_tasks(url: str) -> list[tuple[str, str]]:
    """Returns (address given, device used) of every task."""
    conf = {
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.ui.enabled": "false",
        "spark.driver.memory": "512m", "spark.executor.memory": "512m", "spark.executor.cores": "1",
        "spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": "1",
        "spark.executorEnv.PYTHONPATH": str(ROOT), "spark.pyspark.python": sys.executable,
        "spark.sql.execution.arrow.pyspark.enabled": "true",
    }  # fmt: skip
    builder = SparkSession.builder.appName("gpu tasks").master(url)
    for name, value in conf.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    try:
        give_up = time.monotonic() + PATIENCE_SECONDS
        executors = spark.sparkContext._jsc.sc().getExecutorMemoryStatus  # the driver counts too
        while executors().size() < 1 + len(ADDRESSES):
            if time.monotonic() > give_up:
                raise SystemExit(f"no two executors after {PATIENCE_SECONDS} s")
            time.sleep(0.5)
        tasks = spark.range(0, NUM_TASKS, 1, NUM_TASKS)
        return [
            (row[0], row[1])
            for row in tasks.mapInArrow(tell_devices, "given string, device string").collect()
        ]
    finally:
        spark.stop()


def main() -> int:
    """Measures, records, and returns 0 if every task has the right device."""
    parser = argparse.ArgumentParser(description="Do tasks compute on the GPU that Spark gave them?")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpus-") as folder, cluster(Path(folder)) as url:
        tasks = ask_tasks(url)
    wrong = sum(device != f"cuda:{given}" for given, device in tasks)
    unused = len({*ADDRESSES} - {given for given, _ in tasks})
    notes = (
        f"Spark standalone, one worker, discovery script with GPUs {', '.join(ADDRESSES)} (no GPU there, none used); "
        f"{len(tasks)} tasks on devices {', '.join(sorted({device for _, device in tasks}))}"
    )
    missing = NUM_TASKS - len(tasks)
    result = record(
        "gpu-address-mismatches", wrong + unused + missing, "", "== 0", COMMAND, notes, options.results
    )
    print(f"gpu-address-mismatches {result.value}: {notes}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
