"""Without these missing labels would be learned, or a task's loss would count for more or less than was asked for."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.core.tasks import Task
from nasplat.data.datasets import Dataset, Split
from nasplat.data.loader import Batch, Loader
from nasplat.data.pretexts import pretext_task
from nasplat.data.tasks import make_dataset
from nasplat.training.loop import train
from nasplat.training.multi_task import MultiTask, task_loss
from nasplat.training.task_weighting import WEIGHTINGS, GradNorm, Uncertainty
from tests.data.helpers import NoWaiting, seeded
from tests.training.toys import ToyLoader, settings

SHAPE = (3, 8, 8)
KIND, MARKS, SIZE, MAP = TASKS = (
    Task("kind", "classification", 4),
    Task("marks", "multi_label", 3),
    Task("size", "regression", 2),
    Task("map", "dense", 2),
)


class Branched(nn.Module):
    """A shared trunk and a head a task."""

    def __init__(self, tasks: tuple[Task, ...], seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
            )
            self.heads = nn.ModuleDict({task.name: nn.Conv2d(8, task.size, 1) for task in tasks})
        self.dense = {task.name for task in tasks if task.kind == "dense"}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.trunk(images)
        return {
            name: head(maps) if name in self.dense else head(maps).mean((2, 3)) for name, head in self.heads.items()
        }


def labels(count: int, missing: float = 0.3, seed: int = 0) -> dict[str, Tensor]:
    generator = seeded(seed)
    found = {
        "kind": torch.randint(4, (count,), generator=generator),
        "marks": torch.randint(2, (count, 3), generator=generator).to(torch.int8),
        "size": torch.randn(count, 2, generator=generator),
        "map": torch.randint(2, (count, 8, 8), generator=generator).to(torch.int16),
    }
    return {
        name: label.masked_fill(
            torch.rand(label.shape, generator=generator) < missing, float("nan") if name == "size" else -1
        )
        for name, label in found.items()
    }


def batch(count: int = 16, missing: float = 0.3, seed: int = 0) -> Batch:
    images = torch.randn(count, *SHAPE, generator=seeded(seed + 100))
    found: Any = labels(count, missing, seed)
    return Batch((images,), None, torch.arange(count), found)


def dataset(count: int = 160) -> Dataset:
    toys = ToyLoader(count)
    images = (toys.images * 40 + 128).clamp(0, 255).to(torch.uint8)
    found = labels(count)
    found["kind"] = torch.where(found["kind"] < 0, -1, toys.labels)
    return make_dataset("toys", TASKS, Split(images, task_labels=found))


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.floats(0, 0.9), st.integers(0, 2**20))
def test_losses_are_torchs_own_on_the_labels_that_are_there(missing: float, seed: int) -> None:
    outputs, found = Branched(TASKS)(batch(8, seed=seed).views[0]), labels(8, missing, seed)
    kind = found["kind"] >= 0
    marks = found["marks"] >= 0
    size = ~found["size"].isnan()
    pixels = found["map"] >= 0
    wanted = {
        "kind": F.cross_entropy(outputs["kind"][kind], found["kind"][kind]),
        "marks": F.binary_cross_entropy_with_logits(outputs["marks"][marks], found["marks"][marks].float()),
        "size": F.mse_loss(outputs["size"][size], found["size"][size]),
        "map": F.cross_entropy(outputs["map"].permute(0, 2, 3, 1)[pixels], found["map"][pixels].long()),
    }
    for task, there in zip(TASKS, (kind, marks, size, pixels), strict=True):
        loss, some = task_loss(task, outputs[task.name], found[task.name])
        assert bool(some) == bool(there.any())
        if some:
            torch.testing.assert_close(loss, wanted[task.name])
            ours, theirs = (
                torch.autograd.grad(one, outputs[task.name], retain_graph=True)[0] for one in (loss, wanted[task.name])
            )
            torch.testing.assert_close(ours, theirs)


def test_a_batch_without_a_label_of_a_task_teaches_it_nothing() -> None:
    network, made = Branched(TASKS), batch()
    made.task_labels["size"].fill_(float("nan"))  # type: ignore[index]
    made.task_labels["kind"].fill_(-1)  # type: ignore[index]
    for weighting in WEIGHTINGS:
        objective = MultiTask(TASKS, SHAPE, weighting)
        extra = objective.module(network)
        network.zero_grad()
        loss = objective.loss(network, extra, made, seeded())
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
        for name, parameter in network.heads.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
            assert bool(parameter.grad.any()) == (name.split(".")[0] in ("marks", "map"))
        s: Any = extra.weighting
        if weighting == "uncertainty":
            assert [bool(value) for value in s.log_variance.grad] == [False, True, False, True]


def test_weights_by_hand_are_factors() -> None:
    network, made = Branched(TASKS), batch()
    plain = MultiTask(TASKS, SHAPE)
    losses, _ = plain.losses(network, made, seeded())
    weighted = MultiTask(TASKS, SHAPE, "hand", {"kind": 2.0, "map": 0.0})
    total = weighted.loss(network, weighted.module(network), made, seeded())
    torch.testing.assert_close(total, 2 * losses[0] + losses[1] + losses[2])


def test_uncertainty_finds_its_closed_form_optimum() -> None:
    losses, here = [torch.tensor(value) for value in (0.3, 2.0, 0.05, 1.0)], torch.tensor([True, True, True, False])
    weighting = Uncertainty(TASKS, SHAPE)
    parts: Any = weighting.module(nn.Identity())
    optimiser = torch.optim.LBFGS(parts.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = weighting.combine(losses, here, nn.Identity(), parts)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(closure)  # type: ignore[arg-type]
    variances = parts.log_variance.exp().detach().tolist()
    assert variances == pytest.approx([0.6, 4.0, 0.05, 1.0], rel=1e-3)  # 2 L; L for the regression; as it was
    value = weighting.combine(losses, here, nn.Identity(), parts).item()
    wanted = sum(0.5 + 0.5 * np.log(variance) for variance in (0.6, 4.0, 0.05))
    assert value == pytest.approx(wanted, rel=1e-4)


def norms_of(network: Branched, objective: MultiTask, extra: nn.Module, made: Batch) -> np.ndarray:
    """Norms of the gradients of the weighted losses on the last shared layer, by torch alone."""
    losses, _ = objective.losses(network, made, seeded())
    raw: Any = extra.weighting
    weights = len(losses) * raw.raw.softmax(0)
    weight = network.trunk[2].weight
    return np.array(
        [
            torch.autograd.grad(w.detach() * loss, weight, retain_graph=True)[0].norm().item()  # type: ignore[arg-type]
            for w, loss in zip(weights, losses, strict=True)
        ]
    )


def test_gradnorm_with_alpha_0_makes_gradients_equal() -> None:
    made = batch(missing=0.2)
    made.task_labels["size"].mul_(10)  # type: ignore[index]  # its gradient is far larger than the others'
    network = Branched(TASKS)
    objective = MultiTask(TASKS, SHAPE, "gradnorm", {"alpha": 0.0})
    extra = objective.module(network)
    before = norms_of(network, objective, extra, made)
    assert before.max() / before.min() > 10
    optimiser = torch.optim.Adam(extra.parameters(), 0.05)  # the network stays as it is
    for step in range(400):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 400)
        optimiser.zero_grad()
        objective.loss(network, extra, made, seeded()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    after = norms_of(network, objective, extra, made)
    assert after.max() / after.min() < 1.02
    raw: Any = extra.weighting
    assert (4 * raw.raw.softmax(0)).sum().item() == pytest.approx(4)


def test_gradnorm_pulls_slower_tasks_more() -> None:
    made = batch(missing=0.0)
    network = Branched(TASKS)
    objective = MultiTask(TASKS, SHAPE, "gradnorm", {"alpha": 1.0})
    extra: Any = objective.module(network)
    objective.loss(network, extra, made, seeded())
    first = extra.weighting.first
    torch.testing.assert_close(first, torch.stack(objective.losses(network, made, seeded())[0]))
    first.mul_(torch.tensor([1.0, 3.0, 1.0, 1.0]))  # as if the second task had come down to a third
    optimiser = torch.optim.Adam(extra.parameters(), 0.05)
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimiser.zero_grad()
        objective.loss(network, extra, made, seeded()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    norms = norms_of(network, objective, extra, made)
    rates = np.array([1, 1 / 3, 1, 1]) / np.mean([1, 1 / 3, 1, 1])
    assert norms / norms.mean() == pytest.approx(rates, rel=0.05)


def test_gradnorm_does_not_change_the_gradient_of_the_network() -> None:
    made, network = batch(), Branched(TASKS)
    other = copy.deepcopy(network)
    gradnorm, hand = MultiTask(TASKS, SHAPE, "gradnorm"), MultiTask(TASKS, SHAPE)
    first = gradnorm.loss(network, gradnorm.module(network), made, seeded())
    second = hand.loss(other, hand.module(other), made, seeded())
    torch.testing.assert_close(first, second)  # at the start all weights are 1
    first.backward()  # type: ignore[no-untyped-call]
    second.backward()  # type: ignore[no-untyped-call]
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


class Apart(nn.Module):
    """A network for each of some sets of tasks."""

    def __init__(self, *sets: tuple[Task, ...]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Branched(tasks) for tasks in sets)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: output for net in self.nets for name, output in net(images).items()}


def test_gradnorm_looks_at_the_last_weights_that_tasks_share() -> None:
    network = Branched(TASKS)
    assert GradNorm(TASKS, SHAPE)._find(network) == ["trunk.2.weight"] * 4
    assert GradNorm(TASKS, SHAPE, shared="trunk.0")._find(network) == ["trunk.0.weight"] * 4
    first, second = "nets.0.trunk.2.weight", "nets.1.trunk.2.weight"
    assert GradNorm(TASKS, SHAPE)._find(Apart(TASKS[:2], TASKS[2:])) == [first, first, second, second]
    with pytest.raises(NasplatError, match=r"share no weights in 'nets\.0'"):
        MultiTask(TASKS, SHAPE, "gradnorm", {"shared": "nets.0"}).module(Apart(TASKS[:1], TASKS[1:2], TASKS[2:]))


def test_gradnorm_balances_the_tasks_of_each_tree_by_themselves() -> None:
    """A search over branching trees would end at the first tree in which not all tasks share a layer."""
    made = batch(missing=0.2)
    made.task_labels["size"].mul_(10)  # type: ignore[index]
    network = Apart((KIND, SIZE), (MARKS,), (MAP,))
    objective = MultiTask(TASKS, SHAPE, "gradnorm", {"alpha": 0.0})
    extra: Any = objective.module(network)
    optimiser = torch.optim.Adam(extra.parameters(), 0.05)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        optimiser.zero_grad()
        objective.loss(network, extra, made, seeded()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    names = [task.name for task in TASKS]
    raw = extra.weighting.raw.detach()
    alone = [names.index(task.name) for task in (MARKS, MAP)]
    assert bool((raw[alone] == 0).all())  # each by itself counts once
    losses = objective.losses(network, made, seeded())[0]
    pair = [names.index(task.name) for task in (KIND, SIZE)]
    weights = (2 * raw[pair].softmax(0)).tolist()
    shared = network.get_parameter("nets.0.trunk.2.weight")
    norms = [
        weight * torch.autograd.grad(losses[place], [shared], retain_graph=True)[0].norm().item()
        for weight, place in zip(weights, pair, strict=True)
    ]
    assert sum(weights) == pytest.approx(2) and norms[0] == pytest.approx(norms[1], rel=0.03)


@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
def test_a_step_does_not_wait_for_the_device(weighting: str) -> None:
    tasks = (*TASKS, pretext_task("rotation", SHAPE))
    network = Branched(tasks)
    objective = MultiTask(tasks, SHAPE, weighting)
    extra = objective.module(network)
    made = batch()
    objective.loss(network, extra, made, seeded())  # the pretext's table is copied to the device once
    with NoWaiting():
        objective.loss(network, extra, made, seeded()).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("weighting", list(WEIGHTINGS))
def test_a_network_learns_its_tasks(weighting: str) -> None:
    found = dataset()
    tasks = (*found.tasks, pretext_task("rotation", SHAPE))
    network = Branched(tasks)
    objective = MultiTask(tasks, SHAPE, weighting)
    loader = Loader(found.train, batch_size=16, device="cpu", mean=found.mean, std=found.std)
    extra = objective.module(network)
    made = next(iter(loader.ordered()))
    before, _ = objective.losses(network, made, seeded())
    result = train(
        network, objective, loader, settings(epochs=15, optimiser="adam", lr=0.01), device=torch.device("cpu"), seed=0
    )
    after, _ = objective.losses(network, made, seeded())
    assert result.finished and after[0] < 0.8 * before[0]
    assert objective.culprits(extra) == ()


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path: Any) -> None:
    found = dataset()
    ends = []
    for pauses in ((), (0.5,)):
        network, objective = Branched(TASKS), MultiTask(TASKS, SHAPE, "gradnorm")
        loader = Loader(found.train, batch_size=16, device="cpu", mean=found.mean, std=found.std)
        for until in (*pauses, 1.0):
            train(
                network, objective, loader, settings(epochs=2), device=torch.device("cpu"), seed=0,
                checkpoint=tmp_path / str(len(pauses)), until=until,
            )  # fmt: skip
        ends.append(network.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_pretext_is_trained_on_images_of_its_own() -> None:
    rotation = pretext_task("rotation", SHAPE)
    tasks = (KIND, rotation)
    seen: list[Tensor] = []

    class Seeing(Branched):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            seen.append(images)
            return super().forward(images)

    made = batch()
    objective = MultiTask(tasks, SHAPE)
    losses, here = objective.losses(Seeing(tasks), made, seeded(5))
    assert here.all() and losses[1].item() == pytest.approx(np.log(4), abs=0.5)
    (both,) = seen  # one pass, for the sake of batch norm
    assert torch.equal(both[:16], made.views[0]) and not torch.equal(both[16:], made.views[0])
    turned = [
        any(torch.equal(image, original.rot90(turns, (1, 2))) for turns in range(4))
        for image, original in zip(both[16:], made.views[0], strict=True)
    ]
    assert all(turned)
    alone = MultiTask((rotation, pretext_task("jigsaw", SHAPE)), SHAPE)
    unlabelled = Batch(made.views, None, made.indices)
    assert alone.losses(Branched(alone.tasks), unlabelled, seeded())[1].all()
    with pytest.raises(NasplatError, match="no labels by task"):
        objective.losses(Branched(tasks), unlabelled, seeded())


def test_a_loss_that_is_not_finite_is_told_with_its_task() -> None:
    network = Branched(TASKS)
    objective = MultiTask(TASKS, SHAPE)
    extra = objective.module(network)
    objective.loss(network, extra, batch(), seeded())
    objective.check(extra)
    with torch.no_grad():
        network.heads["size"].weight.fill_(float("nan"))
    with NoWaiting():
        objective.loss(network, extra, batch(), seeded())
    with torch.no_grad():
        network.trunk[0].weight.fill_(float("nan"))  # as after the update: now all losses are
    objective.loss(network, extra, batch(), seeded())
    assert objective.culprits(extra) == ("size",)
    with pytest.raises(TrialFailed, match="the loss of task size is not finite"):
        objective.check(extra)


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(NasplatError, match="only one task, kind"):
        MultiTask((KIND,), SHAPE)
    MultiTask((KIND,), SHAPE, alone=True)
    with pytest.raises(NasplatError, match="did you mean 'gradnorm'"):
        MultiTask(TASKS, SHAPE, "grad_norm")
    with pytest.raises(NasplatError, match="no task 'knid'"):
        MultiTask(TASKS, SHAPE, "hand", {"knid": 1.0})
    with pytest.raises(NasplatError, match="kind has weight -1"):
        MultiTask(TASKS, SHAPE, "hand", {"kind": -1.0})
    with pytest.raises(NasplatError, match="weighting uncertainty"):
        MultiTask(TASKS, SHAPE, "uncertainty", {"alpha": 1.0})
    with pytest.raises(NasplatError, match="alpha"):
        MultiTask(TASKS, SHAPE, "gradnorm", {"alpha": -1.0})
    objective = MultiTask(TASKS, SHAPE)
    network = Branched((KIND, MARKS, SIZE))
    with pytest.raises(NasplatError, match="no output for task map"):
        objective.losses(network, batch(), seeded())
    bare = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(NasplatError, match="one output without a name"):
        objective.losses(bare, batch(), seeded())
    with pytest.raises(NasplatError, match="no labels by task"):
        objective.losses(Branched(TASKS), Batch(batch().views, torch.zeros(16), torch.arange(16)), seeded())
