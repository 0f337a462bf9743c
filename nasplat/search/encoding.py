"""A space's table of choices as Optuna distributions, and assignments as Optuna parameters, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from nasplat.core.choice import Choice, Option, Values
from nasplat.core.space import SearchSpace


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Ordered choices as integer indices, so that samplers see the order; others as categories."""
    return {name: _distribution(choice) for name, choice in space.choices.items()}


def encode(space: SearchSpace, values: Values) -> dict[str, Any]:
    """Options to Optuna parameters."""
    return {name: _encode(choice, values[name]) for name, choice in space.choices.items()}


def decode(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, Option]:
    """Optuna parameters to options."""
    return {name: _decode(choice, params[name]) for name, choice in space.choices.items()}


def _distribution(choice: Choice) -> BaseDistribution:
    if choice.ordered:
        return IntDistribution(0, len(choice.options) - 1)
    return CategoricalDistribution(tuple(_category(choice, option) for option in choice.options))


def _encode(choice: Choice, option: Option) -> Any:
    return choice.index(option) if choice.ordered else _category(choice, option)


def _decode(choice: Choice, param: Any) -> Option:
    if choice.ordered:
        return choice.options[int(param)]
    for option in choice.options:
        if _category(choice, option) == param:
            return option
    return choice.options[choice.index(param)]


def _category(choice: Choice, option: Option) -> Option:
    # Optuna finds a category by ==, which takes True for 1; such options are told apart by their JSON text.
    ambiguous = len(set(choice.options)) < len(choice.options)
    return json.dumps(option) if ambiguous else option
