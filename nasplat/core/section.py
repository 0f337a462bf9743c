"""What every part of a settings file is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Unknown keys are errors, and a section cannot be changed once it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
