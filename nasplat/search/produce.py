"""What proposes architectures before the strategy does: the table of all producers, and how they are asked.

Each producer leaves its architectures in the run directory, so that a resumed search does not produce them again. They
are evaluated like any other, and are landmarks beside the front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nasplat.artifacts.files import read_json, write_json
from nasplat.core.architecture import Architecture
from nasplat.core.experiment import Experiment
from nasplat.core.space import SearchSpace
from nasplat.search import produce_nested, produce_pruning, produce_trees
from nasplat.search.options import make_one
from nasplat.search.producer import Brief, Producer

FOLDER = "produced"

PRODUCERS: dict[str, Callable[..., Producer]] = {
    "uniform": produce_pruning.uniform,
    "ranked": produce_pruning.ranked,
    "sensitivity": produce_pruning.sensitivity,
    "transformable": produce_pruning.transformable,
    "largest": produce_nested.largest,
    "shared": produce_trees.shared,
    "separate": produce_trees.separate,
    "hand": produce_trees.hand,
    "random_trees": produce_trees.random_trees,
    "affinity": produce_trees.affinity,
    "bmtas": produce_trees.bmtas,
    "learning_to_branch": produce_trees.learning_to_branch,
}


def producers(asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Producer]:
    """What `search.produce` asks for; nothing is trained yet.

    Raises:
        NasplatError: no such producer or option, or a value that it does not take.
    """
    return {
        name: make_one(PRODUCERS, name, options, "producer", f"search.produce.{name}")
        for name, options in asked.items()
    }


def produce(
    experiment: Experiment, space: SearchSpace, root: Path, say: Callable[[str], None]
) -> dict[str, Architecture]:
    """The architectures that `search.produce` asks for, by name.

    Raises:
        NasplatError: no such producer or option, or one that does not fit the space or its constraints.
    """
    found: dict[str, Architecture] = {}
    for name, make in producers(experiment.search.produce).items():
        folder = root / FOLDER / name
        kept = folder / "architectures.json"
        if kept.is_file():
            ones = {key: Architecture.from_json(one) for key, one in read_json(kept).items()}
        else:
            folder.mkdir(parents=True, exist_ok=True)
            ones = dict(make(Brief(experiment, space, folder, say, root)))
            write_json(kept, {key: one.to_json() for key, one in ones.items()})
        found |= ones
    return found
