"""Distillation: what is lost if these fail is told by each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from nasplat.core.distillation import Distillation
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Train
from nasplat.core.problem import Output, Problem, classification
from nasplat.data.loader import Batch
from nasplat.training.distillation import Distilled
from nasplat.training.distillation_features import angles, attention, distances, hint, relation
from nasplat.training.distillation_logits import Pace, decoupled_parts, logit_mse, soft_logits, specialists


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


def made(network: nn.Module, others: list[nn.Module], kept: dict | None = None, **changes: object) -> Distilled:
    return Distilled(Distillation(**changes), 0.0, classification((1, 8, 8), 3), others, network, kept or {})


def told(objective: Distilled, network: nn.Module, labels: bool = True) -> torch.Tensor:
    return objective.loss(network, objective.module(network), batch(labels), torch.Generator())


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


def test_angles_are_those_of_numpy() -> None:
    """Relations would be of something else than angles, or whole feature maps would take gigabytes."""
    points = np.random.default_rng(0).normal(size=(5, 3)) * 4 + 7
    found = angles(torch.tensor(points)).numpy()
    for corner, one, other in np.ndindex(5, 5, 5):
        first, second = points[one] - points[corner], points[other] - points[corner]
        lengths = np.linalg.norm(first) * np.linalg.norm(second)
        expected = first @ second / lengths if lengths else 0.0
        assert found[corner, one, other] == pytest.approx(expected, abs=1e-4)


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
    plain, cached = made(student, [teacher]), made(student, [teacher])
    cached.teachers.remember([batch(False)], 4.0)
    assert torch.equal(told(plain, student, False), told(cached, student, False))
    order = torch.tensor([3, 0, 5])
    some = Batch((batch().views[0][order],), None, order)
    losses = [one.loss(student, None, some, torch.Generator()) for one in (plain, cached)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


def test_several_teachers_are_averaged_by_their_probabilities() -> None:
    """The mean of logits, or of log-probabilities, is another teacher than the paper's."""
    student, teachers = net(4), [net(5), net(6), net(7)]
    images = batch().views[0]
    probabilities = torch.stack([(one(images) / 2).softmax(1) for one in teachers]).mean(0)
    expected = 4 * nn.functional.kl_div(
        (student(images) / 2).log_softmax(1), probabilities.log(), reduction="batchmean", log_target=True
    )
    assert float(told(made(student, teachers, temperature=2.0), student)) == pytest.approx(float(expected), rel=1e-4)


class Certain(nn.Module):
    """Says the same class of every image, with a logit of so much."""

    def __init__(self, answer: int, logit: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(answer), 3) * logit)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), 3)


def test_the_better_of_teacher_and_student_teaches_each_sample() -> None:
    """A weaker teacher would pull the student down where the student was right."""
    student, teacher = Certain(0, 2.0), Certain(1, 4.0)
    objective = made(student, [teacher], choice="better", temperature=1.0)
    labelled = objective.teachers.targets(batch(), 1.0)  # labels 0, 1, 2, 0, 1, 2
    assert labelled.argmax(1).tolist() == [0, 1, 0, 0, 1, 0]
    assert objective.teachers.targets(batch(False), 1.0).argmax(1).tolist() == [1] * 6  # it is the more confident one


def test_features_of_a_pruned_student_are_compared_with_those_it_kept() -> None:
    """Channel 3 of the teacher would be compared with channel 1 of the student."""
    teacher = net(6)
    student = net(3)
    kept = [1, 3, 4]
    student[0].load_state_dict({"weight": teacher[0].weight[kept], "bias": teacher[0].bias[kept]})
    options = {"weights": {"hint": 1.0}, "pairs": {"0": "0"}}
    assert float(told(made(student, [teacher], {"0": kept}, **options), student)) == pytest.approx(0, abs=1e-12)
    assert made(student, [teacher], {"0": kept}, **options).module(student) is None  # no projection
    assert made(student, [teacher], **options).module(student) is not None


def test_regression_on_logits() -> None:
    """N2N's students would be told to match something else."""
    own, given = torch.randn(4, 3), [torch.randn(4, 3), torch.randn(4, 3)]
    expected = ((own - (given[0] + given[1]) / 2) ** 2).mean()
    assert float(logit_mse(own, given)) == pytest.approx(float(expected), rel=1e-5)


def test_specialists_teach_their_own_classes_only_and_less_as_the_student_catches_up() -> None:
    """An image of one vertical would be taught by the expert for another; or a weak expert would never let go."""
    student = torch.zeros(4, 4, requires_grad=True)
    labels, groups = torch.tensor([0, 1, 2, 0]), [torch.tensor([0, 1]), torch.tensor([2, 3])]
    answers = [torch.tensor([[3.0, 0.0], [0.0, 3.0], [9.0, 0.0], [3.0, 0.0]]), torch.zeros(4, 2)]
    specialists(student, answers, groups, labels, 1.0, Pace(2)).backward()
    assert bool((student.grad[2] == 0).all())  # the second knows no more than the student
    assert bool((student.grad[[0, 1, 3]][:, :2] != 0).all()) and bool((student.grad[:, 2:] == 0).all())
    pace, mine = Pace(1), torch.tensor([True, False])
    good = torch.tensor([0.5, 0.0])
    first = float(pace(0, torch.tensor([2.5, 9.0]), good, mine))
    for _ in range(200):
        half = float(pace(0, torch.tensor([1.5, 9.0]), good, mine))
    for _ in range(600):
        none = float(pace(0, torch.tensor([0.4, 9.0]), good, mine))
    assert first == pytest.approx(1.0) and 0.4 < half < 0.75 and none == 0.0


