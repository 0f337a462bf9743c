"""What a student learns from which teachers, as plain, validated data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nasplat.core.section import Section


class Network(Section):
    """A network of the user's, or one that nasplat wrote."""

    model: str = Field(
        description="module:function that makes it, such as torchvision.models:resnet18; a folder that nasplat prune "
        "wrote; in nasplat distill also RUN/ARCH, an architecture of a search (RUN/ARCH-final as nasplat train "
        "trained it)"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="given to that function by name")
    checkpoint: str | None = Field(None, description="its trained weights: .pth, .pt or .safetensors")


class Teacher(Network):
    """A trained network."""

    classes: list[int] | None = Field(None, description="the classes that a specialist answers for; default: all")


class Distillation(Section):
    """Teachers, and how much each objective counts."""

    teachers: list[Teacher] = Field(
        default_factory=list, description="default: of a pruned network the one that it was"
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"logits": 1.0},
        description="by objective: logits, decoupled, logit_mse, specialists, hint, attention, relation",
    )
    labels: float = Field(0.0, ge=0, description="weight of cross-entropy with labels; 0 needs no labels")
    temperature: float = Field(4.0, gt=0)
    alpha: float = Field(1.0, ge=0, description="decoupled: weight of the target class against all others")
    beta: float = Field(8.0, ge=0, description="decoupled: weight of what is among the other classes")
    pairs: dict[str, str] = Field(default_factory=dict, description="module of the student: module of the teacher")
    choice: Literal["average", "better"] = Field(
        "average", description="better: a sample is taught by the teachers or by the student as it was, who knows more"
    )
    discriminator: float = Field(0.0, ge=0, description="weight of an adversarial loss on logits")
    cache: bool = Field(
        False,
        description="ask the teachers for soft labels once; only where images are not augmented (augment: [])",
    )

    @model_validator(mode="after")
    def _teaches(self) -> Distillation:
        if not any(self.weights.values()) and not self.labels and not self.discriminator:
            raise ValueError("distill has nothing to learn from: weights: {logits: 1}, or labels: 1")
        return self
