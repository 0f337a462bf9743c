"""Predicts what a network will score from its operation graph, across spaces (after AIO-P, Mills et al. 2023).

A shared base, a graph encoder trained on the labels of all spaces at hand and frozen for new ones; and for each space
an adapter, a Gaussian process over the space's table of choices (main effects, pairs, all orders), log costs and the
base's vector, whose weights come from the marginal likelihood. A ridge on pairs of choices is one of its members.

The base's labels are scaled as in AIO-P, y / (log10(MACs) + 1), with MACs as nasplat counts them (one multiply-
accumulate is one, batch 1); the adapter's so or not, as is likelier. A power and a standardisation for each space
follow, and all is inverted at prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nasplat.artifacts.files import atomic_folder, read_json, write_json
from nasplat.artifacts.weights import load_weights, save_weights
from nasplat.core.architecture import Architecture
from nasplat.core.cost import COSTS
from nasplat.core.errors import NasplatError
from nasplat.core.space import SearchSpace
from nasplat.networks.graph_encoder import GraphEncoder, batch_graphs, split_batch
from nasplat.training.predictor_adapter import Adapter, Inputs, Kernel, LabelScale, fit_adapter, fit_scale, kernel_of

FEWEST_LABELS = 5  # distinct architectures
_VERSION = 1
_CHUNK = 512  # architectures that are encoded at once
_MOST_STEPS = 800
_BATCH = 32


@dataclass(frozen=True, slots=True)
class SpaceData:
    """What was measured of architectures of one space: a value each, such as accuracy; repeats are averaged."""

    space: SearchSpace
    architectures: Sequence[Architecture]
    values: Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Predictor:
    """A shared base, an adapter for each space, and one linear head a space that the base was trained on.

    Made by `fit_predictor`, never by hand. Spaces are known by the fingerprint of their identity.

    Args:
        encoder: the base; nothing changes it any more.
        heads: `(S, D + 3 + 1)`, weights over the base's vector and log costs, and a bias.
        head_scales: of the labels of each head.
        adapters: by fingerprint of the space.
    """

    encoder: GraphEncoder
    heads: Tensor
    head_scales: tuple[LabelScale, ...]
    adapters: Mapping[str, Adapter]

    def adapt(self, data: SpaceData, *, seed: int = 0) -> Predictor:
        """A predictor that also knows another space, or knows a space anew; the base stays as it is.

        Raises:
            NasplatError: see `fit_predictor`.
        """
        architectures, values = _pooled(data)
        inputs, kernel = _inputs(self.encoder, data.space, architectures), kernel_of(data.space)
        scale = fit_scale(kernel, inputs, values, (False, True))
        adapter = fit_adapter(kernel, inputs, values, scale, seed)
        return replace(self, adapters={**self.adapters, data.space.fingerprint: adapter})

    def predict(self, space: SearchSpace, architectures: Sequence[Architecture]) -> np.ndarray:
        """Values `(N,)` in the unit of the labels.

        For a space without an adapter, the mean over the heads of the base: a rough ranking, and hardly the numbers.

        Raises:
            NasplatError: an architecture is of another space, or the space has no operation graphs.
        """
        inputs = _inputs(self.encoder, space, architectures)
        adapter = self.adapters.get(space.fingerprint)
        if adapter is not None:
            return adapter.scale.invert(adapter.predict(inputs), inputs.macs())
        features = torch.cat([inputs.vectors, _cost_features(inputs.costs)], 1).float()
        labels = (features @ self.heads[:, :-1].T + self.heads[:, -1]).double().numpy()
        found = [scale.invert(labels[:, row], inputs.macs()) for row, scale in enumerate(self.head_scales)]
        return np.mean(found, axis=0)

    def save(self, folder: Path | str) -> None:
        """Writes `predictor.safetensors` and `predictor.json`, both or neither. Raises NasplatError."""
        tensors = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        tensors["heads"] = self.heads
        adapters = {}
        for number, (fingerprint, one) in enumerate(self.adapters.items()):
            own = {"theta": one.theta, "weights": one.weights, "spans": one.kernel.spans, **asdict(one.inputs)}
            tensors |= {f"adapters.{number}.{name}": value for name, value in own.items()}
            adapters[fingerprint] = asdict(one.scale)
        settings = {
            "version": _VERSION,
            "encoder": self.encoder.settings,
            "head_scales": [asdict(scale) for scale in self.head_scales],
            "adapters": adapters,
        }
        with atomic_folder(Path(folder)) as partial:
            save_weights(tensors, partial / "predictor.safetensors")
            write_json(partial / "predictor.json", settings)


def load_predictor(folder: Path | str) -> Predictor:
    """Reads what `Predictor.save` wrote.

    Raises:
        NasplatError: a file is missing or damaged, or of another version.
    """
    settings = read_json(Path(folder) / "predictor.json")
    if not isinstance(settings, dict) or settings.get("version") != _VERSION:
        raise NasplatError(f"{folder} holds no predictor of version {_VERSION}", "fit the predictor again")
    tensors = load_weights(Path(folder) / "predictor.safetensors")
    try:
        encoder = GraphEncoder(**settings["encoder"], generator=torch.Generator())
        encoder.load_state_dict({name: tensors[f"encoder.{name}"] for name in encoder.state_dict()})
        adapters = {}
        for number, (fingerprint, scale) in enumerate(settings["adapters"].items()):
            names = ("spans", "theta", "weights", "codes", "costs", "vectors")
            spans, theta, weights, *inputs = (tensors[f"adapters.{number}.{name}"] for name in names)
            adapters[fingerprint] = Adapter(LabelScale(**scale), Kernel(spans), theta, Inputs(*inputs), weights)
        scales = tuple(LabelScale(**scale) for scale in settings["head_scales"])
        return Predictor(encoder.eval().requires_grad_(False), tensors["heads"], scales, adapters)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise NasplatError(f"the predictor in {folder} is damaged: {error}", "fit the predictor again") from error


def fit_predictor(data: Sequence[SpaceData], *, seed: int = 0, epochs: int = 20, lr: float = 5e-3) -> Predictor:
    """A base trained on the labels of all spaces together, and an adapter for each of them.

    Args:
        data: one entry a space.
        seed: of the base's initial weights and the order of its batches; equal seeds give equal predictors.
        epochs: of the base, at most 800 steps in all. 0 leaves the base untrained.
        lr: of AdamW, at the peak of a one-cycle schedule.

    Raises:
        NasplatError: no data, a space twice, fewer than 5 distinct architectures in one, a value that is not a finite
            number, an architecture of another space, or a space without operation graphs.
    """
    if not data:
        raise NasplatError("a predictor needs labels of one space at least", "evaluate some architectures first")
    if len({one.space.fingerprint for one in data}) < len(data):
        raise NasplatError("a space is given twice to the predictor", "put its architectures into one SpaceData")
    encoder, heads, scales = _train_base(data, torch.Generator().manual_seed(seed), epochs, lr)
    predictor = Predictor(encoder, heads, scales, {})
    for one in data:
        predictor = predictor.adapt(one, seed=seed)
    return predictor


def _train_base(
    data: Sequence[SpaceData], generator: torch.Generator, epochs: int, lr: float
) -> tuple[GraphEncoder, Tensor, tuple[LabelScale, ...]]:
    """The encoder under one linear head a space, on squared errors of scaled labels, batches mixed over spaces.

    The adapter of a space later reads vectors that have seen its labels, which makes its likelihood optimistic;
    experiments/benchmark_predictor.md holds it against an untrained base, and finds no harm.
    """
    encoder = GraphEncoder(generator=generator)
    graphs, costs, owners, labels, scales = [], [], [], [], []
    for number, one in enumerate(data):
        architectures, values = _pooled(one)
        inputs = _inputs(None, one.space, architectures)
        scale = fit_scale(kernel_of(one.space), inputs, values, (True,))
        graphs += [one.space.graph(each) for each in architectures]
        costs.append(_cost_features(inputs.costs).float())
        owners.append(torch.full((len(values),), number))
        labels.append(torch.from_numpy(scale.scale(values, inputs.macs())).float())
        scales.append(scale)
    batch, cost, owner, target = batch_graphs(graphs), torch.cat(costs), torch.cat(owners), torch.cat(labels)
    heads = (0.1 * torch.randn(len(data), encoder.size + cost.shape[1] + 1, generator=generator)).requires_grad_()
    parameters = [*encoder.parameters(), heads]
    steps = min(_MOST_STEPS, epochs * -(-len(target) // _BATCH))
    optimiser = torch.optim.AdamW(parameters, lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps + 1)
    waiting: list[Tensor] = []
    for _ in range(steps):
        waiting = waiting or list(torch.randperm(len(target), generator=generator).split(_BATCH))
        rows = waiting.pop()
        features = torch.cat([encoder(split_batch(batch, rows)), cost[rows]], 1)
        head = heads[owner[rows]]
        loss = (((features * head[:, :-1]).sum(1) + head[:, -1] - target[rows]) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
    return encoder.eval().requires_grad_(False), heads.detach(), tuple(scales)


def _cost_features(costs: Tensor) -> Tensor:
    """Log costs on a scale of about one that is the same in every space."""
    return costs / 3 - 2


def _inputs(encoder: GraphEncoder | None, space: SearchSpace, architectures: Sequence[Architecture]) -> Inputs:
    """What an adapter reads; without an encoder there are no vectors."""
    _check_space(space, architectures)
    choices = space.choices.items()
    codes = [[choice.index(one.values[name]) for name, choice in choices] for one in architectures]
    costs = [[max(getattr(cost, name), 1) for name in COSTS] for cost in map(space.cost, architectures)]
    vectors = torch.zeros(len(architectures), 0)
    if encoder is not None:
        parts = [architectures[start : start + _CHUNK] for start in range(0, len(architectures), _CHUNK)]
        with torch.no_grad():
            found = [encoder(batch_graphs([space.graph(one) for one in part])) for part in parts]
        vectors = torch.cat([torch.zeros(0, encoder.size), *found])
    return Inputs(
        torch.tensor(codes, dtype=torch.float64).reshape(len(codes), len(space.choices)),
        torch.tensor(costs, dtype=torch.float64).reshape(len(codes), len(COSTS)).log10(),
        vectors.double(),
    )


def _check_space(space: SearchSpace, architectures: Sequence[Architecture]) -> None:
    for one in architectures:
        if one.identity != space.fingerprint:
            raise NasplatError(f"architecture {one.digest[:8]} belongs to another space than the one given")


def _pooled(data: SpaceData) -> tuple[list[Architecture], np.ndarray]:
    """Each architecture once, with the mean of its values."""
    values = np.asarray(data.values, dtype=float)
    if values.shape != (len(data.architectures),):
        raise NasplatError(f"{len(data.architectures)} architectures have values of shape {values.shape}")
    _check_space(data.space, data.architectures)
    found: dict[Architecture, list[float]] = {}
    for architecture, value in zip(data.architectures, values.tolist(), strict=True):
        if not np.isfinite(value):
            raise NasplatError(
                f"the value of architecture {architecture.digest[:8]} is {value}", "leave failed candidates out"
            )
        found.setdefault(architecture, []).append(value)
    if len(found) < FEWEST_LABELS:
        raise NasplatError(
            f"a predictor needs {FEWEST_LABELS} distinct architectures of a space at least, not {len(found)}",
            "evaluate more architectures, or rank by MACs until then",
        )
    return list(found), np.array([np.mean(own) for own in found.values()])
