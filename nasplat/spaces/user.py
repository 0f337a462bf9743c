"""A network function of your own as a search space.

Write a function that takes the problem and returns a module, and ask `choice` wherever there is something to decide:

    # my_networks.py
    from torch import nn
    from nasplat import choice

    def network(problem):
        channels, filters = problem.input_shape[0], choice("width", [16, 32, 64])
        activation = {"relu": nn.ReLU, "silu": nn.SiLU}[choice("activation", ["relu", "silu"])]
        layers = []
        for stage in range(choice("depth", [1, 2, 3])):
            kernel = choice(f"kernel{stage}", [3, 5])
            layers += [nn.Conv2d(channels, filters, kernel, padding=kernel // 2), nn.BatchNorm2d(filters), activation()]
            layers.append(nn.MaxPool2d(2))
            channels = filters
        classifier = nn.Linear(channels, problem.outputs[0].size)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)

    # experiment.yaml
    space: {family: user, function: my_networks:network}

The table of choices is found by running the function on the device `meta`, where tensors have shapes and no data. A
choice that is not reached (`kernel2` of a network of depth 1) is dead: it changes nothing, and architectures that
differ in it only are one. Further keys beside `function` are passed to it by name; they are how a found architecture is
rebuilt larger. Outside a search `choice` answers with its first option, so that the function also runs on its own.
"""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.core.architecture import Architecture, fingerprint
from nasplat.core.choice import Choice, Option, Values
from nasplat.core.cost import Cost
from nasplat.core.drawing import Drawing, drawing_of_graph
from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph
from nasplat.core.problem import Problem
from nasplat.core.space import SearchSpace
from nasplat.core.user_function import load_function
from nasplat.spaces.choosing import choosing

if TYPE_CHECKING:
    from torch import nn

TRACING_LIMIT = 2000  # constructions of the network
EXHAUSTIVE_LIMIT = 128  # a table of at most so many assignments is run through
SCATTERED = 64  # assignments of a larger table that are tried


class UserSpace(SearchSpace):
    """The space of a function with `choice` calls.

    The identity holds the function's name, the parameters and the table of choices, but not its code: give the
    function another name when you change what it builds.

    Args:
        problem: what is to be learned; the function's only positional argument.
        function: `module:function`.
        parameters: passed to the function by name.

    Raises:
        NasplatError: there is no such function, it does not take the parameters, it fails (with file and line), it
            returns no module or a module with other outputs than the problem's, its choices contradict each other, or
            there is no end to them.
    """

    def __init__(self, problem: Problem, *, function: str, **parameters: Any) -> None:
        self.problem = problem
        self._name = function
        self._function = _load(function)
        self._parameters = parameters
        try:
            inspect.signature(self._function).bind(problem, **parameters)
        except TypeError as error:
            raise NasplatError(
                f"{function} cannot be called with the problem and {sorted(parameters) or 'nothing else'}: {error}",
                "keys of the space beside family and function are passed to the function by name",
            ) from error
        self._device = "meta"
        self._found: dict[str, tuple[Choice, str]] = {}
        self._tracing = True
        self._trace()
        self._tracing = False
        self.choices: dict[str, Choice] = {name: declared for name, (declared, _) in self._found.items()}
        self.identity: Mapping[str, Any] = {
            **parameters,
            "family": "user",
            "function": function,
            "choices": [[c.name, list(c.options), c.ordered] for c in self.choices.values()],
            "problem": problem.to_json(),
        }
        self._reached: dict[tuple[Option, ...], set[str]] = {}
        self._costs: dict[str, Cost] = {}
        self.graph(self.canonical({}))  # so that wrong outputs are known before anything is searched

    def settle(self, values: Values) -> Values:
        key = tuple(values[name] for name in self.choices)
        if key not in self._reached:
            self._reached[key] = self._construct(values)[1]
        reached = self._reached[key]
        return {name: values[name] if name in reached else declared.default for name, declared in self.choices.items()}

    def graph(self, architecture: Architecture) -> OperationGraph:
        """The operations that the network runs, for drawings; some are of kinds that torch alone knows."""
        from nasplat.networks.counter import copy_to
        from nasplat.spaces.recording import record

        module = copy_to(self._construct(architecture.values)[0], "meta")
        with self._blamed(architecture.values), choosing(_refuse):
            return record(module, self.problem)

    def cost(self, architecture: Architecture) -> Cost:
        """By `nasplat.networks.counter`, on tensors without data; each architecture is counted once."""
        from nasplat.networks.counter import count

        if architecture.digest not in self._costs:
            self.graph(architecture)  # which tells file and line of what is wrong
            module = self._construct(architecture.values)[0]
            self._costs[architecture.digest] = count(module, self.problem.input_shape).cost
        return self._costs[architecture.digest]

    def build(self, architecture: Architecture) -> nn.Module:
        return self._call(architecture.values)[0]

    def drawings(self, architecture: Architecture) -> dict[str, Drawing]:
        return {"network": drawing_of_graph(self.graph(architecture))}

    def _trace(self) -> None:
        """Finds the table: every option of every choice is tried where the choice was first reached.

        A choice that only a combination of options reveals may be missed so; therefore small tables are run through,
        and scattered assignments of large ones are tried as well. They are fixed, so that every machine finds the same.
        """
        pending: deque[dict[str, Option]] = deque([{}])
        scattered = False
        runs = 0
        while pending:
            values = pending.popleft()
            known = len(self._found)
            self._construct(values)
            runs += 1
            for declared, _ in list(self._found.values())[known:]:
                pending.extend({**values, declared.name: option} for option in declared.options[1:])
            if runs + len(pending) > TRACING_LIMIT:
                last, place = list(self._found.values())[-1]
                raise NasplatError(
                    f"{place}: {self._name} has too many choices to trace: {len(self._found)} so far, "
                    f"the last one {last.name!r}",
                    "a choice's name must not be made from another choice's option",
                )
            if not pending and not scattered:
                scattered = True
                pending.extend(self._further())

    def _further(self) -> Iterator[dict[str, Option]]:
        table = [declared for declared, _ in self._found.values()]
        names = [declared.name for declared in table]
        if prod(len(declared.options) for declared in table) <= EXHAUSTIVE_LIMIT:
            for options in product(*(declared.options for declared in table)):
                yield dict(zip(names, options, strict=True))
            return
        for number in range(SCATTERED):
            # From a hash, since no generator promises the same numbers for ever.
            draws = (int(fingerprint([number, name])[:8], 16) for name in names)
            yield {c.name: c.options[draw % len(c.options)] for c, draw in zip(table, draws, strict=True)}

    def _construct(self, values: Values) -> tuple[nn.Module, set[str]]:
        """The module without data, and the names of the choices that were reached."""
        import torch

        # What a function draws while it is traced must not change what is drawn afterwards.
        with torch.random.fork_rng(devices=[]):
            if self._device == "meta":
                try:
                    with torch.device("meta"):
                        return self._call(values)
                except NasplatError as error:
                    if error.__cause__ is None:
                        raise
            # Some functions read numbers from tensors, which `meta` has none of.
            result = self._call(values)
            self._device = "cpu"
            return result

    def _call(self, values: Values) -> tuple[nn.Module, set[str]]:
        from torch import nn

        reached: set[str] = set()

        def answer(declared: Choice, place: str) -> Option:
            self._check(declared, place)
            reached.add(declared.name)
            return (
                declared.options[declared.index(values[declared.name])] if declared.name in values else declared.default
            )

        with self._blamed(values), choosing(answer):
            module = self._function(self.problem, **self._parameters)
        if not isinstance(module, nn.Module):
            raise NasplatError(f"{self._name} returns a {type(module).__name__}", "it must return a torch.nn.Module")
        return module, reached

    def _check(self, declared: Choice, place: str) -> None:
        """A choice must be known after tracing, and be the same wherever it is reached."""
        if declared.name not in self._found:
            if not self._tracing:
                raise NasplatError(
                    f"{place}: choice {declared.name!r} was not found when {self._name} was traced",
                    "only a rare combination of options reaches it: ask it before the condition, and use it within",
                )
            self._found[declared.name] = (declared, place)
        first, first_place = self._found[declared.name]
        if declared != first:
            raise NasplatError(
                f"choice {declared.name!r} has the options {list(first.options)} at {first_place} "
                f"and {list(declared.options)} at {place}"
                + (", ordered in one place only" * (first.options == declared.options)),
                "give it the same options everywhere; they cannot depend on other choices",
            )

    @contextmanager
    def _blamed(self, values: Values) -> Iterator[None]:
        """Turns what the user's code raises into an error that names its file and line, and the options chosen."""
        try:
            yield
        except NasplatError:
            raise
        except Exception as error:
            place = _place(error, self._function)
            if any(words in str(error).lower() for words in ("meta tensor", "data-dependent", "data-independent")):
                reason = str(error).partition(". ")[0]
                raise NasplatError(
                    f"{place}: the forward of {self._name} depends on the values of a tensor: {reason}",
                    "a space runs without data: decide with torch.where or a mask, not with if, while or item()",
                ) from error
            chosen = ", ".join(f"{name}={option!r}" for name, option in values.items()) or "all at their first option"
            raise NasplatError(
                f"{place}: {type(error).__name__} in {self._name}: {_failing_layer(error)}{error}",
                f"the choices were {chosen}",
            ) from error


