"""The one way to torchvision: `from nasplat.data.torchvision_import import torchvision`.

A torchvision that was built for CUDA cannot load its compiled operators beside a CPU build of torch, and then fails on
import, because it registers a fake for an operator that does not exist. Models, transforms and data sets are pure
Python, so the two operators that its import asks for are defined here, and the import is tried again. What stays
out of reach then: detection models' fast paths, `deform_conv2d`, and `torchvision.io` (decode with Pillow).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nasplat.core.errors import NasplatError

_libraries: list[Any] = []  # a library's operators vanish with the object that defined them


def non_maximum_suppression(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that stay, best score first; what `torchvision.ops.nms` returns.

    Args:
        dets: boxes `(N, 4)` as x1, y1, x2, y2.
        scores: `(N,)`.
        iou_threshold: a box that overlaps a better one by more than this goes.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    overlaps = shared / (area[:, None] + area[None, :] - shared) > iou_threshold
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for index in range(len(boxes)):
        if stays[index]:
            stays[index + 1 :] &= ~overlaps[index, index + 1 :]
    return order[stays]


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise NasplatError("torchvision is not installed", "pip install torchvision") from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    _libraries.append(library)
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl(operator, non_maximum_suppression, "CPU")
    return importlib.import_module("torchvision")


torchvision: Any = _import()
