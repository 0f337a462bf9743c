"""What the nodes of a Ray cluster can do, and where they differ from this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nasplat.jobs.doctor import PACKAGES, Finding

SECONDS = 120  # for the slowest node to import torch


def examine_cluster(address: str, folder: Path, data: Path | None = None) -> Iterator[Finding]:
    """Asks every node for its Python, packages, GPUs, and whether it sees the folder of runs and the data.

    Args:
        address: of the cluster.
        folder: where runs are written; it must be the same folder on all nodes.
        data: a file or folder that the trials read.

    Raises:
        NasplatError: nothing answers at the address.
    """
    from nasplat.search.ray_connection import connect, in_words, node_resources

    connected = connect(address)  # before Ray is imported, which then reads what this sets
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder.mkdir(parents=True, exist_ok=True)
    marker = folder.resolve() / f".nasplat-{uuid.uuid4().hex[:8]}"
    marker.write_text("nasplat doctor looks whether every node sees this file")
    try:
        here = look(str(marker), None if data is None else str(data.resolve()))
        nodes = [node for node in ray.nodes() if node["Alive"]]
        found = "; ".join(in_words(node) for node in node_resources())
        yield Finding("cluster", "good", f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} at {address}: {found}")
        task = ray.remote(num_cpus=0)(look)
        asked = {
            node["NodeID"]: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            for node in nodes
        }
        answers = {
            node: asked[node].remote(str(marker), None if data is None else str(data.resolve())) for node in asked
        }
        for node in nodes:
            name = f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})"
            try:
                yield compared(name, ray.get(answers[node["NodeID"]], timeout=SECONDS), here, data)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                yield Finding(name, "broken", f"nasplat does not run there: {reason}", "install nasplat on that node")
    finally:
        marker.unlink(missing_ok=True)
        if connected:
            ray.shutdown()


def look(marker: str, data: str | None) -> dict[str, Any]:
    """What a node is asked; it runs there."""
    versions = {}
    for name in ("nasplat", "ray", *PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    import torch

    return {
        "python": platform.python_version(),
        "versions": versions,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "folder": Path(marker).exists() and os.access(Path(marker).parent, os.W_OK),
        "data": data is None or Path(data).exists(),
    }


def compared(name: str, there: dict[str, Any], here: dict[str, Any], data: Path | None) -> Finding:
    """A node beside this machine: broken where a trial would fail or give another score."""
    if not there["folder"]:
        advice = "mount the folder of runs at the same path on all nodes, or search with --run on one that is"
        return Finding(name, "broken", "it does not see the folder where runs are written", advice)
    if not there["data"]:
        return Finding(name, "broken", f"it does not see the data at {data}", "mount the data at the same path")
    other = {
        package: f"{package} {version} (here {here['versions'][package]})"
        for package, version in there["versions"].items()
        if version != here["versions"][package]
    }
    gpus = f"{len(there['gpus'])} × {', '.join(sorted(set(there['gpus'])))}" if there["gpus"] else "no GPU"
    if there["python"].rpartition(".")[0] != here["python"].rpartition(".")[0]:
        other["python"] = f"Python {there['python']} (here {here['python']})"
    needed = {"nasplat", "ray", "torch", "python"} & other.keys()
    if needed:
        advice = "install the versions of this machine there: the same seed would give other scores"
        return Finding(name, "broken", ", ".join(other.values()), advice)
    if other:
        return Finding(name, "limited", f"{gpus}; {', '.join(other.values())}", "versions that differ may matter")
    return Finding(name, "good", f"{gpus}, torch {there['versions']['torch']}, Python {there['python']}")
