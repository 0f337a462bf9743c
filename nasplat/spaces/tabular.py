"""A table of architectures with what was measured of them, as a search space that answers from the table.

    space:
      family: tabular
      table: nas-bench-macro_cifar10.json
      metrics:
        accuracy: {columns: test_acc, scale: 0.01}  # a list in a cell: one number a training run
        macs: flops
        params: params

Every column that is no metric is a choice; of a JSON object of objects every character of the key is one. `network`
names the space whose networks were measured: then options that stand for the same network are one architecture, whose
runs are pooled, and architectures are drawn, built and exported like any of that space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nasplat.core.architecture import Architecture
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import COSTS, Cost
from nasplat.core.drawing import Picture
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import Problem, classification
from nasplat.core.space import SearchSpace
from nasplat.spaces.table_file import KEY, Metric, Row, metric_of, options_of, read_rows, runs_of

if TYPE_CHECKING:
    from torch import nn


class TabularSpace(SearchSpace):
    """The architectures of a table; an assignment that is in no row is repaired to the nearest that is.

    Args:
        problem: is not looked at: a table says what was measured, on whatever it was measured.
        table: path of a JSON or CSV file.
        metrics: name of a metric to its column; see `nasplat.spaces.table_file.metric_of`. `macs`, `params` and
            `peak_bytes` are known before a candidate is evaluated, everything else is what an evaluation answers.
        choices: the columns that are choices, or a list of names for the characters of the key; by default every
            column that is no metric and holds no list.
        network: the space of the networks in the table, as plain data. Its choices are meant in their order, their
            options by their position (characters of a key, 0 first) or by their name.
        input_shape: `(C, H, W)` of the images that the networks were trained on; only needed with `network`.
        classes: likewise.
        answer: `mean` of all runs, or `run`: the noise of one training run, which a candidate's seed picks.

    Raises:
        NasplatError: the file cannot be read, a column is missing, a cell is no number, a row fits no choice.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        table: str,
        metrics: Mapping[str, Any],
        choices: Sequence[str] | None = None,
        network: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        answer: Literal["mean", "run"] = "mean",
    ) -> None:
        rows, digest = read_rows(Path(table))
        if answer not in ("mean", "run"):
            raise NasplatError(f"answer cannot be {answer!r}", "allowed: mean, run")
        if not isinstance(metrics, Mapping) or not metrics:
            raise NasplatError("the table's metrics are not given", "for instance metrics: {accuracy: test_acc}")
        shape = tuple(int(size) for size in input_shape)
        self.problem = classification(shape, int(classes))  # type: ignore[arg-type]
        self.answer = answer
        columns = list(rows[0])
        self._metrics = {name: metric_of(name, spec, columns) for name, spec in metrics.items()}
        self.network = None if network is None else _network(network, self.problem)
        names = _choice_names(rows[0], self._metrics, choices, self.network)
        self.choices = dict(self.network.choices) if self.network else _choices(rows, names)
        self.identity = {
            "family": "tabular",
            "table": digest,
            "metrics": {name: [list(one.columns), one.scale] for name, one in self._metrics.items()},
            "choices": list(names),
            "network": None if self.network is None else dict(self.network.identity),
            "answer": answer,
            "problem": self.problem.to_json(),
        }
        self._runs = self._read(rows, names, table)

    def settle(self, values: Values) -> Values:
        settled = dict(values) if self.network is None else dict(self.network.canonical(values).values)
        if self._key(settled) in self._runs:
            return settled
        codes, rows = self._codes
        wanted = np.array([choice.index(settled[name]) for name, choice in self.choices.items()])
        return rows[int((codes != wanted).sum(1).argmin())]

    def measure(self, architecture: Architecture, seed: int) -> dict[str, float]:
        """What the table says of an architecture; with `answer: run` what the run says that the seed picks."""
        runs = self._runs[self._key(architecture.values)]
        pick = int(np.random.default_rng(seed).integers(2**31))
        if self.answer == "mean":
            return {name: float(np.mean(found)) for name, found in runs.items()}
        return {name: found[pick % len(found)] for name, found in runs.items()}

    def mean(self, architecture: Architecture) -> dict[str, float]:
        """The mean over all runs, whatever `answer` says: the nearest to the truth that the table has."""
        return {name: float(np.mean(found)) for name, found in self._runs[self._key(architecture.values)].items()}

    def known(self, architecture: Architecture) -> dict[str, float]:
        own = self._runs[self._key(architecture.values)]
        found = {name: float(own[name][0]) for name in COSTS if name in own}
        if self.network is not None and len(found) < len(COSTS):
            found = {**self.network.known(self.network.canonical(architecture.values)), **found}
        return found

    def cost(self, architecture: Architecture) -> Cost:
        known = self.known(architecture)
        missing = [name for name in COSTS if name not in known]
        if missing:
            raise NasplatError(f"the table does not say {', '.join(missing)}", "name a column in metrics, or a network")
        return Cost(**{name: round(value) for name, value in known.items()})

    def graph(self, architecture: Architecture) -> OperationGraph:
        network = self._networks()
        return network.graph(network.canonical(architecture.values))

    def build(self, architecture: Architecture) -> nn.Module:
        network = self._networks()
        return network.build(network.canonical(architecture.values))

    def drawings(self, architecture: Architecture) -> Mapping[str, Picture]:
        if self.network is None:
            return {}
        return self.network.drawings(self.network.canonical(architecture.values))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """A row of the table, each architecture as likely as any other."""
        rows = self._codes[1]
        return self.canonical(rows[int(rng.integers(len(rows)))])

    def count(self) -> int:
        return len(self._runs)

    def enumerate(self) -> Iterator[Architecture]:
        return (self.canonical(values) for values in self._codes[1])

    @cached_property
    def _codes(self) -> tuple[np.ndarray, list[dict[str, Option]]]:
        """`(rows, choices)` positions of the options, and the rows' values, in the order of the file."""
        rows = [dict(zip(self.choices, options, strict=True)) for options in self._runs]
        codes = [[choice.index(values[name]) for name, choice in self.choices.items()] for values in rows]
        return np.array(codes), rows

    def _key(self, values: Values) -> tuple[Option, ...]:
        return tuple(values[name] for name in self.choices)

    def _networks(self) -> SearchSpace:
        if self.network is None:
            raise NasplatError(
                "a table of numbers holds no networks that could be built",
                "say of which space they are: network: search_spaces/… in the space",
            )
        return self.network

    def _read(self, rows: Sequence[Row], names: Sequence[str], table: str) -> dict[tuple[Option, ...], dict[str, Any]]:
        """Values to metric to runs; rows of the same network are pooled."""
        found: dict[tuple[Option, ...], dict[str, list[float]]] = {}
        for position, row in enumerate(rows, start=1):
            try:
                values = dict(zip(self.choices, _options(row, names, self.choices, self.network), strict=True))
                measured = {name: runs_of(row, metric) for name, metric in self._metrics.items()}
            except (ValueError, NasplatError) as error:
                raise NasplatError(f"{table}: row {position} ({_shown(row)}): {error}") from error
            if self.network is not None:
                values = dict(self.network.canonical(values).values)
            pooled = found.setdefault(self._key(values), {name: [] for name in self._metrics})
            for name, runs in measured.items():
                pooled[name].extend(runs)
        return found


