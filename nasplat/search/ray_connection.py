"""A Ray cluster: how to reach it, and what it has."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nasplat.core.errors import NasplatError

# Read by Ray and Tune when they are imported or started: no loggers, no files, no messages of their own.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}
# The start of HTTP/2, with empty settings, which every server answers with its own (RFC 9113).
_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" * 5


def connect(address: str | None, cpus: float = 1) -> bool:
    """Connects to a cluster, or starts Ray on this machine: without a dashboard, and for whoever has its token alone.

    Returns:
        Whether this call connected, and so whoever called it has to disconnect.

    Raises:
        NasplatError: Ray is not installed, or nothing answers at the address.
    """
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Ray looks for it only when it starts a cluster itself, and what it was imported with stays.
    if (Path.home() / ".ray/auth_token").is_file() and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise NasplatError("executor: ray needs Ray, which is not installed", "pip install 'nasplat[ray]'") from error
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": True}
    try:
        if address is not None:
            _reachable(address)
        if ray.is_initialized():
            _same_cluster(address)
            return False
        if address is None:
            here = max(os.cpu_count() or 1, int(cpus))
            ray.init(address="local", num_cpus=here, include_dashboard=False, _node_ip_address="127.0.0.1", **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, RuntimeError, OSError, ValueError) as error:
        raise NasplatError(
            f"there is no Ray cluster at {address}: {str(error).strip().splitlines()[0]}"
            if address
            else f"Ray cannot be started on this machine: {error}",
            "start one with scripts/ray_cluster head, or leave run.address out to use this machine alone",
        ) from error
    return True


def _same_cluster(address: str | None) -> None:
    import ray

    here = ray.get_runtime_context().gcs_address
    if address is not None and ":" in address and address != here:
        raise ConnectionError(f"this process is connected to {here} already")


def _reachable(address: str) -> None:
    """Whether something listens there that may be Ray, which itself waits for minutes.

    Raises:
        OSError: nothing listens, or what does speaks no HTTP/2, over which Ray's gRPC goes.
    """
    if address.startswith("ray://"):
        raise ConnectionError("Ray's client cannot be used: the search itself must run on a node, as HOST:PORT")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(_HTTP2_GREETING)
        answer = connection.recv(9)
    if answer[3:4] != _SETTINGS:
        raise ConnectionError("something else than Ray listens there")


def node_resources() -> list[dict[str, float]]:
    """CPUs and GPUs of every living node."""
    import ray

    return [
        {kind: float(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU")}
        for node in ray.nodes()
        if node["Alive"]
    ]


def in_words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items() if amount) or "nothing"
