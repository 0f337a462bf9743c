"""Without these a search by gradients would train other networks than its trees, or forget its cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.experiment import Data, Train
from nasplat.core.problem import Output, Problem
from nasplat.data.datasets import Dataset, load_dataset
from nasplat.networks.branched import BranchedNetwork
from nasplat.spaces.branching import BranchingSpace
from nasplat.spaces.families import make_space
from nasplat.training.branching_search import METHODS, Settings, Snapshot, search_tree
from nasplat.training.relaxed_trees import ParentChoices, RelaxedTrees, TaskMixtures, share_of
from tests.data.helpers import seeded
from tests.search.test_branching_experiment import SPACE

CPU = torch.device("cpu")
TASKS = ["labels", "rotation", "jigsaw"]
TRAIN = Train.model_validate({"batch_size": 50, "augment": []})
methods = pytest.mark.parametrize("method", sorted(METHODS))


def data(**changes: Any) -> Dataset:
    return load_dataset(Data.model_validate({"tasks": TASKS, "train_size": 250, **changes}))


def space_for(problem: Problem) -> BranchingSpace:
    found = make_space(SPACE, problem)
    assert isinstance(found, BranchingSpace)
    return found


def relaxed_of(method: str, tasks: int = 3) -> tuple[RelaxedTrees, BranchingSpace]:
    outputs = tuple(Output(f"task{place}", "classification", 3) for place in range(tasks))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        space = space_for(Problem((1, 8, 8), outputs))
        return METHODS[method](space), space


def views() -> list[Tensor]:
    return [torch.randn(6, 1, 8, 8, generator=seeded(seed)) for seed in range(2)]


def test_choices_without_doubt_run_the_network_of_their_tree() -> None:
    """Then the search trains what it will hand over: outputs are those of the branched network with the same weights.

    The mixture is compared up to scale, which it divides out: in training the batch norm that follows does, too.
    """
    relaxed, space = relaxed_of("learning_to_branch")
    assert isinstance(relaxed, ParentChoices)
    labels = {"layer2": [0, 0, 2], "heads": [1, 1, 2]}  # of branches; branch 0 of layer 2 leads to no head
    with torch.no_grad():
        for name, rows in labels.items():
            relaxed.logits[name].copy_(50.0 * torch.nn.functional.one_hot(torch.tensor(rows), 3))
    architecture = relaxed.settled()
    assert space.tree(architecture) == ((0, 0, 2), (0, 0, 2))
    network = space.build(architecture)
    assert isinstance(network, BranchedNetwork)
    copies = {"layer1_task0": (0, 0), "layer1_task2": (0, 2), "layer2_task0": (1, 1), "layer2_task2": (1, 2)}
    for name, (layer, copy) in copies.items():
        network.stages[name].load_state_dict(relaxed.copies.stage(layer, copy).state_dict())
    for task in range(3):
        network.heads[f"head_task{task}"].load_state_dict(relaxed.copies.heads[task].state_dict())
    seen = {"task0": (0,), "task1": (0,), "task2": (1,)}
    with torch.no_grad():
        weights = relaxed.draw(1.0, seeded(0))
        found = relaxed(views(), seen, weights)
        wanted = network.train()(torch.cat(views()))
    for place, name in enumerate(seen):
        torch.testing.assert_close(found[name][0], wanted[name].chunk(2)[seen[name][0]], msg=str(place))


@methods
def test_what_has_no_weight_is_not_run(method: str) -> None:
    """A search costs T times its tree already; of a settled choice only what it uses may be run."""
    relaxed, _ = relaxed_of(method)
    ran = []
    for layer in range(2):
        for copy in range(3):
            relaxed.copies.stage(layer, copy).register_forward_hook(lambda *_, here=(layer, copy): ran.append(here))
    same = torch.zeros(3, 3)
    same[:, 1] = 1.0
    seen = {"task0": (0,), "task1": (0,), "task2": (0, 1)}
    with torch.no_grad():
        outputs = relaxed(views(), seen, [same] * 2)
    assert ran == [(0, 1), (1, 1)]
    assert [len(outputs[name]) for name in seen] == [1, 1, 2]
    ran.clear()
    relaxed(views(), seen, relaxed.draw(1.0, seeded(0)))
    assert sorted(ran) == [(layer, copy) for layer in range(2) for copy in range(3)]  # all learn


@methods
def test_gradients_reach_every_choice(method: str) -> None:
    relaxed, _ = relaxed_of(method)
    with torch.no_grad():  # as after a warm-up: of copies that are alike it does not matter which is chosen
        for place, parameter in enumerate(relaxed.copies.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(place)))
    seen = {"task0": (0,), "task1": (1,), "task2": (0,)}
    outputs = relaxed(views(), seen, relaxed.draw(1.0, seeded(1)))
    sum(one.square().sum() for own in outputs.values() for one in own).backward()  # type: ignore[union-attr]
    for logits in relaxed.logits.values():  # of a branch that no head leads to there is nothing to learn
        assert logits.grad is not None and bool((logits.grad != 0).any())
    assert bool((list(relaxed.logits.values())[-1].grad != 0).any(1).all())  # type: ignore[union-attr]


def test_copies_of_mixtures_begin_alike_and_those_of_parents_do_not() -> None:
    """Mixtures of strangers are no networks, so that tasks would stay alone; equal parents would be trained equally."""
    for method, alike in (("bmtas", True), ("learning_to_branch", False)):
        relaxed, space = relaxed_of(method)
        for layer in range(space.layers):
            first, second = (relaxed.copies.stage(layer, branch).state_dict() for branch in (0, 1))
            assert all(torch.equal(first[name], second[name]) for name in first) == alike


def test_the_share_of_cost_is_that_of_the_trees() -> None:
    """0 and 1 at the ends, and in between what the space counts without heads."""
    for method in METHODS:
        relaxed, space = relaxed_of(method)
        ends = (space.known(space.shared())["macs"], space.known(space.separate())["macs"])
        for seed in range(4):
            with torch.no_grad():
                for place, logits in enumerate(relaxed.logits.values()):
                    rows = torch.randint(0, 3, (3,), generator=seeded(10 * seed + place))
                    logits.copy_(60.0 * torch.nn.functional.one_hot(rows, 3))
            expected, error = relaxed.expected_branches(seeded(0))
            macs = space.known(relaxed.settled())["macs"]
            assert float(share_of(expected, space).detach()) == pytest.approx(
                (macs - ends[0]) / (ends[1] - ends[0]), abs=1e-6
            )
            assert not error.any()


def test_more_tasks_than_can_be_counted_are_sampled() -> None:
    relaxed, _ = relaxed_of("bmtas", tasks=7)
    assert isinstance(relaxed, TaskMixtures)
    expected, error = relaxed.expected_branches(seeded(0))
    uniform = [7**layer * (1 - (1 - 7**-layer) ** 7) for layer in (1, 2)]
    assert bool(((expected - torch.tensor(uniform)).abs() < 4 * error).all()) and bool((error > 0).all())
    with pytest.raises(NasplatError, match="takes 10 tasks at most, not 11"):
        relaxed_of("learning_to_branch", tasks=11)


def searched(method: str, folder: Path | None = None, **settings: Any) -> tuple[Snapshot, ...]:
    dataset = data()
    chosen = replace(Settings(epochs=4, warmup=0.25), **settings)
    space = space_for(dataset.problem)
    return search_tree(space, dataset, method, chosen, TRAIN, device=CPU, seed=3, checkpoint=folder)


schedules = pytest.mark.parametrize(
    ("method", "held"), [("bmtas", 0.2), ("learning_to_branch", 0.2), ("learning_to_branch", 0.0)]
)


@schedules
def test_an_interrupted_search_ends_where_an_uninterrupted_one_does(method: str, held: float, tmp_path: Path) -> None:
    """Bit for bit, from the last finished epoch."""
    whole = searched(method, held=held)

    class Stop(Exception):
        pass

    def stop(snapshot: Snapshot) -> None:
        if snapshot.epoch == 1:
            raise Stop

    dataset = data()
    space = space_for(dataset.problem)
    settings = Settings(epochs=4, warmup=0.25, held=held)
    with pytest.raises(Stop):
        search_tree(space, dataset, method, settings, TRAIN, device=CPU, seed=3, checkpoint=tmp_path, on_epoch=stop)
    assert searched(method, tmp_path, held=held) == whole
    with pytest.raises(NasplatError, match="is of another search"):
        searched(method, tmp_path, held=held, cost=0.7)


@schedules
def test_cost_pulls_tasks_together(method: str, held: float) -> None:
    """With no way to say what a network may cost a search would always split."""
    often = {"epochs": 10, "choice_lr": 0.3, "held": held and 0.5}
    cheap, free = searched(method, cost=30.0, **often), searched(method, cost=0.0, **often)
    assert cheap[-1].share < 0.15 < free[-1].share
    assert cheap[-1].share < cheap[0].share and cheap[-1].loss < cheap[0].loss
    space = space_for(data().problem)
    assert space.tree(cheap[-1].architecture) == space.tree(space.shared())


def test_a_warm_up_leaves_an_epoch_to_choose_in() -> None:
    """A share of a few epochs may round to all of them."""
    found = searched("bmtas", epochs=2, warmup=0.9)
    assert len(found) == 2 and found[0].share != found[1].share


def test_bad_input_is_refused(tmp_path: Path) -> None:
    dataset = data()
    space = space_for(dataset.problem)
    with pytest.raises(NasplatError, match="other tasks than the space"):
        search_tree(space, data(tasks=["labels", "rotation"]), "bmtas", Settings(), TRAIN, device=CPU, seed=0)
    with pytest.raises(NasplatError, match="gradnorm looks at one layer"):
        norm = TRAIN.model_copy(update={"weighting": "gradnorm"})
        search_tree(space, dataset, "bmtas", Settings(), norm, device=CPU, seed=0)
    with pytest.raises(TrialFailed, match="became"):
        search_tree(space, dataset, "bmtas", Settings(lr=1e30, epochs=3), TRAIN, device=CPU, seed=0)
