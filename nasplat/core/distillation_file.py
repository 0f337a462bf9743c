"""One distillation, one file: who learns from whom, on which images, as plain, validated data."""

from __future__ import annotations

from pydantic import Field, model_validator

from nasplat.core.distillation import Distillation, Network
from nasplat.core.experiment import Data, Train
from nasplat.core.section import Section


class DistillationFile(Section):
    """A student, and how it is taught."""

    name: str = Field("distillation", pattern=r"^[\w.-]+$")
    student: Network = Field(description="what learns; without a checkpoint it starts as its function makes it")
    data: Data = Field(description="images, with labels or without")
    train: Train = Field(
        default_factory=lambda: Train(), description="how it is trained; its section distill names the teachers"
    )
    device: str = "auto"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _taught(self) -> DistillationFile:
        if self.train.distill is None or not self.train.distill.teachers:
            raise ValueError(
                "a distillation needs a teacher: train.distill.teachers: [{model: …, checkpoint: …}], or --teacher"
            )
        return self

    @property
    def distill(self) -> Distillation:
        assert self.train.distill is not None  # it was validated
        return self.train.distill
