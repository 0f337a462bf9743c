"""Without these a user would get other scores from the same seed, a search that dies of one bad candidate, or a slow
one that waits for the device in every step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasplat.core.errors import Infeasible, NasplatError, TrialFailed
from nasplat.training.devices import place
from nasplat.training.loop import Progress, TrainResult, train
from nasplat.training.objectives import OBJECTIVES, make_objective
from nasplat.training.optimisers import learning_rate, make_optimiser, trainable
from nasplat.training.step import training_step
from tests.data.helpers import NoWaiting
from tests.training.toys import PROBLEM, UNLABELLED, ToyBatch, ToyLoader, ToyNetwork, same, settings, weights

CPU = torch.device("cpu")


def run(
    network: nn.Module | None = None, loader: ToyLoader | None = None, **changes: Any
) -> tuple[nn.Module, TrainResult]:
    """Trains a toy network; keywords of `train` go there, the others are settings."""
    options = {key: changes.pop(key) for key in ("on_progress", "stop", "checkpoint") if key in changes}
    seed = changes.pop("seed", 0)
    chosen = settings(**changes)
    objective = make_objective(chosen, PROBLEM, 128)
    network = network or ToyNetwork()
    loader = loader or ToyLoader(views=objective.views)
    result = train(network, objective, loader, chosen, device=CPU, seed=seed, **options)  # type: ignore[arg-type]
    return network, result


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(objective: str, optimiser: str) -> None:
    state = torch.get_rng_state()
    changes = {"objective": objective, "optimiser": optimiser, "mixup": 0.4, "lr": 0.01}
    first, first_result = run(**changes)
    torch.randn(3)  # what others draw from the default generator does not matter
    second, second_result = run(**changes)
    assert same(weights(first), weights(second))
    assert first_result.losses == second_result.losses
    other, _ = run(**changes, seed=1)
    assert not same(weights(first), weights(other))
    torch.set_rng_state(state)


def test_training_leaves_the_default_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    run()
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize(
    ("budget", "steps", "epochs"),
    [({"epochs": 2}, 8, 2), ({"epochs": 1.5}, 6, 2), ({"epochs": 0.01}, 1, 1), ({"steps": 9, "epochs": None}, 9, 3)],
)
def test_budgets_in_epochs_and_steps_are_kept_exactly(budget: dict[str, Any], steps: int, epochs: int) -> None:
    _, result = run(**budget)
    assert (result.steps, len(result.losses), result.finished) == (steps, epochs, True)


def test_a_budget_in_seconds_is_kept() -> None:
    _, result = run(epochs=None, seconds=0.3)
    assert 0.3 <= result.seconds < 5
    assert result.steps > 1


def test_learning_rates_rise_and_fall_as_the_schedule_says() -> None:
    cosine = settings(lr=1.0, warmup=0.2)
    assert learning_rate(cosine, 0.1) == pytest.approx(0.5)
    assert learning_rate(cosine, 0.2) == pytest.approx(1.0)
    assert learning_rate(cosine, 0.6) == pytest.approx(0.5)
    assert learning_rate(cosine, 1.0) == pytest.approx(0.0)
    linear = settings(lr=1.0, warmup=0.0, schedule="linear")
    assert learning_rate(linear, 0.25) == pytest.approx(0.75)
    constant = settings(lr=1.0, warmup=0.5, schedule="constant")
    assert [learning_rate(constant, share) for share in (0.25, 0.75, 1.0)] == [0.5, 1.0, 1.0]


def test_biases_and_norms_do_not_decay() -> None:
    network = ToyNetwork()
    network.stem[0].weight.requires_grad_(False)
    optimiser = make_optimiser(trainable((network, network)), settings(weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    named = {name: decays.get(id(parameter)) for name, parameter in network.named_parameters()}
    assert named == {
        "stem.0.weight": None,  # frozen by the user
        "stem.1.weight": 0.0,
        "stem.1.bias": 0.0,
        "body.weight": 0.1,
        "body.bias": 0.0,
        "classifier.weight": 0.1,
        "classifier.bias": 0.0,
    }


def test_drop_path_rises_linearly_and_is_off_afterwards() -> None:
    network = ToyNetwork()
    run(network, drop_path=0.4, epochs=4)
    seen = network.seen_drop_paths
    assert seen[0] < 0.05 and 0.35 < seen[-1] < 0.4
    rises = [after - before for before, after in pairwise(seen)]
    assert rises == pytest.approx([0.4 / 16] * 15)
    assert network.drop_path_probability == 0.0
    assert network.drop_path_generator is None


def test_drop_path_that_is_a_tensor_is_filled_and_not_replaced() -> None:
    network = ToyNetwork()
    network.drop_path_probability = tensor = torch.tensor(0.0)  # type: ignore[assignment]
    highest: list[float] = []
    network.register_forward_hook(lambda *_: highest.append(float(tensor)))
    run(network, drop_path=0.4)
    assert max(highest) > 0.3 and float(tensor) == 0.0


def test_drop_path_of_a_network_without_paths_is_an_error() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(NasplatError, match="no paths"):
        run(plain, drop_path=0.1)


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_a_candidate_that_diverges_fails_with_its_reason(where: str) -> None:
    network = ToyNetwork()
    if where == "loss":
        with pytest.raises(TrialFailed, match=r"the loss became (nan|inf).* in epoch 1, by step \d+ of 8"):
            run(network, lr=1e38, clip_norm=None)
        return
    with pytest.raises(TrialFailed, match="weights"):
        run(network, lr=1e38, clip_norm=None, steps=1, epochs=None, momentum=0.0, weight_decay=1e5, warmup=0.0)


def test_a_network_with_nothing_to_train_fails_its_trial_only() -> None:
    with pytest.raises(TrialFailed, match="no trainable"):
        run(nn.Sequential(nn.Flatten()))


class Hungry(ToyNetwork):
    def forward(self, images: Tensor) -> Tensor:
        torch.empty(2**50)
        return super().forward(images)


def raise_memory_error(images: Tensor) -> Tensor:
    raise MemoryError


def test_running_out_of_memory_makes_a_candidate_infeasible() -> None:
    with pytest.raises(Infeasible, match="out of memory while training"):
        run(Hungry())
    network = ToyNetwork()
    network.forward = raise_memory_error  # type: ignore[method-assign]
    with pytest.raises(Infeasible, match="MemoryError"):
        run(network)


def test_other_errors_of_a_network_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(5, 4)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bfloat16_trains(objective: str) -> None:
    _, result = run(objective=objective, precision="bfloat16", channels_last=True, mixup=0.2)
    assert all(math.isfinite(loss) for loss in result.losses)


def test_data_that_do_not_fit_the_objective_are_an_error() -> None:
    with pytest.raises(NasplatError, match="needs labels"):
        run(loader=ToyLoader(labelled=False))
    with pytest.raises(NasplatError, match="2 views"):
        run(objective="simclr", loader=ToyLoader(views=1))
    with pytest.raises(NasplatError, match="needs labels"):
        make_objective(settings(), UNLABELLED, 10)
    empty = ToyLoader()
    empty.batches_per_epoch = 0
    with pytest.raises(NasplatError, match="no images"):
        run(loader=empty)


def test_stop_ends_the_training_early() -> None:
    answers = iter([False, False, True])
    _, result = run(stop=lambda: next(answers))
    assert (result.steps, result.finished) == (3, False)


def test_progress_is_told_at_the_end_and_seldom_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Progress] = []
    _, result = run(on_progress=told.append, epochs=3)
    last = told[-1]
    assert (last.step, last.steps, last.share, last.epoch, last.seconds_left) == (12, 12, 1.0, 3.0, 0.0)
    assert last.images_per_second > 0
    assert len(told) <= result.seconds / 0.4 + 1

    monkeypatch.setattr("nasplat.training.loop.LOOK_SECONDS", 0.0)
    told.clear()
    _, result = run(on_progress=told.append, epochs=3)
    assert [progress.step for progress in told] == list(range(1, 13))
    mean_of_steps = sum(progress.loss for progress in told) / 12
    assert mean_of_steps == pytest.approx(sum(result.losses) / 3, rel=1e-4)
    assert all(before.share < after.share for before, after in pairwise(told))


class CountWaits(TorchDispatchMode):
    waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.waits += 1
        return function(*args, **(kwargs or {}))


VARIANTS: list[dict[str, Any]] = [
    {"mixup": 0.3, "label_smoothing": 0.1, "auxiliary": 0.4, "drop_path": 0.2},
    {"optimiser": "adam"},
    {"optimiser": "adamw", "clip_norm": None},
    {"objective": "simclr"},
    {"objective": "memory_bank"},
    {"precision": "bfloat16"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(changes))
def test_nothing_waits_for_the_device_within_a_step(changes: dict[str, Any]) -> None:
    chosen = settings(**changes)
    objective, network = make_objective(chosen, PROBLEM, 128), ToyNetwork()
    extra = objective.module(network)
    parameters = trainable((network, extra))
    optimiser = make_optimiser(parameters, chosen)
    generator = torch.Generator().manual_seed(0)
    for batch in ToyLoader(views=objective.views).epoch(generator):
        with NoWaiting():
            training_step(network, objective, extra, batch, optimiser, parameters, place(chosen, CPU), 5.0, generator)  # type: ignore[arg-type]


def test_the_whole_loop_waits_once_an_epoch_and_a_few_times_at_its_end() -> None:
    counts = []
    for epochs in (2, 12):
        with CountWaits() as mode:
            _, result = run(epochs=epochs)
        counts.append((mode.waits, result.seconds))
    looks = counts[1][1] / 0.4
    assert counts[1][0] - counts[0][0] <= 10 + looks


class Shapeless:
    views, needs_labels = 1, False

    def module(self, network: nn.Module) -> None:
        return None

    def loss(self, network: nn.Module, extra: Any, batch: ToyBatch, generator: torch.Generator) -> Tensor:
        return network(batch.views[0])


def test_an_objective_whose_loss_is_not_a_number_is_told_so() -> None:
    with pytest.raises(NasplatError, match="one number"):
        train(ToyNetwork(), Shapeless(), ToyLoader(), settings(), device=CPU, seed=0)  # type: ignore[arg-type]


def test_supervised_training_learns_the_toy_classes() -> None:
    network, result = run(epochs=20, lr=0.1, label_smoothing=0.1, auxiliary=0.4)
    network.eval()
    loader = ToyLoader()
    hits = (network(loader.images).argmax(1) == loader.labels).float().mean()
    assert hits > 0.95
    assert result.losses[-1] < result.losses[0]
