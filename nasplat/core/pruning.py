"""One pruning, one file: what is pruned, by how much, and how, as plain, validated data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nasplat.core.experiment import Data, Train
from nasplat.core.section import Section

Criterion = Literal[
    "random",
    "l1",
    "l2",
    "group_norm",
    "bn_scale",
    "lamp",
    "fpgm",
    "taylor",
    "hessian",
    "activation",
    "chip",
    "hrank",
]
FROM_LOSS: tuple[Criterion, ...] = ("taylor", "hessian")
# These look at images, those before at the loss on them; the others at weights alone.
FROM_DATA: tuple[Criterion, ...] = (*FROM_LOSS, "activation", "chip", "hrank")
Structure = Literal["channels", "mlp", "heads", "head_width"]
STRUCTURES: tuple[Structure, ...] = ("channels", "mlp", "heads", "head_width")


class Importance(Section):
    """Which channels matter."""

    criterion: Criterion = "group_norm"
    reduction: Literal["mean", "sum", "max", "product", "first"] = Field(
        "mean", description="of the scores of all tensors that lose something with a channel"
    )
    normalisation: Literal["none", "sum", "mean", "max", "standard"] = Field(
        "mean", description="of the scores of a group, so that those of different groups can be compared"
    )
    scope: Literal["global", "local", "block"] = Field(
        "global",
        description="global: the least important of all go first; local: every group loses the same share; block: "
        "every block of layers loses the same share, and within it the least important go first",
    )
    images: int = Field(1024, ge=1, description="training images that taylor, hessian, activation, chip and hrank see")


class Budget(Section):
    """What the pruned network may cost. A number up to 1 is a share of the original's, a larger one is absolute."""

    macs: float | None = Field(None, gt=0)
    params: float | None = Field(None, gt=0)
    latency: float | None = Field(None, gt=0, lt=1, description="share of the original's, measured on this machine")
    latency_batch: int = Field(1, ge=1, description="images at once when latency is measured")
    round_to: int = Field(1, ge=1, description="widths become multiples of this; 8 or 16 is what hardware likes")
    least: float = Field(0.1, ge=0, le=1, description="share of every group that stays whatever it scores")


class Sparsity(Section):
    """Training that makes channels unimportant before they are removed."""

    kind: Literal["slimming", "group_lasso", "growing"]
    strength: float = Field(1e-4, gt=0)
    train: dict[str, Any] = Field(default_factory=dict, description="overrides of the section train")


class Pruning(Section):
    """How a network is made smaller, and by how much."""

    structures: tuple[Structure, ...] = STRUCTURES
    only: tuple[str, ...] = Field((), description="patterns of groups, such as layer3.*; default: all")
    leave: tuple[str, ...] = Field((), description="patterns of groups that stay whole")
    blocks: int = Field(0, ge=0, description="so many whole residual blocks are removed first")
    importance: Importance = Field(default_factory=lambda: Importance())
    budget: Budget = Field(default_factory=lambda: Budget())
    steps: int = Field(1, ge=1, description="1 is one-shot; more prune a little, fine-tune, and look again")
    sparsity: Sparsity | None = None
    recalibrate: bool = Field(True, description="measure the statistics of batch norm anew where there are images")
    train: Train | None = Field(
        None,
        description="fine-tuning: half of it after the last step, the rest shared by the others; none where left out",
    )
    device: str = "auto"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_to_do(self) -> Pruning:
        budget = self.budget
        if budget.macs is None and budget.params is None and budget.latency is None and not self.blocks:
            raise ValueError("a pruning needs a budget: macs, params or latency, or blocks to remove")
        return self

    @property
    def needs_images(self) -> str | None:
        """What in these settings cannot be done without images."""
        if self.train is not None:
            return "train: fine-tuning"
        if self.sparsity is not None:
            return "sparsity"
        if self.importance.criterion in FROM_DATA:
            return f"importance.criterion {self.importance.criterion}"
        return None


class PruningFile(Pruning):
    """From a trained network to a smaller one: a pruning, and what it is done to."""

    name: str = Field("pruning", pattern=r"^[\w.-]+$")
    model: str = Field(
        description="module:function that makes the network, such as torchvision.models:resnet18; or RUN/ARCH, an "
        "architecture of a search (RUN/ARCH-final as nasplat train trained it), with the images of that run"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="given to that function by name")
    checkpoint: str | None = Field(None, description="its trained weights: .pth, .pt or .safetensors")
    input: tuple[int, int, int] | None = Field(
        None, description="channels, height, width; default: what the images have, or 3,224,224"
    )
    data: Data | None = Field(None, description="images to judge, to score by and to fine-tune on")

    @model_validator(mode="after")
    def _images_where_they_are_needed(self) -> PruningFile:
        if self.needs_images and self.data is None and ":" in self.model:
            raise ValueError(f"{self.needs_images} needs images: give data")
        return self
