"""Searches over what to cut out of a trained network."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasplat.artifacts.run_directory import create_run
from nasplat.compression.population import bucket_ratio
from nasplat.compression.sensitivity import filled, least_sensitive, sensitivity
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Bounds, Data, Experiment, Train
from nasplat.core.front import Goal
from nasplat.core.problem import classification
from nasplat.data.datasets import load_dataset
from nasplat.networks.rebuild import load_pruned
from nasplat.search.constraints import absolute, excess, violations
from nasplat.search.driver import run_search
from nasplat.search.history import History, Proposal
from nasplat.search.n2n_policy import Learner, Removal, Shrink
from nasplat.search.strategies import make_strategy
from nasplat.search.suggestion import Suggestion
from nasplat.search.within import within
from nasplat.spaces.pruning import PruningSpace
from nasplat.training.fit import fit

GOALS = [Goal("accuracy", "maximize")]
RNG = np.random.default_rng


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(12, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


def small() -> nn.Module:
    stem = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, Residual(16), Residual(16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = small()
    settings = Train(epochs=8, batch_size=64, augment=())
    fit(network, load_dataset(Data()), settings, device=torch.device("cpu"), seed=0)
    path = tmp_path_factory.mktemp("trained") / "small.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def space(checkpoint: Path) -> PruningSpace:
    return PruningSpace(classification((1, 8, 8), 10), model=f"{__name__}:small", checkpoint=str(checkpoint))


def experiment(checkpoint: Path, **search: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "it",
            "space": {"family": "pruning", "model": f"{__name__}:small", "checkpoint": str(checkpoint)},
            "data": {"source": "digits"},
            "train": {"epochs": 0},
            "score": {"minimise": ["macs"]},
            "search": {"strategy": "random", "trials": 3, "constraints": {"macs": {"max": 0.5}}, **search},
        }
    )


def shares(space: PruningSpace, ones: list[Proposal]) -> list[float]:
    return [one.metrics["macs"] / space.whole["macs"] for one in ones]


def follow(
    name: str, options: dict[str, object], space: PruningSpace, bounds: dict[str, Bounds], count: int, seed: int = 0
) -> list[Proposal]:
    """Proposals of a strategy that are answered by how much of the first group they keep."""
    strategy, view, rng = make_strategy(name, options), within(space, bounds), RNG(seed)
    found: list[Proposal] = []
    for number in range(count):
        suggestion = strategy(History(found), view, GOALS, rng)
        assert isinstance(suggestion, Suggestion)
        one = space.canonical(suggestion.values)
        metrics = {**space.known(one), "accuracy": 0.2 + 0.8 * float(one.values["0.ratio"])}
        found.append(Proposal(number, one.values, one.digest, "complete", metrics, notes=suggestion.notes))
    return found


def test_policies_are_distributions_and_draw_as_they_say() -> None:
    """The gradient of REINFORCE would be that of another policy than the one that acts."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(3, 4, generator=generator)
    torch.manual_seed(1)
    for policy, options in ((Removal(seen), 2), (Shrink(seen, 3), 3)):
        everything = list(itertools.product(range(options), repeat=3))
        shares = policy.log_likelihood(torch.tensor(everything)).exp().tolist()
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        rng, draws = RNG(0), 3000
        drawn = Counter(tuple(policy.draw(rng)) for _ in range(draws))
        for actions, share in zip(everything, shares, strict=True):
            assert drawn[actions] / draws == pytest.approx(share, abs=4 * (share / draws) ** 0.5 + 1e-3)


def test_every_rollout_is_credited_with_its_own_advantage() -> None:
    """With the batch's mean reward for all, as in the reference code, nothing is learnt."""
    torch.manual_seed(0)
    learner = Learner(Removal(torch.rand(2, 4, generator=torch.Generator().manual_seed(0))))
    before = learner.policy.log_likelihood(torch.tensor([[1, 1], [0, 0]])).tolist()
    for _ in range(20):
        learner = learner.updated([[1, 1], [0, 0]], [1.0, 0.0], lr=0.01, decay=0.9)
    after = learner.policy.log_likelihood(torch.tensor([[1, 1], [0, 0]])).tolist()
    assert after[0] > before[0] + 0.3 and after[1] < before[1] - 0.3
    alike = Learner(learner.policy).updated([[1, 1], [0, 0]], [0.5, 0.5], lr=0.01, decay=0.9)
    assert all(torch.equal(one, other) for one, other in zip(
        alike.policy.parameters(), learner.policy.parameters(), strict=True))  # fmt: skip


