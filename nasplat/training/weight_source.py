"""Weights for any network of a space from one place: trained once, then asked for thousands of networks.

A source is a module that makes the weights of an operation graph: a supernet (`nasplat.networks.shared_weights`), or a
hypernetwork. It is trained by the ordinary loop, on networks drawn anew every step.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.graph import OperationGraph
from nasplat.core.space import SearchSpace
from nasplat.networks.graph_run import GraphRun
from nasplat.networks.shared_weights import extremes
from nasplat.training.meta_batch import MetaBatch
from nasplat.training.nested_taps import NestedTaps, tap_channels, widest
from nasplat.training.objectives import Objective

if TYPE_CHECKING:
    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Batch

GRAPHS = 4096  # of the last networks drawn, which are kept
CALIBRATION_IMAGES = 512
GROWN = 0.5  # share of the training after which a space that grows is whole


class WeightSource(Protocol):
    """What makes weights. A `torch.nn.Module`, whose parameters are trained.

    Attributes:
        space_fingerprint: of the space that it was made for.
        outside: `warn` where it may be asked for networks of other spaces; without it those are refused.
    """

    space_fingerprint: str

    def __call__(self, graphs: Sequence[OperationGraph]) -> list[dict[str, Tensor]]:
        """The weights of networks, by the names of their state dicts, differentiable.

        Raises:
            NasplatError: a network that the source has no weights for.
        """
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """Networks of one step, trained on one batch; those after the first `labelled` learn from the outputs before."""

    architectures: tuple[Architecture, ...]
    labelled: int


Rule = Callable[[np.random.Generator, float], Drawn]  # which networks a step is of, at this share of the training


def uniform(space: SearchSpace, paths: int) -> Rule:
    """So many networks, each uniformly at random.

    One is single-path training (Guo et al., Single Path One-Shot Neural Architecture Search with Uniform Sampling,
    2020); several, in a space of widths and depths, are SortedNet, which accumulates the gradients of nested
    sub-networks, each with its own loss (Valipour et al., 2023). The mean of the losses is descended, not their sum: a
    learning rate that suits one network suits any number, and one published for the sum of N is divided by N.
    """

    def draw(rng: np.random.Generator, share: float) -> Drawn:
        return Drawn(tuple(space.sample(rng) for _ in range(paths)), paths)

    return draw


def growing(space: SearchSpace, paths: int) -> Rule:
    """As `uniform`, from a space that grows: ordered choices begin with their first option alone.

    From the middle of training on they have all of them. SMASH lets the number of layers and the largest kernel grow
    so (Brock et al., 2017); here widths and dilations do too, and a space without ordered choices is whole from the
    start.
    """
    whole = uniform(space, paths)

    def draw(rng: np.random.Generator, share: float) -> Drawn:
        if share >= GROWN:
            return whole(rng, share)
        open_to = {
            name: max(1, ceil(len(choice.options) * share / GROWN)) if choice.ordered else len(choice.options)
            for name, choice in space.choices.items()
        }
        values = (
            {name: choice.options[int(rng.integers(open_to[name]))] for name, choice in space.choices.items()}
            for _ in range(paths)
        )
        return Drawn(tuple(map(space.canonical, values)), paths)

    return draw


def sandwich(space: SearchSpace, paths: int) -> Rule:
    """The largest network, the smallest, and others at random; the largest one's outputs teach all others.

    Yu and Huang, Universally Slimmable Networks and Improved Training Techniques, 2019.

    Raises:
        NasplatError: fewer than two paths.
    """
    if paths < 2:
        raise NasplatError(
            f"the sandwich rule trains the largest and the smallest network, not {paths}", "use paths: 4"
        )
    largest, smallest = extremes(space)

    def draw(rng: np.random.Generator, share: float) -> Drawn:
        return Drawn((largest, *(space.sample(rng) for _ in range(paths - 2)), smallest), 1)

    return draw


# Name -> which networks each step is of, from the space and how many.
RULES: dict[str, Callable[[SearchSpace, int], Rule]] = {
    "uniform": uniform,
    "growing": growing,
    "sandwich": sandwich,
}


class SourceObjective:
    """Trains a source: the objective of one network, for networks drawn every step.

    What is drawn comes from torch's default generator on the CPU, which the loop seeds and keeps in its checkpoints:
    one on the device would have to be waited for.

    Args:
        space: that networks are drawn from.
        rule: how.
        inner: what each of them is trained on, with labels or without. What it trains besides is shared by all, see
            `nasplat.training.nested_taps`.

    Attributes:
        trained: networks so far, in this process.
    """

    def __init__(self, space: SearchSpace, rule: Rule, inner: Objective) -> None:
        self.space, self.rule, self.inner = space, rule, inner
        self.views, self.needs_labels = inner.views, inner.needs_labels
        self.first_plain = getattr(inner, "first_plain", False)
        self.identity = f"{space.fingerprint} {getattr(inner, 'identity', '')}"
        self._graphs: OrderedDict[str, OperationGraph] = OrderedDict()
        self._share = 0.0
        self._channels: dict[str, int] = {}  # of the taps of the widest network, where something reads them
        self.trained = 0
        self._left_out: Any = 0

    def at(self, share: float) -> None:
        self._share = share

    def module(self, network: nn.Module) -> nn.Module | None:
        largest = widest(self.space)
        device = next(network.parameters()).device
        extra = self.inner.module(self.space.build(largest).to(device))
        if extra is not None:
            self._channels = tap_channels(self.space.graph(largest))
        return extra

    def loss(self, network: nn.Module, extra: nn.Module | None, batch: Batch, generator: torch.Generator) -> Tensor:
        drawn = self.rule(np.random.default_rng(int(torch.randint(2**62, (1,)).numpy()[0])), self._share)
        taught = _Recorded()
        together = MetaBatch(extra)
        graphs = [self._graph(architecture) for architecture in drawn.architectures]
        for place, (graph, weights) in enumerate(zip(graphs, network(graphs), strict=True)):

            def loss(
                own: Mapping[str, Tensor], graph: OperationGraph = graph, labelled: bool = place < drawn.labelled
            ) -> Tensor:
                run = NestedTaps(GraphRun(graph, own), self._channels)
                if labelled or taught.outputs is None:
                    return self.inner.loss(taught.watching(run), extra, batch, generator)  # type: ignore[arg-type]
                assert taught.images is not None
                return _soft_cross_entropy(run(taught.images), taught.outputs)

            together.add(weights, loss)
        self.trained += len(graphs)
        self._left_out = self._left_out + together.left_out
        return together.mean()

    @property
    def left_out(self) -> int:
        """Of `trained` those that counted for nothing; see `MetaBatch`. Waits for the device."""
        return int(self._left_out)

    def _graph(self, architecture: Architecture) -> OperationGraph:
        graph = self._graphs.get(architecture.digest)
        if graph is None:
            graph = self._graphs[architecture.digest] = self.space.graph(architecture)
            if len(self._graphs) > GRAPHS:
                self._graphs.popitem(last=False)
        return graph


class _Recorded:
    """What the first network of a step was shown last as a whole, and what it made of that.

    An objective that looks at features alone leaves no outputs, and then every network learns from its own loss.
    """

    def __init__(self) -> None:
        self.run: NestedTaps | None = None
        self.images: Tensor | None = None
        self.outputs: Any = None

    def watching(self, run: NestedTaps) -> Any:
        self.run = run
        return self

    def __call__(self, images: Tensor) -> Any:
        assert self.run is not None
        outputs = self.run(images)
        if isinstance(outputs, Tensor):
            self.images, self.outputs = images, outputs.detach()
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


def _soft_cross_entropy(logits: Any, teacher: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), teacher.float().softmax(1))


def check_space(source: WeightSource, space: SearchSpace) -> None:
    """Refuses weights of another space, or warns of them where the source says so.

    Raises:
        NasplatError: that is what they are.
    """
    if source.space_fingerprint == space.fingerprint:
        return
    message = f"these weights were made for the space {source.space_fingerprint[:8]}, not for {space.fingerprint[:8]}"
    if getattr(source, "outside", "refuse") == "refuse":
        raise NasplatError(message, "train a source of weights for this space")
    warnings.warn(f"{message}: they are a guess", stacklevel=3)


def _graph(space: SearchSpace, architecture: Architecture) -> OperationGraph:
    if architecture.identity != space.fingerprint:
        raise NasplatError(
            f"architecture {architecture.digest[:8]} is of another space than {space.fingerprint[:8]}",
            "give the space that it was found in",
        )
    return space.graph(architecture)


def calibration(
    dataset: Dataset, device: torch.device, seed: int = 0, images: int = CALIBRATION_IMAGES
) -> list[Tensor]:
    """Training images, not augmented, to measure batch norm on: batches `(N, C, H, W)` on the device."""
    from nasplat.data.loader import Loader

    size = min(images, len(dataset.train))
    loader = Loader(dataset.train, batch_size=size, device=device, mean=dataset.mean, std=dataset.std)
    return [batch.views[0] for batch in islice(loader.epoch(torch.Generator().manual_seed(seed % 2**63)), 1)]


@torch.no_grad()
def predictions(
    source: nn.Module,
    space: SearchSpace,
    architectures: Iterable[Architecture],
    images: Sequence[Tensor],
    calibrated_on: Sequence[Tensor],
) -> Iterator[list[Any]]:
    """What each network makes of batches of images with the source's weights; nothing is built.

    Args:
        images: batches `(N, C, H, W)`.
        calibrated_on: images to measure batch norm on, for each network anew; none: the statistics of each batch.

    Returns:
        Of each network its outputs, batch by batch: logits `(N, classes)` where it classifies.

    Raises:
        NasplatError: an architecture of another space.
    """
    check_space(source, space)  # type: ignore[arg-type]
    source.eval()
    for architecture in architectures:
        graph = _graph(space, architecture)
        run = GraphRun(graph, *source([graph]))
        run.calibrate(calibrated_on)
        yield [run(batch) for batch in images]


def accuracies(
    source: nn.Module,
    space: SearchSpace,
    architectures: Iterable[Architecture],
    batches: Sequence[Batch],
    calibrated_on: Sequence[Tensor],
) -> Iterator[float]:
    """The share of images that each network gets right with the source's weights; see `predictions`.

    Args:
        batches: of labelled images; see `nasplat.training.evaluate.evaluation_loader`.
        calibrated_on: images to measure batch norm on; none: the statistics of each batch that is judged.

    Raises:
        NasplatError: an architecture of another space, or images without labels.
    """
    if any(batch.labels is None for batch in batches):
        raise NasplatError("accuracy needs labels, and these images have none", "rank by a probe instead")
    count = sum(len(batch.indices) for batch in batches)
    images = [batch.views[0] for batch in batches]
    for outputs in predictions(source, space, architectures, images, calibrated_on):
        pairs = zip(outputs, batches, strict=True)
        yield int(sum((logits.argmax(1) == batch.labels).sum() for logits, batch in pairs)) / count


@torch.no_grad()
def with_weights(
    source: nn.Module, space: SearchSpace, architecture: Architecture, calibrated_on: Sequence[Tensor]
) -> nn.Module:
    """An ordinary network with the source's weights, on the source's device; its outputs are those of the source's.

    Args:
        calibrated_on: images to measure batch norm on.

    Raises:
        NasplatError: an architecture of another space.
    """
    check_space(source, space)  # type: ignore[arg-type]
    source.eval()
    graph = _graph(space, architecture)
    run = GraphRun(graph, *source([graph]))
    run.calibrate(calibrated_on)
    network = space.build(architecture).to(next(source.parameters()).device)
    network.load_state_dict(run.state_dict(), strict=bool(calibrated_on))
    return network
