"""What a network is trained on: the contract of an objective, the table of those there are, and training with labels.

A user's own objective is a `module:function` in the experiment file (`train: {objective: my_module:brightness}`). The
function takes the training settings, the problem and the number of training images, and returns an object with the
members of `Objective`. This one learns to tell the mean brightness of an image from its features:

    # my_module.py
    from torch import nn
    from nasplat.training.features import features

    class Brightness:
        views, needs_labels = 1, False

        def module(self, network):
            return nn.Linear(network.num_features, 1)  # trainable parts of its own; None where it has none

        def loss(self, network, extra, batch, generator):
            images = batch.views[0]
            guess = extra(features(network, images)).squeeze(1)
            return (guess - images.mean((1, 2, 3))).square().mean()

    def brightness(settings, problem, dataset_size):
        return Brightness()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Train
from nasplat.core.problem import Problem
from nasplat.core.user_function import load_function
from nasplat.training.contrastive import memory_bank, simclr
from nasplat.training.features import measured_shape

if TYPE_CHECKING:
    from nasplat.data.loader import Batch


class Objective(Protocol):
    """What the training loop asks of an objective. Nothing in it may wait for the device (`.item()`, `nonzero`).

    Attributes:
        views: augmented views of each image that a batch must hold.
        needs_labels: whether a batch must hold labels.
        first_plain: whether the first view must be the image as it is; may be left out.
        culprits: called with `extra`, the names of tasks whose loss is not finite; may be left out.
        identity: what else a checkpoint depends on, as text; may be left out.
        at: called before every step with the share of the budget, in [0, 1], that is spent; may be left out.
    """

    @property
    def views(self) -> int: ...

    @property
    def needs_labels(self) -> bool: ...

    def module(self, network: nn.Module) -> nn.Module | None:
        """Trainable parts and buffers beyond the network's (a projector, a memory bank); checkpointed with it.

        Called once, with torch's default generators seeded from the trial's seed and the network on its device.
        """
        ...

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of a batch, a tensor of no dimensions. `generator` is on the device; draw from no other."""
        ...


class Supervised:
    """Cross-entropy with labels.

    Label smoothing (Szegedy et al., Rethinking the Inception Architecture, 2016); mixup with a weight a sample (Zhang
    et al., mixup: Beyond Empirical Risk Minimization, 2018); an auxiliary classifier on the tap `auxiliary`, whose
    loss is added with a weight (Szegedy et al., Going Deeper with Convolutions, 2015).
    """

    views = 1
    needs_labels = True

    def __init__(self, settings: Train, problem: Problem, dataset_size: int) -> None:
        outputs = [output for output in problem.outputs if output.kind == "classification"]
        if not outputs:
            raise NasplatError(
                "objective supervised needs labels, and these data have none",
                "use objective: simclr or memory_bank, or data with labels",
            )
        self.output = outputs[0]
        self.input_shape = problem.input_shape
        self.label_smoothing = settings.label_smoothing
        self.mixup = settings.mixup
        self.auxiliary = settings.auxiliary

    def module(self, network: nn.Module) -> nn.Module | None:
        if not self.auxiliary:
            return None
        if not hasattr(network, "forward_taps"):
            raise NasplatError("auxiliary: this network has no tap for an auxiliary classifier", "use auxiliary: 0")
        shape = measured_shape(network, self.input_shape, lambda images: self._run(network, images, "auxiliary"))
        return auxiliary_head(shape, self.output.size)

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        images, labels = batch.views[0], batch.labels
        assert labels is not None  # the loop has asked
        weight: Tensor | None = None
        if self.mixup:
            weight = _beta(self.mixup, len(images), images.device, generator)
            # A batch is in random order already, so the neighbour is a random partner.
            images = _mixed(images, weight)
        if extra is None:
            logits = network(images)
            logits = logits[self.output.name] if isinstance(logits, dict) else logits
            return self._cross_entropy(logits, labels, weight)
        taps = network.forward_taps(images, (self.output.name, "auxiliary"))  # type: ignore[operator]
        loss = self._cross_entropy(taps[self.output.name], labels, weight)
        return loss + self.auxiliary * self._cross_entropy(extra(taps["auxiliary"]), labels, weight)

    def _run(self, network: Any, images: Tensor, tap: str) -> Tensor:
        found: Tensor = network.forward_taps(images, (tap,))[tap]
        return found

    def _cross_entropy(self, logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        logits = logits.float()
        if weight is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        options: dict[str, Any] = {"label_smoothing": self.label_smoothing, "reduction": "none"}
        own = F.cross_entropy(logits, labels, **options)
        partner = F.cross_entropy(logits, labels.roll(1), **options)
        return (weight * own + (1 - weight) * partner).mean()


def auxiliary_head(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The auxiliary classifier of NASNet (Zoph et al., 2018) for feature maps `(C, H, W)`.

    Pooling 5x5 with stride 3 (left out where maps are smaller), 1x1 convolution to 128 channels, a convolution over
    all that is left to 768, linear.
    """
    channels, height, width = shape
    pool: nn.Module = nn.Identity()
    if min(height, width) >= 5:
        pool = nn.AvgPool2d(5, stride=3)
        height, width = (height - 5) // 3 + 1, (width - 5) // 3 + 1
    return nn.Sequential(
        nn.ReLU(),
        pool,
        nn.Conv2d(channels, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, (height, width), bias=False),
        nn.BatchNorm2d(768),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, classes),
    )


def _beta(alpha: float, size: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """`(N,)` draws of Beta(alpha, alpha), on the device: a ratio of two gamma variables."""
    gamma = torch._standard_gamma(torch.full((2, size), alpha, device=device), generator=generator)
    return gamma[0] / gamma.sum(0)


def _mixed(images: Tensor, weight: Tensor) -> Tensor:
    weight = weight.reshape(-1, 1, 1, 1).to(images.dtype)
    return weight * images + (1 - weight) * images.roll(1, 0)


OBJECTIVE_ARGUMENTS = ("settings", "problem", "dataset_size")

# Name -> the objective, from the settings, the problem and the number of training images.
OBJECTIVES: dict[str, Callable[[Train, Problem, int], Objective]] = {
    "supervised": Supervised,
    "simclr": simclr,
    "memory_bank": memory_bank,
}


def make_objective(settings: Train, problem: Problem, dataset_size: int) -> Objective:
    """The objective that the settings name.

    Raises:
        NasplatError: an unknown name, or an objective that needs labels where there are none.
    """
    name = settings.objective
    if ":" in name:
        objective: Objective = load_function(name, "objective", OBJECTIVE_ARGUMENTS)(settings, problem, dataset_size)
        missing = [member for member in ("views", "needs_labels", "module", "loss") if not hasattr(objective, member)]
        if missing:
            raise NasplatError(f"objective {name!r} has no {missing[0]}", "see nasplat/training/objectives.py")
        return objective
    if name not in OBJECTIVES:
        known = f"there are {', '.join(OBJECTIVES)}, or module:function"
        raise NasplatError(f"there is no objective {name!r}", nearest(name, OBJECTIVES) + known)
    return OBJECTIVES[name](settings, problem, dataset_size)
