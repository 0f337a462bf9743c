"""Checkpoints within a trial: one safetensors file with tensors, and a JSON record in its header.

One file, so that it is replaced as a whole: whoever is killed at any moment finds the earlier one or the later one.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

FILE = "training.safetensors"


def write(directory: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replaces the checkpoint of a directory, which is made where it is missing.

    Args:
        tensors: by name, on any device.
        record: plain data for JSON.

    Raises:
        OSError: it could not be written; the earlier checkpoint is still there.
    """
    # Copies: safetensors refuses tensors that share memory, and tied weights do.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(copies, metadata={"record": json.dumps(record)})
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{FILE}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / FILE)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # half a file takes the little room that is left
        raise
    _sync_directory(directory)


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors, on the CPU, and the record of a directory's checkpoint; None where there is none.

    A damaged file is warned of and taken as none: a trial can always start anew.
    """
    path = directory / FILE
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        tensors = load(content)
        (length,) = struct.unpack("<Q", content[:8])
        record: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["record"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        warnings.warn(f"the checkpoint {path} cannot be read ({error}); the trial starts anew", stacklevel=2)
        return None
    return tensors, record


def module_tensors(prefix: str, module: nn.Module | None) -> dict[str, Tensor]:
    """The parameters and buffers of a module, their names after a prefix."""
    state = module.state_dict() if module is not None else {}
    return {f"{prefix}.{name}": tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser, by the number of the parameter and the name of the state."""
    return {
        f"{prefix}.{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(prefix: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimiser_tensors` gave; the settings of the optimiser stay as they are."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix + "."):
            index, name = key.removeprefix(prefix + ".").split(".", 1)
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:
                # In the memory format of the parameter, so that every later sum runs in the order it would have.
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _sync_directory(directory: Path) -> None:
    # Makes the new name outlive a power cut, where the system can.
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