def _load(function: str) -> Callable[..., Any]:
    try:
        return load_function(function, "space")
    except NasplatError:
        raise
    except SyntaxError as error:
        raise NasplatError(f"{error.filename}:{error.lineno}: {error.msg} (imported for {function})") from error
    except Exception as error:
        place = _place(error, None)
        raise NasplatError(f"{place}: {type(error).__name__} while {function} is imported: {error}") from error


def _refuse(declared: Choice, place: str) -> Option:
    raise NasplatError(
        f"{place}: choice {declared.name!r} is asked while the network runs",
        "ask it while the network is built, such as in __init__",
    )


def _place(error: Exception, function: Any) -> str:
    """File and line of the user's code that raised an error: the innermost, or else where the function begins."""
    try:
        own = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        own = None
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename == own or not _in_library(frame.filename)]
    if own is not None and not theirs:
        return f"{own}:{inspect.getsourcelines(inspect.unwrap(function))[1]}"
    frame = (theirs or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _in_library(file: str) -> bool:
    """Whether a file is nasplat's, Python's or that of an installed package, and not the user's."""
    path = Path(file)
    folders = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))
    return (
        file.startswith("<")
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or any(path.is_relative_to(folder) for folder in folders)
    )


def _failing_layer(error: Exception) -> str:
    """`layer 3, Linear(…), was given (1, 288): ` where an error comes from within a layer of torch's own."""
    from torch import Tensor, nn

    calls = [
        (frame.f_locals["self"], frame)
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "forward" and isinstance(frame.f_locals.get("self"), nn.Module)
    ]
    if not calls:
        return ""
    network, (layer, frame) = calls[0][0], calls[-1]
    if not type(layer).__module__.startswith("torch.") or any(layer.children()):
        return ""
    name = next((name for name, module in network.named_modules() if module is layer), "")
    given = [value for value in inspect.getargvalues(frame).locals.values() if isinstance(value, Tensor)]
    shape = f"was given {tuple(given[0].shape)}" if given else "failed"
    return f"layer {name}, {layer}, {shape}: " if name else f"{layer} {shape}: "
