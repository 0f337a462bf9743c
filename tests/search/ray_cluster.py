"""A real Ray cluster of several raylets on this machine, and a driver process that tests can kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasplat.search.records import OnProgress, Record, TrialSpec

ROOT = Path(__file__).resolve().parents[2]
# Read by every process of Ray when it starts. The monitor would kill trials when another process takes the memory.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or what another test's Ray has left in the home would decide
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextmanager
def cluster(nodes: int, cpus: int = 1) -> Iterator[Any]:
    """Raylets with `cpus` each, of which the first is the head; `cluster.address` is where drivers connect."""
    from ray.cluster_utils import Cluster

    # Workers find the tests' evaluations.
    os.environ["PYTHONPATH"] = str(ROOT)
    own = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            own.add_node(num_cpus=cpus)
        yield own
    finally:
        own.shutdown()


def named(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Says which process ran it."""
    from tests.search.toys import quick

    record = quick(spec, on_progress)
    return type(record)("complete", {**record.metrics, "process": float(os.getpid())})


def short(spec: TrialSpec, on_progress: OnProgress) -> Record:
    time.sleep(0.5)
    return named(spec, on_progress)


def stuck(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """Never returns from C, so that no other thread runs."""
    re.match("(a+)+$", "a" * 60 + "b")
    raise AssertionError("it came back")


def endless(spec: TrialSpec, on_progress: OnProgress) -> Record:
    while True:
        time.sleep(0.05)
        on_progress({"step": 1})


class Driver:
    """A search in a process of its own, on a cluster."""

    def __init__(self, directory: Path, address: str, settings: dict[str, Any], evaluate: str) -> None:
        self.directory = directory
        arguments = [str(directory), address, json.dumps(settings), evaluate]
        self.process = subprocess.Popen([sys.executable, __file__, *arguments], env=ENVIRONMENT, cwd=ROOT)

    def records(self) -> int:
        return len(list(self.directory.glob("trials/*/record.json")))

    def wait_for_records(self, count: int, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while self.records() < count:
            assert time.monotonic() < until, f"{self.records()} of {count} trials after {seconds:g} s"
            assert self.process.poll() is None, "the driver ended"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def main(directory: str, address: str, settings: str, evaluate: str) -> None:
    from nasplat.artifacts.run_directory import RunDirectory
    from nasplat.core.errors import NasplatError
    from nasplat.search.driver import run_search
    from nasplat.search.ray_executor import RayExecutor
    from tests.search.toys import ToySpace, experiment

    chosen = json.loads(settings)
    run = Path(directory)
    run.mkdir(exist_ok=True)
    try:
        executor = RayExecutor(evaluate, address=address, workers=chosen["workers"], storage=run)
        run_search(
            experiment(**chosen["experiment"], run={"workers": chosen["workers"]}),
            RunDirectory(run),
            ToySpace(3),
            resume=True,
            evaluate=evaluate,
            executor=executor,
        )
    except NasplatError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(*sys.argv[1:])
