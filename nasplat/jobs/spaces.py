"""The spaces that come with nasplat, and what a space looks like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Option
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.problem import Output, Problem, classification
from nasplat.core.space import SearchSpace
from nasplat.jobs.experiment import add_user_code, find_file, read_space
from nasplat.jobs.yaml_file import read_yaml, shown


@dataclass(frozen=True)
class ReadySpace:
    """A space file that comes with nasplat: how many choices it has, and how many assignments they make."""

    name: str
    choices: int
    size: int
    about: str


@dataclass(frozen=True)
class ShownSpace:
    """A space with one random architecture: its drawings as text and as one SVG, and its cost as metrics by name.

    `choices` are the names of those that have the same options.
    """

    title: str
    choices: Mapping[tuple[Option, ...], tuple[str, ...]]
    space: SearchSpace
    architecture: Architecture
    drawings: Mapping[str, str]
    svg: str
    cost: Mapping[str, float]


def ready_spaces() -> Iterator[ReadySpace]:
    """Every file of search_spaces/, with the first line of its comment."""
    from nasplat.spaces.families import make_space

    for path in _ready_files():
        spec = read_yaml(path).data
        space = make_space(spec, _problem(spec, (3, 32, 32), 10))
        first_line = path.read_text(encoding="utf-8").splitlines()[0]
        about = first_line.lstrip("# ").split(":")[0] if first_line.startswith("#") else ""
        yield ReadySpace(path.stem, len(space.choices), space.count(), about)


def show(file: str, input_shape: tuple[int, int, int], classes: int, seed: int) -> ShownSpace:
    """Builds the space of a file for images of a shape, and draws one random architecture of it.

    Args:
        file: a space, or an experiment whose space is meant; `darts` stands for search_spaces/darts.yaml.

    Raises:
        NasplatError: there is no such file, or it describes no space.
    """
    from nasplat.artifacts.drawing import draw_svg, draw_text
    from nasplat.spaces.families import make_space

    path = _find(file)
    add_user_code(path)
    spec = read_space(path)
    space = make_space(spec, _problem(spec, input_shape, classes))
    architecture = space.sample(np.random.default_rng(seed))
    drawings = space.drawings(architecture)
    cost = space.cost(architecture)
    return ShownSpace(
        title=f"{shown(path)}: {len(space.choices)} choices",
        choices=_by_options(space),
        space=space,
        architecture=architecture,
        drawings={name: draw_text(drawing) for name, drawing in drawings.items()},
        svg=draw_svg(drawings),
        cost=asdict(cost),
    )


def _problem(spec: Mapping[str, Any], input_shape: tuple[int, int, int], classes: int) -> Problem:
    """Telling classes apart; several times over for a space of networks for several tasks."""
    if spec.get("family") != "branching":
        return classification(input_shape, classes)
    return Problem(input_shape, tuple(Output(f"task{number}", "classification", classes) for number in range(1, 5)))


def _ready_files() -> list[Path]:
    folder = find_file("search_spaces", Path(__file__))
    return sorted(folder.glob("*.yaml")) if folder else []


def _find(file: str) -> Path:
    """A file by its path, or one that comes with nasplat by its name."""
    here = Path.cwd() / "here"
    for name in (file, f"search_spaces/{file}.yaml"):
        path = find_file(name, here)
        if path is not None and path.is_file():
            return path
    if Path(file).name != file or Path(file).suffix:
        return Path(file)  # meant as a path: reading it tells what lies there instead
    known = [path.stem for path in _ready_files()]
    raise NasplatError(
        f"there is no space {file!r}",
        f"{nearest(file, known)}known are {', '.join(known)}; a file of your own is named with its ending",
    )


def _by_options(space: SearchSpace) -> dict[tuple[Option, ...], tuple[str, ...]]:
    grouped: dict[tuple[Option, ...], tuple[str, ...]] = {}
    for choice in space.choices.values():
        grouped[choice.options] = (*grouped.get(choice.options, ()), choice.name)
    return grouped