def test_a_vertical_of_specialists_trains() -> None:
    """Its running losses must be saved with the training, and its classes renumbered."""
    student = net(4)
    teachers = [{"model": "a:b", "classes": [0, 2]}, {"model": "a:b", "classes": [1]}]
    objective = made(
        student, [net(5, classes=2), net(5, classes=1)], teachers=teachers, weights={"specialists": 1.0}, labels=1.0
    )
    parts = objective.module(student)
    objective.loss(student, parts, batch(), torch.Generator()).backward()
    assert student[0].weight.grad is not None and float(parts["pace"].seen.sum()) > 0
    assert any(name.startswith("pace.") for name in parts.state_dict())


def test_a_module_that_is_never_called_has_no_features() -> None:
    """The training would end in a KeyError."""

    class Idle(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*net(4))
            self.idle = nn.ReLU()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for module in list(self)[:-1]:
                images = module(images)
            return images

    options = {"weights": {"attention": 1.0}, "pairs": {"idle": "0"}}
    with pytest.raises(NasplatError, match="student never calls its module 'idle'"):
        told(made(Idle(), [net(5)], **options), Idle())


class Named(nn.Module):
    """A network with outputs by name."""

    def __init__(self, inner: nn.Module, *others: str) -> None:
        super().__init__()
        self.inner, self.others = inner, others

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"label": self.inner(images), **dict.fromkeys(self.others, images)}


def test_a_teacher_with_one_named_output_teaches_and_one_with_several_is_refused() -> None:
    """A network of nasplat's own could not teach; of several outputs a wrong one might."""
    student, teacher = net(4), net(5)
    losses = [told(made(student, [one]), student) for one in (teacher, Named(teacher))]
    assert torch.equal(*losses)
    with pytest.raises(NasplatError, match="not one tensor"):
        made(student, [Named(teacher, "depth")])


def test_another_teacher_is_another_training() -> None:
    """A training that was interrupted would go on under a new teacher as if it were the old one."""
    student = net(4)
    assert made(student, [net(5)]).identity != made(student, [net(5)]).identity  # other weights
    teacher = net(5)
    assert made(student, [teacher]).identity == made(student, [teacher]).identity


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mixup": 0.2}, "mixup"),
        ({"objective": "simclr"}, "simclr"),
        ({"distill": {"cache": True}}, "augment"),
        ({"auxiliary": 0.4}, "auxiliary"),
        ({"distill": {"weights": {"logits": -1.0}}}, "greater than or equal to 0"),
        ({"distill": {"weights": {"logits": 0.0}}}, "nothing to learn from"),
    ],
)
def test_what_cannot_be_joined_with_distillation_is_said(changes: dict, word: str) -> None:
    """It would be ignored without a word."""
    with pytest.raises(ValidationError, match=word):
        Train(**{"distill": {}, **changes})


@pytest.mark.parametrize(
    ("teacher", "changes", "word"),
    [
        (net(4, classes=5), {}, "classes"),
        (net(4, channels=3), {}, "teacher 0 does not take"),
        (net(4), {"weights": {"hint": 1.0}, "pairs": {"9": "0"}}, "no module '9'"),
        (net(4), {"weights": {"logit": 1.0}}, "no objective 'logit'"),
        (net(4), {"weights": {"attention": 1.0}}, "need pairs"),
        (net(4), {"pairs": {"0": "0"}}, "none has a weight"),
        (net(4), {"choice": "better", "weights": {"logit_mse": 1.0}}, "logit_mse looks at none"),
        (net(4), {"choice": "better", "weights": {}, "labels": 1.0}, "cross-entropy looks at none"),
        (net(4), {"cache": True, "weights": {"logit_mse": 1.0}}, "need none"),
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
        told(made(net(4), [net(4)], labels=0.5), net(4), labels=False)
    unlabelled = Problem((1, 8, 8), (Output("embedding", "embedding", 1),))
    with pytest.raises(NasplatError, match="decoupled needs labels"):
        Distilled(Distillation(weights={"decoupled": 1.0}), 0.0, unlabelled, [net(4)], net(4), {})


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
            objective = Distilled(Distillation(discriminator=0.01), 0.0, problem, [teacher], student, {})
            objective.teachers.remember(loader.ordered(), 4.0)
            train(student, objective, loader, settings, device=cpu, seed=3, checkpoint=folder, until=until)
        return student

    whole, parted = taught((1.0,), tmp_path / "a"), taught((0.4, 1.0), tmp_path / "b")
    assert all(torch.equal(value, parted.state_dict()[key]) for key, value in whole.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    right = (whole.eval()((images[1200:] - 0.3) / 0.4).argmax(1) == labels[1200:]).float().mean()
    assert right > 0.85
