"""What is to be learned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from nasplat.core.errors import NasplatError

OutputKind = Literal["classification", "embedding", "multi_label", "regression", "dense", "contrastive"]


@dataclass(frozen=True, slots=True)
class Output:
    """One named output of a network: its kind, and its size (number of classes, of dimensions)."""

    name: str
    kind: OutputKind
    size: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Input shape `(C, H, W)` and the named outputs.

    A problem without labels has one output of kind `embedding`, whose size is the number of features the network has.
    """

    input_shape: tuple[int, int, int]
    outputs: tuple[Output, ...]

    def __post_init__(self) -> None:
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise NasplatError(f"input shape {self.input_shape} is not (channels, height, width)")
        if not self.outputs:
            raise NasplatError("a problem needs at least one output")
        if any(output.size < 1 for output in self.outputs):
            raise NasplatError(f"an output has no size: {self.outputs}")

    def to_json(self) -> dict[str, Any]:
        return {"input_shape": list(self.input_shape), "outputs": [asdict(output) for output in self.outputs]}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Problem:
        return Problem(tuple(data["input_shape"]), tuple(Output(**output) for output in data["outputs"]))


def classification(input_shape: tuple[int, int, int], classes: int) -> Problem:
    """The problem of telling `classes` classes of images of `input_shape` apart."""
    return Problem(input_shape, (Output("logits", "classification", classes),))
