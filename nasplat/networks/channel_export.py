"""The graph of a module's operations, by `torch.export`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from nasplat.core.errors import NasplatError


def export(model: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """The graph of a module's operations, without the fused ones that only run in evaluation.

    Raises:
        NasplatError: the module cannot be exported, or its forward fails.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensors that are kept in lists too, which changes nothing here
            return torch.export.export(model, inputs, strict=False)
    except Exception as error:
        shapes = [tuple(value.shape) for value in inputs if isinstance(value, Tensor)]
        first_line = str(error).strip().partition("\n")[0]
        raise NasplatError(
            f"{type(model).__name__} cannot be exported with inputs of shape {shapes}: {first_line}",
            "its forward must take these inputs, and must not branch on the values of tensors",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
