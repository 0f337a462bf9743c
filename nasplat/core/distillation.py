"""What a student learns from which teachers, as plain, validated data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nasplat.core.experiment import Section


class Teacher(Section):
    """A trained network."""

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    classes: list[int] | None = Field(None, description="the classes that a specialist answers for; None for all")


class Distillation(Section):
    """Teachers, and how much each objective counts."""

    teachers: list[Teacher] = Field(default_factory=list)
    weights: dict[str, float] = Field(default_factory=lambda: {"logits": 1.0}, description="objective name: weight")
    labels: float = Field(0.0, ge=0, description="weight of cross-entropy with labels; 0 needs no labels")
    temperature: float = Field(4.0, gt=0)
    alpha: float = Field(1.0, ge=0, description="decoupled: weight of the target class against all others")
    beta: float = Field(8.0, ge=0, description="decoupled: weight of what is among the other classes")
    pairs: dict[str, str] = Field(default_factory=dict, description="module of the student: module of the teacher")
    choice: Literal["average", "better"] = Field(
        "average", description="better: a sample is taught by the teachers or by the student as it was, who knows more"
    )
    discriminator: float = Field(0.0, ge=0, description="weight of an adversarial loss on logits")
    cache: bool = Field(False, description="remember soft labels; only where images are not augmented")
