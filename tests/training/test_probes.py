"""Without these a user would rank encoders by a probe that is not the one it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor, nn

from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.training.probes import extract_features, knn, linear_probe, normalise
from tests.training.toys import ToyLoader, ToyNetwork, same, weights


def digits(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels as features: 1,000 images to train, 797 to test."""
    found = load_digits()
    # One pixel is scaled up, which only normalised features forgive.
    features = torch.tensor(found.data, dtype=dtype) * torch.linspace(0.1, 30, 64, dtype=dtype)
    labels = torch.tensor(found.target, dtype=torch.int64)
    return features[:1000], labels[:1000], features[1000:], labels[1000:]


def test_normalisation_is_a_batch_norm_without_affine_parameters() -> None:
    train, _, test, _ = digits()
    norm = nn.BatchNorm1d(64, affine=False, momentum=1.0, dtype=torch.float64)
    expected = norm(train)
    ours, ours_test = normalise(train, test)
    assert torch.allclose(ours, expected)
    norm.running_var = train.var(0, correction=0)
    assert torch.allclose(ours_test, norm.eval()(test))
    with pytest.raises(TrialFailed, match="not finite"):
        normalise(train * float("nan"), test)


def test_the_linear_probe_finds_scikit_learns_logistic_regression() -> None:
    train, labels, test, test_labels = digits()
    decay = 1e-2
    probe = linear_probe(
        train, labels, test, test_labels, lrs=(0.8,), epochs=1500, batch_size=1000, weight_decay=decay, seed=0
    )
    scaled, scaled_test = (part.numpy() for part in normalise(train, test))
    oracle = LogisticRegression(C=1 / (decay * len(train)), tol=1e-8, max_iter=5000).fit(scaled, labels.numpy())
    shares = (torch.tensor(scaled_test) @ probe.weight.T + probe.bias).softmax(1).numpy()
    assert np.abs(shares - oracle.predict_proba(scaled_test)).max() < 1e-3
    assert probe.accuracy == pytest.approx(oracle.score(scaled_test, test_labels.numpy()), abs=0.002)


def test_the_sweep_is_about_as_good_as_scikit_learns_best_and_says_how_it_spreads() -> None:
    train, labels, test, test_labels = digits(torch.float32)
    probe = linear_probe(train, labels, test, test_labels)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train.numpy(), labels.numpy())
    assert probe.accuracy > oracle.score(test.numpy(), test_labels.numpy()) - 0.02
    assert len(probe.accuracies) == 5 and probe.accuracy in probe.accuracies
    assert probe.spread == max(probe.accuracies) - min(probe.accuracies)
    assert min(probe.accuracies) <= probe.mean <= max(probe.accuracies)
    again = linear_probe(train, labels, test, test_labels)
    assert torch.equal(again.weight, probe.weight)


def test_the_learning_rate_is_not_chosen_on_the_test_features() -> None:
    train, labels, test, test_labels = digits(torch.float32)
    probe = linear_probe(train, labels, test, test_labels, epochs=5)
    shuffled = test_labels[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]
    assert linear_probe(train, labels, test, shuffled, epochs=5).lr == probe.lr


@pytest.mark.parametrize("neighbours", [1, 5, 20, 5000])
def test_knn_is_scikit_learns_with_the_published_weights(neighbours: int) -> None:
    train, labels, test, _ = digits()
    oracle = make_pipeline(
        StandardScaler(),
        Normalizer(),
        KNeighborsClassifier(
            min(neighbours, len(train)),
            metric="cosine",
            algorithm="brute",
            weights=lambda distance: np.exp((1 - distance) / 0.07),
        ),
    ).fit(train.numpy(), labels.numpy())
    ours = knn(train, labels, test, neighbours=neighbours, rows=100)
    assert (ours.numpy() == oracle.predict(test.numpy())).mean() > 0.998  # what remains are ties


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 2**20))
def test_knn_predicts_the_class_of_a_training_image_seen_again(count: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, size, generator=generator, dtype=torch.float64)
    directions = nn.functional.normalize(normalise(features, features)[0], dim=1)
    apart = (directions @ directions.T - torch.eye(count)).max() < 0.99
    labels = torch.randint(3, (count,), generator=generator)
    predicted = knn(features, labels, features, neighbours=1)
    assert predicted.shape == (count,)
    if apart:
        assert torch.equal(predicted, labels)


def test_features_are_extracted_in_order_and_leave_the_network_as_it_was() -> None:
    network, loader = ToyNetwork(), ToyLoader()
    network.dropout.eval()
    before = weights(network)
    found, labels = extract_features(network, loader, torch.device("cpu"))  # type: ignore[arg-type]
    assert labels is not None and torch.equal(labels, loader.labels)
    assert same(weights(network), before)
    assert network.stem.training and not network.dropout.training
    network.eval()
    assert torch.allclose(found, network.forward_taps(loader.images, ("features",))["features"], atol=1e-6)
    assert extract_features(network, ToyLoader(labelled=False), torch.device("cpu"))[1] is None  # type: ignore[arg-type]


def test_a_probe_of_next_to_nothing_is_an_error_and_a_class_missing_in_training_is_not() -> None:
    one = torch.randn(1, 3)
    with pytest.raises(NasplatError, match="at least two"):
        linear_probe(one, torch.tensor([0]), one, torch.tensor([0]))
    features = torch.tensor([[0.0], [1.0]])
    assert linear_probe(features, torch.tensor([0, 1]), features, torch.tensor([0, 3])).accuracy == 0.5
