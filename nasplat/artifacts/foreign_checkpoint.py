"""Checkpoints that others made: read without running any code of theirs, with an account of what does not fit.

Torch is imported when a file is read, not before.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.files import file_error
from nasplat.artifacts.weights import load_weights
from nasplat.core.errors import NasplatError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where trainers keep the weights among other things, the most telling first.
_ENTRIES = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_OWNERS = ("model.", "net.", "network.", "backbone.", "encoder.")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """How a checkpoint was read.

    Args:
        entry: under which key the weights lay; empty where they were all of it.
        prefix: what was taken off the names.
        cast: the type of numbers that they were in, where it was not the module's.
    """

    entry: str
    prefix: str
    cast: str


def read_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint by name, without prefixes of wrappers, and the key under which they lay.

    Nothing is unpickled that is not a tensor or a plain container.

    Raises:
        NasplatError: no such file, cut short, not a checkpoint, one that needs code, or no weights in it.
    """
    path = Path(path)
    if path.is_dir():
        raise NasplatError(f"{path} is a folder, not a checkpoint", "give the file in it")
    if not path.is_file():
        raise NasplatError(f"there is no checkpoint {path}", f"it is looked for at {path.absolute()}")
    content = load_weights(path) if path.suffix == ".safetensors" else _torch_file(path)
    entry, tensors = _weights_in(content, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NasplatError(
                f"{path}: {name!r} holds values that are not finite", "the training that wrote it diverged"
            )
    return tensors, entry


def load_checkpoint(module: nn.Module, path: Path | str) -> Loaded:
    """Loads a checkpoint into a module, all of it or nothing; half precision becomes the module's type.

    Raises:
        NasplatError: it cannot be read, or names or shapes are not the module's; it lists which.
    """
    tensors, entry = read_checkpoint(path)
    own = module.state_dict()
    prefix, tensors = _fitting(tensors, own)
    _compare(tensors, own, Path(path))
    cast = {str(tensor.dtype) for name, tensor in tensors.items() if tensor.dtype != own[name].dtype}
    module.load_state_dict(tensors)
    return Loaded(entry, prefix, ", ".join(sorted(cast)).replace("torch.", ""))


def _torch_file(path: Path) -> Any:
    import pickle

    import torch

    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip()
    except OSError as error:
        raise file_error(error, path, "read") from error
    if not start:
        raise NasplatError(f"{path} is empty", "copy it again")
    if start[:1] == b"<" or start.startswith(b"version https://git-lfs"):
        what = "a web page" if start[:1] == b"<" else "a pointer of git-lfs"
        raise NasplatError(f"{path} is {what}, not a checkpoint", "the download went wrong; fetch the file itself")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise NasplatError(f"{path} is no checkpoint of torch", "it may be cut short; copy it again") from error
        raise NasplatError(
            f"{path} can only be read by running code: it holds a {wanted[1]}, and nasplat unpickles nothing",
            "where you trust it, save its weights alone in the program that wrote it:\n"
            f"model = torch.load({path.name!r}, weights_only=False)\n"
            'torch.save(model.state_dict(), "weights.pth")',
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NasplatError(f"{path} is damaged or no checkpoint of torch: {reason}", "copy it again") from error


def _weights_in(content: Any, path: Path, depth: int = 0) -> tuple[str, dict[str, Tensor]]:
    import torch

    if isinstance(content, torch.Tensor) or not isinstance(content, Mapping):
        raise NasplatError(f"{path} holds a {type(content).__name__}, not weights by name", "save a state dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors and len(tensors) == len(content):
        return "", tensors
    nested = [key for key, value in content.items() if isinstance(value, Mapping) and value]
    for key in sorted(nested, key=lambda key: _ENTRIES.index(key) if key in _ENTRIES else len(_ENTRIES)):
        if depth < 2 and (key in _ENTRIES or not tensors):
            try:
                inner, found = _weights_in(content[key], path, depth + 1)
            except NasplatError:
                continue
            return f"{key}.{inner}".rstrip("."), found
    if tensors:  # beside them stand an epoch, a name, …
        return "", tensors
    keys = ", ".join(map(repr, list(content)[:8])) or "nothing"
    raise NasplatError(f"{path} holds no weights by name; its keys are {keys}", "save model.state_dict()")


def _fitting(tensors: dict[str, Tensor], own: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Without prefixes that all names have: those of wrappers always, others where the names then fit better."""
    taken = ""
    while wrapper := next((one for one in _WRAPPERS if all(name.startswith(one) for name in tensors)), None):
        if set(tensors) == set(own):
            break
        tensors, taken = {name.removeprefix(wrapper): value for name, value in tensors.items()}, taken + wrapper
    for prefix in _OWNERS:
        inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if inner and set(inner) >= set(own) and not set(tensors) >= set(own):
            return taken + prefix, {name: value for name, value in inner.items() if name in own}
    return taken, tensors


def _compare(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in own if name not in tensors]
    # Counters of batch norm came later than many checkpoints, and are of no use here.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    other = [
        f"{name} is {tuple(tensors[name].shape)} there and {tuple(own[name].shape)} in the model"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if not (missing or unexpected or other):
        for name in own:
            if name not in tensors:
                tensors[name] = own[name]  # type: ignore[index]
        return
    lines = [
        f"{what}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for what, names in (("missing in it", missing), ("not in the model", unexpected), ("of another shape", other))
        if names
    ]
    advice = "give the function that makes this very network (model), with its arguments"
    if other and not missing and not unexpected and all("weight is" in one or "bias is" in one for one in other):
        classes = [one for one in own if tensors[one].shape != own[one].shape and tensors[one].dim() == 1]
        if len(other) <= 2 and classes:
            there, here = tensors[classes[0]].shape[0], own[classes[0]].shape[0]
            advice = (
                f"the checkpoint has {there} classes and the model {here}: give the model as many, for instance "
                f"arguments: {{num_classes: {there}}}, or --set arguments.num_classes={there}"
            )
    raise NasplatError(f"the checkpoint {path} does not fit the model; {'; '.join(lines)}", advice)
