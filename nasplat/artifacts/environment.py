"""What a result was made with: versions and machine, for headers, model cards and reports."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "optuna", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed; imports none of them."""
    # Of the code that runs, which in a checkout may not be what is installed; the package is there, or we were not.
    found = {"nasplat": str(sys.modules["nasplat"].__version__), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """System, processor and number of cores; names no host and no user."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