def _network(spec: Mapping[str, Any], problem: Problem) -> SearchSpace:
    from nasplat.spaces.families import make_space  # it lists this family, too

    return make_space(spec, problem)


def _choice_names(
    row: Row, metrics: Mapping[str, Metric], chosen: Sequence[str] | None, network: SearchSpace | None
) -> tuple[str, ...]:
    """The columns of the choices, or names for the characters of the key."""
    measured = {column for metric in metrics.values() for column in metric.columns}
    if chosen is not None:
        names = tuple(str(name) for name in chosen)
        if set(names) & set(row):
            for name in names:
                if name not in row:
                    raise NasplatError(f"choices: the table has no column {name!r}", nearest(name, row).strip())
        elif KEY not in row or len(names) != len(str(row[KEY])):
            raise NasplatError(f"choices: {', '.join(names)} are neither columns nor one for each character of a key")
        return names
    if KEY in row:
        names = tuple(network.choices) if network else tuple(f"choice{n}" for n in range(1, len(str(row[KEY])) + 1))
    else:
        names = tuple(name for name, cell in row.items() if name not in measured and not isinstance(cell, list))
    if network is not None and len(names) != len(network.choices):
        raise NasplatError(
            f"the table has {len(names)} choices, and the network's space {len(network.choices)}",
            "list its columns in choices, in the order of the space",
        )
    return names


def _choices(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Choice]:
    found = {}
    for position, name in enumerate(names):
        cells = [row[name] if name in rows[0] else str(row.get(KEY, ""))[position : position + 1] for row in rows]
        options, ordered = options_of([_scalar(cell, name) for cell in cells])
        found[name] = Choice(name, options, ordered)
    if not found:
        raise NasplatError("the table has no column that is a choice", "see choices and metrics of the space")
    return found


def _options(
    row: Row, names: Sequence[str], choices: Mapping[str, Choice], network: SearchSpace | None
) -> list[Option]:
    by_key = names[0] not in row
    cells: list[Any] = list(str(row.get(KEY, ""))) if by_key else [_scalar(row.get(name), name) for name in names]
    if len(cells) != len(choices):
        raise ValueError(f"it has {len(cells)} choices, and there are {len(choices)}")
    return [_option(choice, cell, network) for choice, cell in zip(choices.values(), cells, strict=True)]


def _option(choice: Choice, cell: Any, network: SearchSpace | None) -> Option:
    if network is None:
        return choice.options[choice.index(cell)]
    by_name = {str(option): option for option in choice.options}
    if str(cell) in by_name:
        return by_name[str(cell)]
    if str(cell).isdecimal() and int(cell) < len(choice.options):
        return choice.options[int(cell)]
    raise ValueError(f"choice {choice.name!r} has no option {cell!r}; its options are {list(choice.options)}")


def _scalar(cell: Any, name: str) -> Option:
    if not isinstance(cell, str | int | float | bool):
        raise NasplatError(f"choices: the column {name!r} holds {cell!r}", "an option is text, a number or a boolean")
    return cell


def _shown(row: Row) -> str:
    text = str(row[KEY]) if KEY in row else ", ".join(f"{name}: {cell}" for name, cell in row.items())
    return text if len(text) <= 60 else f"{text[:60]}…"