def test_n2n_removes_then_shrinks_and_learns(space: PruningSpace) -> None:
    """The second stage would forget what the first has found, or neither would learn from its rewards."""
    found = follow("n2n", {"removal": 20, "lr": 0.02, "cost": "macs"}, space, {}, 160)
    first, second = found[:20], found[20:]
    assert all(one.values["0.ratio"] == 1 for one in first)
    depths = [name for name in space.choices if name.endswith(".depth")]

    def reward(one: Proposal) -> float:
        compression = 1 - one.metrics["macs"] / space.whole["macs"]
        return one.metrics["accuracy"] * compression * (2 - compression)

    best = max(first, key=reward)
    assert {tuple(one.values[name] for name in depths) for one in second} == {
        tuple(best.values[name] for name in depths)
    }
    assert np.mean([reward(one) for one in second[-40:]]) > np.mean([reward(one) for one in second[:40]]) + 0.05


def test_n2n_proposes_the_same_after_a_restart(space: PruningSpace) -> None:
    """A resumed search would go another way than the interrupted one."""
    found = follow("n2n", {"removal": 10}, space, {}, 30)
    cold = make_strategy("n2n", {"removal": 10})(History(found), space, GOALS, RNG(7))
    warm = make_strategy("n2n", {"removal": 10})
    for count in (12, 21, 30):
        again = warm(History(found[:count]), space, GOALS, RNG(7))
    assert isinstance(cold, Suggestion) and isinstance(again, Suggestion) and cold.values == again.values


def test_a_population_keeps_to_its_regime_and_the_refined_space_to_its_band(space: PruningSpace) -> None:
    """Members of other cost would be compared, or the refinement would refine nothing."""
    bounds = absolute({"macs": Bounds(min=0.38, max=0.42)}, space)
    found = follow("pruning_population", {"members": 30, "best": 0.2, "bucket": 0.0}, space, bounds, 60)
    assert all(0.38 <= share <= 0.42 for share in shares(space, found))
    ratio = bucket_ratio(*(np.array([one.metrics[name] for one in found]) for name in ("macs", "params")), 0.0)
    first = list({one.digest: place for place, one in reversed(list(enumerate(found)))}.values())[::-1][:30]
    members = max(first) + 1  # a network that is drawn twice is one member
    best = sorted(first, key=lambda place: -found[place].metrics["accuracy"])[:6]
    low, high = ratio[best].min(), ratio[best].max()
    inside = (ratio >= low) & (ratio <= high)
    assert inside[members:].all() and not inside[:members].all()
    assert len({one.digest for one in found}) > 30


def test_strategies_of_trained_networks_say_what_they_need(space: PruningSpace) -> None:
    """A user of cells would meet a KeyError."""
    from nasplat.spaces.nasbench201 import NasBench201Space

    cells = NasBench201Space(classification((1, 8, 8), 10))
    for name in ("n2n", "pruning_population"):
        with pytest.raises(NasplatError) as caught:
            make_strategy(name)(History(), cells, GOALS, RNG(0))
        assert "family pruning" in caught.value.advice
    with pytest.raises(NasplatError, match="needs a regime"):
        make_strategy("pruning_population")(History(), space, GOALS, RNG(0))
    with pytest.raises(NasplatError, match="maximised"):
        make_strategy("n2n")(History(), space, [Goal("macs", "minimize")], RNG(0))


def test_sensitivity_measures_each_cut_alone_and_is_resumed(space: PruningSpace) -> None:
    """Ratios would be chosen by something else than what a cut does to the answers."""
    dataset, cpu = load_dataset(Data()), torch.device("cpu")
    seen: list[int] = []
    table = sensitivity(space, dataset, device=cpu, images=200, points=2, on_found=lambda found, of: seen.append(of))
    assert set(table) == set(space.choices) and seen == [len(table)] * len(table)
    for row in table.values():
        smallest, larger = (row[key] for key in (list(row)[-1], next(iter(row))))
        assert smallest >= larger - 0.05 and larger >= 0
    again = sensitivity(space, dataset, device=cpu, images=200, points=2, found=table, on_found=seen.append)  # type: ignore[arg-type]
    assert again == table and len(seen) == len(table)  # nothing was measured twice


def test_the_least_sensitive_meets_the_budget_and_cuts_where_nothing_is_lost(space: PruningSpace) -> None:
    """A budget would be missed, or met at the price of what matters."""
    table = {name: {str(choice.options[-1]): 1.0} for name, choice in space.choices.items()}
    free = "3.first.0.ratio"
    table[free] = {str(space.choices[free].options[-1]): 0.0}
    bounds = absolute({"macs": Bounds(max=0.7)}, space)

    def too_much(one: Architecture) -> float:
        return excess(violations(space.known(one), bounds))

    found = least_sensitive(space, table, too_much)
    assert too_much(found) == 0 and found.values[free] < 0.6 and found.values["0.ratio"] == 1
    assert filled(space, found, too_much) == found
    with pytest.raises(NasplatError, match="budget"):
        least_sensitive(space, table, lambda one: space.known(one)["macs"] - 1)


