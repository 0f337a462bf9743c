"""Distillation: what is lost if these fail is told by each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nasplat.core.distillation import Distillation
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Train
from nasplat.core.problem import classification
from nasplat.data.loader import Batch
from nasplat.training.distillation import decoupled_parts, make_distillation, soft_logits
from nasplat.training.distillation_features import attention, distances, hint, relation


def net(width: int, classes: int = 3, channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


def batch(labels: bool = True) -> Batch:
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch((images,), torch.arange(6) % 3 if labels else None, torch.arange(6))


def made(network: nn.Module, teachers: list[nn.Module], **changes: object) -> object:
    return make_distillation(
        Distillation(**changes), Train(epochs=1, augment=[]), classification((1, 8, 8), 3), 6, teachers, network
    )


def test_soft_logits_are_those_of_numpy_and_their_gradient_is_right() -> None:
    """A wrong T or T^2 would silently train every student to another target."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(4, 5, generator=generator)
    target = torch.randn(4, 5, generator=generator).log_softmax(1)
    shares = np.exp(own.double().numpy() / 3)
    shares /= shares.sum(1, keepdims=True)
    logs = target.double().numpy()
    expected = 9 * (np.exp(logs) * (logs - np.log(shares))).sum(1).mean()
    assert float(soft_logits(own, target, 3.0)) == pytest.approx(expected, rel=1e-5)
    own.requires_grad_()
    soft_logits(own, target, 3.0).backward()
    assert np.allclose(own.grad.numpy(), 3 * (shares - np.exp(logs)) / 4, atol=1e-5)


def test_decoupled_parts_add_up_to_plain_distillation() -> None:
    """The paper's identity: KD = TCKD + (1 - p_t) NCKD."""
    generator = torch.Generator().manual_seed(0)
    own, target = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator).log_softmax(1)
    labels = torch.tensor([0, 4, 2, 2])
    binary, among = decoupled_parts(own, target, labels, 1.0)
    right = target.exp().gather(1, labels[:, None]).squeeze(1)
    assert float((binary + (1 - right) * among).mean()) == pytest.approx(float(soft_logits(own, target, 1.0)), rel=1e-5)


@pytest.mark.parametrize("loss", [hint, attention, relation])
def test_features_equal_to_the_teachers_cost_nothing(loss) -> None:
    """A student that is its teacher would still be pushed away; NaN gradients would end every training."""
    features = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = loss(features, features.detach())
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert bool(features.grad.isfinite().all())


def test_distances_are_those_of_numpy() -> None:
    """Relations would be of something else than distances."""
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    plain = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert np.allclose(distances(torch.tensor(points)).numpy(), plain / plain[plain > 0].mean(), atol=1e-6)


def test_all_objectives_together_leave_the_teacher_as_it_was() -> None:
    """A teacher that drifts teaches another thing every step; the student would not train without gradients."""
    student, teacher = net(4), net(7)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    weights = {"logits": 1.0, "decoupled": 1.0, "hint": 1.0, "attention": 1.0, "relation": 1.0}
    objective = made(student, [teacher], weights=weights, labels=1.0, pairs={"0": "0"}, discriminator=0.1)
    extra = objective.module(student)
    loss = objective.loss(student, extra, batch(), torch.Generator())
    loss.backward()
    assert all(parameter.grad is not None for parameter in (*student.parameters(), *extra.parameters()))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_the_cache_gives_the_same_losses() -> None:
    """Remembered labels of other images would teach nonsense."""
    student, teacher = net(4), net(7)
    plain, cached = made(student, [teacher]), made(student, [teacher], cache=True)
    for _ in range(2):
        first, second = (one.loss(student, None, batch(False), torch.Generator()) for one in (plain, cached))
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("teacher", "changes", "word"),
    [
        (net(4, classes=5), {}, "classes"),
        (net(4, channels=3), {}, "teacher 0 does not take"),
        (net(4), {"weights": {"hint": 1.0}, "pairs": {"9": "0"}}, "no module '9'"),
        (net(4), {"weights": {"logit": 1.0}}, "no distillation"),
    ],
)
def test_what_does_not_fit_is_said(teacher: nn.Module, changes: dict, word: str) -> None:
    """The user would meet a traceback of torch in the middle of a training."""
    with pytest.raises(NasplatError, match=word):
        made(net(4), [teacher], **changes)


def test_labels_are_asked_for_only_where_they_count() -> None:
    """Unlabelled data could not be used, or would end in an assertion."""
    assert not made(net(4), [net(4)]).needs_labels
    with pytest.raises(NasplatError, match="needs labels"):
        made(net(4), [net(4)], labels=0.5).loss(net(4), None, batch(False), torch.Generator())


def test_digits_without_labels_and_resumed(tmp_path) -> None:
    """A distilled student would not learn, its teacher would drift, or an interruption would change its weights."""
    from sklearn.datasets import load_digits

    from nasplat.data.datasets import Split
    from nasplat.data.loader import Loader
    from nasplat.training.loop import train

    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    cpu = torch.device("cpu")

    def dense(width: int) -> nn.Sequential:
        torch.manual_seed(width)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    teacher, problem = dense(128), classification((1, 8, 8), 10)
    optimiser = torch.optim.Adam(teacher.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(teacher((images[:1200] - 0.3) / 0.4), labels[:1200]).backward()
        optimiser.step()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    settings = Train(epochs=12, batch_size=64, augment=[], lr=0.05)

    def taught(parts: tuple[float, ...], folder) -> nn.Module:
        for until in parts:
            student = dense(16)
            loader = Loader(Split(images[:1200], None), batch_size=64, device=cpu, mean=[0.3], std=[0.4])
            wanted = Distillation(discriminator=0.01, cache=True)
            objective = make_distillation(wanted, settings, problem, 1200, [teacher], student)
            train(student, objective, loader, settings, device=cpu, seed=3, checkpoint=folder, until=until)
        return student

    whole, parted = taught((1.0,), tmp_path / "a"), taught((0.4, 1.0), tmp_path / "b")
    assert all(torch.equal(value, parted.state_dict()[key]) for key, value in whole.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    right = (whole.eval()((images[1200:] - 0.3) / 0.4).argmax(1) == labels[1200:]).float().mean()
    assert right > 0.85
