"""In which order the operations of a graph run, and when each tensor is let go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph

if TYPE_CHECKING:
    from torch import Tensor


class Step(NamedTuple):
    """One operation to run: its position, the positions that it reads, and those that nothing reads after it."""

    position: int
    sources: tuple[int, ...]
    frees: tuple[int, ...]


class GraphPlan:
    """Runs a graph, whatever its operations do; a module keeps one, and so does a run with weights of elsewhere."""

    def __init__(self, graph: OperationGraph) -> None:
        self.graph = graph
        # Whole runs leave nothing out, not even what no output needs, so that they cost what the graph says.
        outputs = tuple(graph.outputs)
        self._steps = {outputs: self._planned(outputs, range(len(graph.operations)))}

    def run(
        self, images: Tensor, names: tuple[str, ...], apply: Callable[[int, list[Tensor]], Tensor]
    ) -> dict[str, Tensor]:
        """The named outputs and taps; every tensor is let go after its last use.

        Args:
            images: `(N, C, H, W)`.
            apply: what the operation at a position makes of its inputs.

        Raises:
            NasplatError: the graph has no such output or tap.
        """
        steps = self._steps.get(names)
        if steps is None:
            steps = self._steps[names] = self._planned(names, self._needed(names))
        values: dict[int, Tensor] = {0: images}
        for position, sources, frees in steps:
            values[position] = apply(position, [values[source] for source in sources])
            for source in frees:
                del values[source]
        return {name: values[self._position(name)] for name in names}

    def _position(self, name: str) -> int:
        graph = self.graph
        if name in graph.outputs:
            return graph.outputs[name]
        if name in graph.taps:
            return graph.taps[name]
        known = sorted({*graph.outputs, *graph.taps})
        raise NasplatError(f"the network has no output or tap {name!r}", f"it has {', '.join(known)}")

    def _needed(self, names: tuple[str, ...]) -> set[int]:
        needed = {self._position(name) for name in names}
        for position in range(len(self.graph.operations) - 1, 0, -1):
            if position in needed:
                needed.update(self.graph.operations[position].inputs)
        return needed

    def _planned(self, names: tuple[str, ...], needed: Iterable[int]) -> tuple[Step, ...]:
        """The needed operations in graph order, and what each is the last to read."""
        operations = self.graph.operations
        positions = sorted(needed)
        last_use = {position: position for position in positions}
        for position in positions:
            last_use.update(dict.fromkeys(operations[position].inputs, position))
        for name in names:
            last_use.pop(self._position(name), None)
        frees: dict[int, list[int]] = {}
        for source, position in last_use.items():
            frees.setdefault(position, []).append(source)
        return tuple(
            Step(position, operations[position].inputs, tuple(frees.get(position, ())))
            for position in positions
            if position
        )
