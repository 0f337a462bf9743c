"""The front of a supernet without a search: for each budget the largest network within it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasplat.artifacts.run_directory import create_run
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.core.problem import classification
from nasplat.core.space import SearchSpace
from nasplat.search.driver import run_search
from nasplat.search.produce import produce
from nasplat.spaces.families import make_space

PROBLEM = classification((1, 8, 8), 10)
SMALL: dict[str, Any] = {
    "family": "resnet",
    "stages": [{"channels": 8, "stride": 1, "blocks": 2}, {"channels": 16, "stride": 2, "blocks": 2}],
    "stem_channels": 8,
    "widths": [0.5, 0.75, 1.0],
    "depths": [1],
    "divisor": 4,
}
# Too many to look at each.
LARGE: dict[str, dict[str, Any]] = {
    "resnet": {**SMALL, "expansions": [0.5, 1.0, 1.5], "kernels": [3, 5, 7]},
    "mbconv": {"family": "mbconv", "stem_channels": 8, "widths": [0.5, 1.0], "depths": [1, 2], "last_channels": 16},
}


def asked(budgets: Any, folder: Path, spec: dict[str, Any] = SMALL, limits: Any = None, **options: Any) -> Any:
    search = {"produce": {"largest": {"budgets": budgets, **options}}, "constraints": limits or {}}
    experiment = Experiment.model_validate({"space": spec, "search": search})
    found = produce(experiment, make_space(spec, PROBLEM), folder, lambda text: None)
    return list(found.values())


def costs(space: SearchSpace, ones: list[Architecture], cost: str) -> list[float]:
    return [space.known(one)[cost] for one in ones]


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize(
    "limits", [{}, {"params": {"max": 4000}, "peak_bytes": {"max": 9000}}, {"macs": {"min": 60000}}]
)
def test_of_a_small_space_nothing_larger_fits(tmp_path: Path, cost: str, limits: dict[str, Any]) -> None:
    """A budget that is not used up is accuracy that is given away."""
    space = make_space(SMALL, PROBLEM)
    networks = list(space.enumerate())
    whole = max(costs(space, networks, cost))
    budgets = [0.5, 0.8, 1]
    for budget, found in zip(budgets, asked(budgets, tmp_path, limits=limits, cost=cost), strict=True):
        fitting = [
            space.known(one)[cost]
            for one in networks
            if space.known(one)[cost] <= budget * whole
            and all(space.known(one)[name] <= bounds.get("max", np.inf) for name, bounds in limits.items())
            and all(space.known(one)[name] >= bounds.get("min", 0) for name, bounds in limits.items())
        ]
        assert space.known(found)[cost] == max(fitting)


@pytest.mark.parametrize("family", LARGE)
def test_of_a_large_space_the_budget_is_used_up(tmp_path: Path, family: str) -> None:
    """Nobody can look at all of them; what is found must not be what drawing at random finds as well."""
    spec = LARGE[family]
    space = make_space(spec, PROBLEM)
    assert space.count() > 100_000
    rng = np.random.default_rng(9)
    drawn = costs(space, [space.sample(rng) for _ in range(300)], "macs")
    middle = float(np.median(drawn))
    limits = {"params": {"max": 20_000 if family == "resnet" else 60_000}}
    for place, bounds in enumerate(({}, limits)):
        small, large = asked([middle / 2, middle], tmp_path / str(place), spec, bounds)
        known = space.known(large)
        assert all(known["params"] <= one["max"] for one in bounds.values())
        assert known["macs"] <= middle and space.known(small)["macs"] < known["macs"]
        if not bounds:
            assert known["macs"] >= max(value for value in drawn if value <= middle) * 0.999
    assert asked([middle / 2, middle], tmp_path / "again", spec, limits) == [small, large]


def test_budgets_are_shares_of_the_largest_or_numbers(tmp_path: Path) -> None:
    space = make_space(SMALL, PROBLEM)
    (whole,) = asked([1.0], tmp_path / "whole")
    assert space.known(whole)["macs"] == max(costs(space, list(space.enumerate()), "macs"))
    number = 0.4 * space.known(whole)["macs"]
    assert asked([0.4], tmp_path / "share") == asked([number], tmp_path / "number")
    assert asked([10**12], tmp_path / "more") == [whole]


@pytest.mark.parametrize(
    ("options", "limits", "said"),
    [
        ({"budgets": [0.5, 0.001]}, {}, "the smallest has"),
        ({"budgets": [200]}, {}, "no network has at most 200 macs"),
        ({"budgets": [0.1], "cost": "params"}, {"params": {"min": 4000}}, "the smallest within search.constraints has"),
        ({"budgets": [0.8]}, {"params": {"max": 10}}, "is above 10 of the nearest"),
        ({"budget": [0.5]}, {}, "did you mean 'budgets'"),
        ({"budgets": []}, {}, "search.produce.largest.budgets"),
        ({"budgets": [-0.5]}, {}, "search.produce.largest.budgets"),
        ({"budgets": ["half"]}, {}, "search.produce.largest.budgets"),
        ({"cost": "latency"}, {}, "search.produce.largest.cost"),
    ],
)
def test_what_cannot_be_met_is_told(tmp_path: Path, options: dict[str, Any], limits: Any, said: str) -> None:
    experiment = Experiment.model_validate(
        {"space": SMALL, "search": {"produce": {"largest": options}, "constraints": limits}}
    )
    with pytest.raises(NasplatError) as caught:
        produce(experiment, make_space(SMALL, PROBLEM), tmp_path, lambda text: None)
    assert said in f"{caught.value.message} {caught.value.advice}".replace("Did", "did")


def test_networks_without_known_costs_are_told(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("kernel,accuracy\n3,0.8\n5,0.9\n")
    spec = {"family": "tabular", "table": str(tmp_path / "table.csv"), "metrics": {"accuracy": "accuracy"}}
    experiment = Experiment.model_validate({"space": spec, "search": {"produce": {"largest": {}}}})
    with pytest.raises(NasplatError, match="nothing tells of these networks"):
        produce(experiment, make_space(spec, PROBLEM), tmp_path, lambda text: None)


def test_one_supernet_gives_the_whole_front(tmp_path: Path) -> None:
    """SortedNet from an experiment file: no candidate is trained, and what is kept is what was measured."""
    plain: dict[str, Any] = {
        "space": {**SMALL, "kernels": [3, 5]},
        "data": {"train_size": 500},
        "train": {"epochs": 0},
        "weights": {"options": {"kernels": "sliced", "paths": 2}, "train": {"epochs": 2, "batch_size": 50, "lr": 0.1}},
        "search": {"strategy": "random", "trials": 3, "produce": {"largest": {"budgets": [0.3, 0.6, 1]}}},
    }
    if "check" in Experiment.model_json_schema()["$defs"]["Weights"]["properties"]:
        plain["weights"]["check"] = 0
    experiment = Experiment.model_validate(plain)
    run = create_run(tmp_path, experiment)
    result = run_search(experiment, run)
    landmarks = {one.landmark: one for one in result.history.complete}
    assert set(landmarks) == {"largest 0.3", "largest 0.6", "largest 1"}
    sizes = [landmarks[f"largest {budget}"].metrics["macs"] for budget in ("0.3", "0.6", "1")]
    assert sizes[0] <= 0.3 * sizes[2] and sizes[0] < sizes[1] <= 0.6 * sizes[2]
    assert all(one.metrics["train_seconds"] == 0 for one in result.history.complete)
    assert max(one.metrics["accuracy"] for one in result.front) > 0.15

    from nasplat.artifacts.weights import load_into
    from nasplat.search.evaluate import load_data, load_space_of
    from nasplat.training.devices import resolve_device
    from nasplat.training.evaluate import accuracy, evaluation_loader

    data = load_data(experiment.data)
    space = load_space_of(experiment, data)
    best = result.front[0]
    device = resolve_device("cpu")
    (folder,) = (path for path in (tmp_path / "trials").iterdir() if best.architecture.digest[:8] in path.name)
    network = space.build(best.architecture)
    load_into(network, folder / "weights.safetensors", best.architecture.digest)
    assert accuracy(network, evaluation_loader(data, "validation", device), device) == best.metrics["accuracy"]