def test_produced_networks_come_first_and_are_not_produced_again(checkpoint: Path, tmp_path: Path) -> None:
    """The search would start from nothing, or a resumed one would measure for minutes what it had measured."""
    transformable = {"epochs": 2, "batch_size": 64}
    asked = experiment(
        checkpoint,
        trials=4,
        produce={
            "uniform": {},
            "ranked": {},
            "sensitivity": {"images": 100, "points": 2},
            "transformable": transformable,
        },
    )
    run = create_run(tmp_path / "it", asked)
    result = run_search(asked, run)
    whole = PruningSpace(classification((1, 8, 8), 10), model=f"{__name__}:small", checkpoint=str(checkpoint)).whole
    assert [one.landmark for one in result.history[:4]] == ["uniform", "ranked", "sensitivity", "transformable"]
    assert all(0.4 < one.metrics["macs"] / whole["macs"] <= 0.5 for one in result.history[:4])
    kept = tmp_path / "it/produced/sensitivity/sensitivity.json"
    assert len(json.loads(kept.read_text())) == 4
    kept.unlink()
    more = asked.model_copy(update={"search": asked.search.model_copy(update={"trials": 5})})
    again = run_search(more, run, resume=True)
    assert len(again.history.complete) == 5 and not kept.exists()


@pytest.mark.parametrize(
    ("search", "wrong"),
    [
        ({"produce": {"unifrom": {}}}, "no producer 'unifrom'"),
        ({"produce": {"sensitivity": {"image": 3}}}, "no option 'image'"),
        ({"produce": {"sensitivity": {"points": 1}}}, "sensitivity.points"),
        ({"produce": {"uniform": {}}, "constraints": {}}, "needs a budget"),
        ({"produce": {"transformable": {}}, "constraints": {"params": {"max": 0.5}}}, "needs a budget of macs"),
        ({"produce": {"uniform": {}}, "constraints": {"macs": {"max": 0.00001}}}, "no uniform ratio"),
        (
            {"produce": {"ranked": {}}, "constraints": {"params": {"max": 0.5}, "macs": {"max": 0.00001}}},
            "cannot be met",
        ),
    ],
)
def test_bad_producers_are_told(checkpoint: Path, tmp_path: Path, search: dict[str, object], wrong: str) -> None:
    """A misspelt key would be ignored, and a budget that cannot be met would end in a traceback."""
    asked = experiment(checkpoint, **search)
    with pytest.raises(NasplatError, match=wrong):
        run_search(asked, create_run(tmp_path / "it", asked))


def test_shares_are_of_the_original(space: PruningSpace) -> None:
    """Half of the MACs would be half a multiply-accumulate."""
    found = absolute(
        {"macs": Bounds(min=0.25, max=0.5), "params": Bounds(max=4000), "accuracy": Bounds(min=0.5)}, space
    )
    assert found["macs"].max == 0.5 * space.whole["macs"] and found["macs"].min == 0.25 * space.whole["macs"]
    assert found["params"].max == 4000 and found["accuracy"].min == 0.5


@pytest.mark.parametrize(
    ("constraints", "wrong"),
    [
        ({"macs": {"min": 0.5, "max": 1000}}, "at least .* and at most 1,000"),
        ({"macs": {"min": 0.9}, "params": {"max": 0.1}}, "no architecture of this space meets the constraints"),
    ],
)
def test_budgets_that_contradict_each_other_are_told(
    checkpoint: Path, tmp_path: Path, constraints: dict[str, object], wrong: str
) -> None:
    """A search would go on for ever, or end without a word about why."""
    asked = experiment(checkpoint, constraints=constraints)
    with pytest.raises(NasplatError, match=wrong):
        run_search(asked, create_run(tmp_path / "it", asked))


def test_a_candidate_is_taught_by_what_it_was_and_exported_with_its_recipe(checkpoint: Path, tmp_path: Path) -> None:
    """Searched ratios would lose what distillation wins back, or could not leave the search."""
    from nasplat.jobs.search import Prepared, run_and_report

    plain = experiment(checkpoint, trials=2, produce={"uniform": {}})
    train = Train.model_validate({"epochs": 2, "augment": [], "distill": {"weights": {"logits": 1.0, "hint": 0.1},
                                  "pairs": {"3.first.0": "3.first.0"}}})  # fmt: skip
    asked = plain.model_copy(update={"train": train, "data": Data(labels=True)})
    outcome = run_and_report(Prepared(asked, tmp_path / "it.yaml", tmp_path / "it", False), export="best")
    assert outcome.complete == 2  # the second would have nothing to train if the first had frozen the original
    best = outcome.front[0]
    assert best.metrics["accuracy"] > 0.7
    again = load_pruned(outcome.paths["export"])
    images = torch.rand(2, 1, 8, 8)
    space = PruningSpace(classification((1, 8, 8), 10), model=f"{__name__}:small", checkpoint=str(checkpoint))
    assert {name: tuple(one.shape) for name, one in again.state_dict().items()} == {
        name: tuple(one.shape) for name, one in space.build(best.architecture).state_dict().items()
    }
    assert again(images).shape == (2, 10)
