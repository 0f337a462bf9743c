"""What this machine can do, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nasplat.core.errors import NasplatError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `good`, `limited` (something does without it) or `broken`."""

    about: str
    state: Literal["good", "limited", "broken"]
    detail: str
    advice: str = ""


PACKAGES = (
    "torch",
    "torchvision",
    "optuna",
    "numpy",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "fvcore",
    "thop",
    "plotly",
    "onnx",
    "onnxruntime",
    "onnxscript",
)
OPTIONAL = {"ray": "searches on a cluster: pip install 'nasplat[ray]'"}


def examine(folder: Path) -> Iterator[Finding]:
    """Looks at the machine, the packages, torch, torchvision, ONNX and the folder where runs are written."""
    yield _python()
    yield _machine()
    yield _packages()
    for check in (_torch, _torchvision, _onnx):
        yield _guarded(check)
    yield _disk(folder)
    for name, use in OPTIONAL.items():
        try:
            yield Finding(name, "good", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "limited", "not installed; nothing here needs it", use)


def _guarded(check: Callable[[], Finding]) -> Finding:
    about = check.__name__.strip("_")
    try:
        return check()
    except NasplatError as error:
        return Finding(about, "broken", error.message, error.advice)
    except Exception as error:
        first_line = str(error).splitlines()[0] if str(error) else ""
        return Finding(
            about, "broken", f"{type(error).__name__}: {first_line}", "install nasplat anew: scripts/nasplat"
        )


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} at {sys.executable}"
    return Finding("python", "good" if good else "broken", detail, "" if good else "nasplat needs Python 3.11 or newer")


def usable_cores() -> int:
    """CPU cores that this process may use, which is fewer than the machine has in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _machine() -> Finding:
    parts = [platform.platform(terse=True), f"{usable_cores()} CPU cores"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB memory")
    return Finding("machine", "good", ", ".join(parts))


def _packages() -> Finding:
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            "packages", "broken", f"missing: {', '.join(missing)}", "pip install nasplat, or use scripts/nasplat"
        )
    return Finding("packages", "good", ", ".join(versions))


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float32 only"
        value = torch.ones(8, device="cuda").sum().item()  # a driver that is too old fails here, not above
        state: Literal["good", "broken"] = "good" if value == 8 else "broken"
        return Finding("torch", state, f"{torch.cuda.device_count()} × {', '.join(names)}, {memory:.0f} GiB, {half}")
    if torch.version.cuda is not None:
        return Finding(
            "torch",
            "limited",
            f"built for CUDA {torch.version.cuda}, but no GPU answers; networks train on the CPU",
            "with a GPU in this machine: check its driver with nvidia-smi",
        )
    return Finding("torch", "good", "CPU build; networks train on the CPU, one thread a worker")


def _torchvision() -> Finding:
    from nasplat.data.torchvision_import import torchvision

    torchvision.models.resnet18()
    return Finding("torchvision", "good", "models, data sets and transforms load")


def _onnx() -> Finding:
    import onnxruntime

    return Finding("onnx", "good", f"onnxruntime runs on {', '.join(onnxruntime.get_available_providers())}")


def _disk(folder: Path) -> Finding:
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding(
            "disk", "broken", f"{existing} cannot be written", "run in a folder of your own, or use --run DIR"
        )
    free = shutil.disk_usage(existing).free / 2**30
    if free < 1:
        return Finding(
            "disk", "limited", f"{free:.1f} GiB free at {existing}", "free some space; a search keeps up to 1 GiB"
        )
    return Finding("disk", "good", f"{free:.0f} GiB free at {existing}")
