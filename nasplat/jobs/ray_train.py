"""One network trained by several workers of a Ray cluster, on one node or many, through Ray Train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasplat.artifacts.files import read_json, write_json
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.experiment import Experiment
from nasplat.search.ray_connection import connect, node_resources
from nasplat.search.ray_executor import TUNE
from nasplat.search.records import OnProgress, Record, TrialSpec

RESULT = "ray_train.json"
FAILURES = 1  # a worker or node that dies: all workers go on from the checkpoint, once


def evaluate(spec: TrialSpec, on_progress: OnProgress) -> Record:
    """As `nasplat.jobs.final.evaluate`, by `run.processes` workers of the cluster at `run.address`.

    Raises:
        TrialFailed: the training failed; see its log.
        NasplatError: no cluster, or too small a one.
    """
    run = Experiment.model_validate(spec.experiment).run
    world = int(run.processes)
    connect(run.address, world * run.threads)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    nodes = node_resources()
    gpu = any(node["GPU"] for node in nodes) and spec.device in ("auto", "cuda")
    if sum(node["GPU"] if gpu else node["CPU"] for node in nodes) < world:
        raise NasplatError(
            f"run.processes is {world}, and the Ray cluster has fewer {'GPUs' if gpu else 'CPUs'}", "lower it"
        )
    directory = Path(spec.directory).resolve()
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": replace(spec, directory=str(directory)).to_json()},
        scaling_config=ScalingConfig(
            num_workers=world, use_gpu=gpu, resources_per_worker={"CPU": run.threads, **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(
            name="train", storage_path=str(directory / TUNE), failure_config=FailureConfig(max_failures=FAILURES)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # whatever it was, Ray wraps it
        raise TrialFailed(f"training on Ray failed: {str(error).strip().splitlines()[-1]}") from error
    return Record(**read_json(directory / RESULT))


def _work(config: Mapping[str, Any]) -> None:
    """What every worker does. The first one leaves the record: Ray keeps metrics beside its own checkpoints alone."""
    from ray import train
    from ray.train.torch import get_device

    from nasplat.jobs.final import evaluate_shard
    from nasplat.training.distributed import Shard

    context = train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    task = {**config["task"], "device": str(get_device())}
    record = evaluate_shard(task, shard, lambda fields: None)
    if shard.rank == 0:
        write_json(Path(task["directory"]) / RESULT, record)
