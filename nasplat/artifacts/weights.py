"""Weights as safetensors: no code in them, readable by anything.

Torch is imported when weights are written or read, not before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nasplat.artifacts.files import file_error, write_bytes
from nasplat.core.errors import NasplatError

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKSUM = "sha256"
_LARGEST_HEADER = 100_000_000  # bytes; what the format allows
_AGAIN = "train the architecture again (`nasplat train`), or restore the file from a copy"


def save_weights(
    weights: nn.Module | Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the weights of a module, or a state dict, whole or not at all.

    Tensors that several names share are written once a name, so that the file loads strictly into a module without
    knowing who shared what. A checksum over all of them goes into the metadata.

    Args:
        weights: a module, or names and tensors (any device, any layout).
        path: of the file.
        metadata: texts that travel with the weights, such as `digest` and `seed`.

    Raises:
        NasplatError: an entry is not a tensor or cannot be stored, or the disk is full or cannot be written to.
    """
    import torch
    from safetensors.torch import save

    state = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise NasplatError(
                f"cannot write {path}: the entry {name!r} of the state dict is a {type(tensor).__name__}, not a tensor",
                "keep such state in buffers, which are tensors",
            )
        if tensor.is_meta or tensor.is_sparse or tensor.is_quantized:
            raise NasplatError(f"cannot write {path}: {name!r} has no plain values", "store dense tensors")
        plain = tensor.detach().to("cpu").contiguous()
        if plain.untyped_storage().data_ptr() in storages or plain.untyped_storage().nbytes() > plain.nbytes:
            plain = plain.clone()  # safetensors refuses tensors that share memory
        storages.add(plain.untyped_storage().data_ptr())
        tensors[name] = plain
    texts = {key: str(value) for key, value in (metadata or {}).items()}
    try:
        data = save(tensors, metadata={**texts, CHECKSUM: checksum(tensors)})
    except Exception as error:  # what a format library raises is no contract
        raise NasplatError(f"cannot write {path}: {error}", "store dense tensors of a usual type") from error
    write_bytes(Path(path), data)


def load_weights(path: Path | str, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Raises:
        NasplatError: the file is missing, cut short, damaged, or no safetensors file.
    """
    from safetensors import safe_open

    _check_there(Path(path))
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise file_error(error, Path(path), "read") from error
    except Exception as error:
        raise NasplatError(f"the weights in {path} are damaged or cut short: {error}", _AGAIN) from error
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors):
        raise NasplatError(f"the weights in {path} are damaged: their checksum is another", _AGAIN)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def read_metadata(path: Path | str) -> dict[str, str]:
    """The texts that travel with the weights; needs no torch.

    Raises:
        NasplatError: the file is missing, or no safetensors file.
    """
    _check_there(Path(path))
    try:
        with Path(path).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _LARGEST_HEADER)))
        return dict(header.get("__metadata__", {}))
    except OSError as error:
        raise file_error(error, Path(path), "read") from error
    except (ValueError, AttributeError) as error:
        raise NasplatError(f"the weights in {path} are damaged: they have no readable header", _AGAIN) from error


def load_into(module: nn.Module, path: Path | str, digest: str | None = None) -> None:
    """Loads a file into a module, all of it or nothing.

    Args:
        module: takes the weights, on its own devices.
        path: of the file.
        digest: of the architecture that the weights must belong to, where the file says so.

    Raises:
        NasplatError: the file is damaged, belongs to another architecture, or its names or shapes are not the module's.
    """
    found = load_weights(path)
    written = read_metadata(path).get("digest")
    if digest and written and written != digest:
        raise NasplatError(
            f"the weights in {path} are those of architecture {written[:8]}, not of {digest[:8]}",
            "give the weights that were trained for this architecture",
        )
    own = module.state_dict()
    wrong = [f"{name!r} is missing" for name in own if name not in found]
    wrong += [f"{name!r} is not in the network" for name in found if name not in own]
    wrong += [
        f"{name!r} has shape {tuple(found[name].shape)}, the network {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more differences" if len(wrong) > 3 else ""
        raise NasplatError(
            f"the weights in {path} do not fit the network: {'; '.join(wrong[:3])}{more}",
            "build the network from the architecture file that lies beside the weights",
        )
    module.load_state_dict(found)


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise NasplatError(
            f"there are no weights at {path}",
            "a run keeps the weights of its front only; train the architecture again with `nasplat train`",
        )


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes; safetensors itself notices only what is cut short."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
