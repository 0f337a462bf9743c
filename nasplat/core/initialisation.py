"""Which network gets generated weights, as plain, validated data."""

from __future__ import annotations

from pydantic import Field

from nasplat.core.distillation import Network
from nasplat.core.experiment import Data


class Initialisation(Network):
    """A network, and what else its generated weights depend on."""

    input: tuple[int, int, int] | None = Field(
        None, description="channels, height, width; default: what the images have, or those of the source's training"
    )
    data: Data | None = Field(None, description="images to measure batch norm on; default: statistics stay as they are")
    noise: float = Field(
        0.1, ge=0, description="share of each weight's deviation that is noise: channels that were tiled are told apart"
    )
    seed: int = Field(0, ge=0, description="of the noise, and of the order of the images")
