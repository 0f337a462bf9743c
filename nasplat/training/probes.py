"""How a trained encoder is judged: linear probe and weighted k-NN on its frozen, pooled, pre-projection features.

Both see features normalised by the mean and variance of the training features, one full pass over them: a batch norm
without affine parameters, which makes the two rank encoders alike ("Rethinking evaluation protocols", B27).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.training.features import evaluating, features

if TYPE_CHECKING:
    from nasplat.data.loader import Loader

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a linear probe found.

    Args:
        accuracy: on the test features, of the learning rate that was best on training features held out.
        lr: that learning rate.
        accuracies: on the test features, for every learning rate of the sweep.
        weight, bias: of the classifier on normalised features, `(classes, F)` and `(classes,)`.
    """

    accuracy: float
    lr: float
    accuracies: tuple[float, ...]
    weight: Tensor
    bias: Tensor

    @property
    def mean(self) -> float:
        """Of the accuracies of the sweep."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def spread(self) -> float:
        """Largest less smallest accuracy of the sweep: how much the encoder asks of whoever tunes the probe."""
        return max(self.accuracies) - min(self.accuracies)


def extract_features(network: nn.Module, loader: Loader, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Features `(N, F)` and labels `(N,)` (None where there are none) of all images in order, on the device.

    The network runs in eval mode and float32, so its batch norm statistics do not move.
    """
    found: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(network):
        for batch in loader.ordered():
            found.append(features(network, batch.views[0].to(device)).float())
            if batch.labels is not None:
                labels.append(batch.labels.to(device))
    return torch.cat(found), torch.cat(labels) if labels else None


def normalise(train: Tensor, test: Tensor, epsilon: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Both `(N, F)`, with the mean taken off and divided by the deviation of the training features.

    Raises:
        TrialFailed: features that are not finite.
    """
    variance, mean = torch.var_mean(train, dim=0, correction=0)
    scale = (variance + epsilon).rsqrt()
    train, test = (train - mean) * scale, (test - mean) * scale
    if not bool(torch.isfinite(train).all() & torch.isfinite(test).all()):
        raise TrialFailed("the features of the network are not finite")
    return train, test


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    lrs: tuple[float, ...] = LEARNING_RATES,
    epochs: int = 60,
    batch_size: int = 256,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> Probe:
    """Trains a linear classifier on normalised features, once for each learning rate, all of them at once.

    The features are normalised by a batch norm without affine parameters, always: without it the best learning rate
    depends on the scale of the features. SGD with momentum 0.9 and a cosine schedule minimises the mean cross-entropy
    plus half of `weight_decay` times the squared weights, from zeros. The learning rate is chosen on a tenth of the
    training features that is held out, never on the test features; its classifier is then trained on all of them.

    Args:
        train_features, test_features: `(N, F)` on one device.
        train_labels, test_labels: `(N,)` int64.

    Raises:
        TrialFailed: features that are not finite.
        NasplatError: fewer than two training features.
    """
    if len(train_features) < 2:
        raise NasplatError("a linear probe needs at least two training images")
    train, test = normalise(train_features, test_features)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator).to(train.device)
    held_out, kept = order[: max(1, len(train) // 10)], order[max(1, len(train) // 10) :]

    def fit(rows: Tensor, rates: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        return _fit(train[rows], train_labels[rows], classes, rates, epochs, batch_size, weight_decay, generator)

    if len(lrs) > 1:
        held_out_accuracies = _accuracies(*fit(kept, lrs), train[held_out], train_labels[held_out])
        best = int(torch.tensor(held_out_accuracies).argmax())
    else:
        best = 0
    weights, biases = fit(order, lrs)
    accuracies = _accuracies(weights, biases, test, test_labels)
    return Probe(accuracies[best], lrs[best], accuracies, weights[best].T.contiguous(), biases[best])


def _fit(
    train: Tensor,
    labels: Tensor,
    classes: int,
    lrs: tuple[float, ...],
    epochs: int,
    batch_size: int,
    weight_decay: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Weights `(L, F, classes)` and biases `(L, classes)` of one classifier a learning rate.

    The gradient of softmax regression is known, so that one batched product a step serves all classifiers.
    """
    count, size = train.shape
    weights = train.new_zeros(len(lrs), size + 1, classes)  # the last row is the bias
    momentum = torch.zeros_like(weights)
    decay = train.new_full((size + 1, 1), weight_decay)
    decay[-1] = 0
    rates = train.new_tensor(lrs).reshape(-1, 1, 1)
    inputs = F.pad(train, (0, 1), value=1.0)
    targets = F.one_hot(labels, classes).to(train.dtype)
    batch_size = min(batch_size, count)
    batches = count // batch_size
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator).to(train.device)
        for index in range(batches):
            rows = order[index * batch_size : (index + 1) * batch_size]
            batch = inputs[rows]
            errors = (batch @ weights).softmax(-1) - targets[rows]
            gradient = batch.T @ errors / batch_size + decay * weights
            momentum.mul_(0.9).add_(gradient)
            progress = (epoch * batches + index) / (epochs * batches)
            weights.sub_(rates * ((1 + cos(pi * progress)) / 2) * momentum)
    return weights[:, :-1], weights[:, -1]


def _accuracies(weights: Tensor, biases: Tensor, test: Tensor, labels: Tensor) -> tuple[float, ...]:
    predictions = (test @ weights + biases[:, None]).argmax(-1)
    return tuple((predictions == labels).double().mean(1).tolist())


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
    rows: int = 1024,
) -> Tensor:
    """The classes that a weighted k-NN predicts, `(M,)` int64.

    The nearest neighbours by cosine similarity s of normalised features vote with weight exp(s / temperature) (Wu et
    al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018).

    Args:
        train_features: `(N, F)`; more neighbours than N are cut to N.
        train_labels: `(N,)` int64.
        test_features: `(M, F)`.
        rows: test features at a time, which bounds the memory.

    Raises:
        TrialFailed: features that are not finite.
    """
    train, test = normalise(train_features, test_features)
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    votes = F.one_hot(train_labels).to(train.dtype)
    predictions = []
    for chunk in test.split(rows):
        similarity, nearest = (chunk @ train.T).topk(min(neighbours, len(train)), dim=1)
        # Less the largest, so that no exponential overflows; the vote is the same.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        predictions.append((weight[:, :, None] * votes[nearest]).sum(1).argmax(1))
    return torch.cat(predictions)
