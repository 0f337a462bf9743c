"""A network whose widths and depths are mixtures: what a differentiable search over a pruning space trains.

Dong & Yang, Network Pruning via Transformable Architecture Search, 2019.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.core.architecture import Architecture
from nasplat.core.channel_cost import WidthCost
from nasplat.core.channel_graph import Group
from nasplat.core.choice import Option
from nasplat.core.errors import NasplatError, TrialFailed
from nasplat.networks.pruning_proof import randomise
from nasplat.networks.rebuild import without_blocks
from nasplat.networks.surgery import operate
from nasplat.spaces.pruning import PruningSpace

Sample = Mapping[str, tuple[list[int], Tensor]]  # by choice, positions of options, and weights that sum to 1


@dataclass(frozen=True)
class _Place:
    """Where a group's channels come out of a module.

    Args:
        choice: of the group's ratio.
        channels: the group's, by atom in the order of importance `(atoms, channels per atom)`.
        makes: whether the module makes them from others; if not, it only passes them on.
        last: whether channels are the last dimension; otherwise they are the second.
    """

    choice: str
    channels: Tensor
    makes: bool
    last: bool


class RelaxedNetwork(nn.Module):
    """The original of a pruning space, run as a weighted sum of smaller ones.

    The channels of a group are taken in the order of their importance. The leading ones of each sampled width are
    brought to the largest of these widths by channel-wise interpolation (adaptive average pooling over channels) and
    summed with their weights; places beyond are zero, so that whatever reads them sees a network of that width. This
    happens after the normalisation of the layers that make the channels; layers that only pass them on, such as
    depthwise convolutions, are masked. Batch norm thus measures every channel by itself, as in a network that is cut.
    The output of a stage is the weighted sum of its outputs at the sampled depths.

    Args:
        space: whose network it is.

    Attributes:
        options: by choice, those that make different networks.
        logits: by choice, of its options; on the CPU, where drawing from them does not wait for a device.
        widths: by choice of a ratio, the atoms that each option keeps.

    Raises:
        NasplatError: the network does something with its channels that this does not follow.
    """

    def __init__(self, space: PruningSpace) -> None:
        super().__init__()
        self.space = space
        self.network: nn.Module = copy.deepcopy(space.base)
        self.options = {name: _different(space, name) for name in space.choices}
        # Not a ParameterDict, which would move with the module.
        self.logits = {name: torch.zeros(len(found), requires_grad=True) for name, found in self.options.items()}
        whole = space.canonical({}).values
        self.widths = {
            name: [space.widths({**whole, name: option})[name.removesuffix(".ratio")] for option in found]
            for name, found in self.options.items()
            if name.endswith(".ratio")
        }
        self._sampled: dict[str, tuple[list[int], Tensor]] = {}
        self._matrices: dict[str, Tensor] = {}
        for path, place in _places(self.network, space):
            self.network.get_submodule(path).register_forward_hook(self._mixes(place))
        for name, blocks in space.stages.items():
            self._watch_stage(name, blocks)
        self._expected = _Expected(self)
        self._check()

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def draw(self, temperature: float, generator: torch.Generator) -> Sample:
        """Two options of every choice, without replacement, by Gumbel-softmax, with their weights.

        Raises:
            TrialFailed: the logits are not finite.
        """
        found = {}
        for name, logits in self.logits.items():
            if not bool(logits.isfinite().all()):
                raise TrialFailed(f"the probabilities of {name} are no longer numbers: the loss was none", "lower lr")
            uniform = torch.rand(len(logits), generator=generator).clamp(1e-9, 1 - 1e-7)  # the noise stays finite
            noisy = (logits.log_softmax(0) - (-uniform.log()).log()) / temperature
            count = min(2, len(logits))
            positions = torch.multinomial(noisy.detach().softmax(0) + 1e-12, count, generator=generator)
            found[name] = (positions.tolist(), noisy[positions].softmax(0))
        return found

    def take(self, sample: Sample, device: torch.device) -> None:
        """Runs as this mixture from now on."""
        self._sampled = {name: (positions, weights.to(device)) for name, (positions, weights) in sample.items()}
        self._matrices = {name: self._interpolation(name) for name in self._sampled if name.endswith(".ratio")}

    def settled(self) -> Architecture:
        """The most probable options."""
        return self.space.canonical(
            {name: self.options[name][int(logits.argmax())] for name, logits in self.logits.items()}
        )

    def expected_macs(self) -> Tensor:
        """Exact under independent choices with the probabilities of the logits; differentiable."""
        return self._expected()

    def _interpolation(self, name: str) -> Tensor:
        """`(atoms, atoms)`: what becomes of a group's atoms, in the order of their importance."""
        positions, weights = self._sampled[name]
        widths = [self.widths[name][position] for position in positions]
        size = self.space.channels.group(name.removesuffix(".ratio")).size
        most = max(widths)
        mixed = weights.new_zeros(size, size)
        for width, weight in zip(widths, weights, strict=True):
            pooled = interpolation(width, most).to(weights)
            mixed = mixed + weight * F.pad(pooled, (0, size - width, 0, size - most))
        return mixed

    def _mixes(self, place: _Place) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if place.choice not in self._sampled:
                return output
            atoms = self._matrices[place.choice]
            count = output.shape[-1 if place.last else 1]
            channels = place.channels.to(output.device)
            if not place.makes:
                width = max(self.widths[place.choice][one] for one in self._sampled[place.choice][0])
                mask = output.new_ones(count).index_fill(0, channels[width:].flatten(), 0.0)
                return output * (mask if place.last else mask.view(-1, *[1] * (output.dim() - 2)))
            others = output.new_ones(count).index_fill(0, channels.flatten(), 0.0).diag()
            for column in channels.T:
                others = others.index_put((column[:, None], column[None, :]), atoms.to(output.dtype))
            if place.last:
                return F.linear(output, others)
            return torch.einsum("dc,nc...->nd...", others, output)

        return hook

    def _watch_stage(self, name: str, blocks: tuple[str, ...]) -> None:
        seen: list[Tensor] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            seen[:] = [inputs[0]]

        def leave(last: bool) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                seen.append(output)
                if not last or name not in self._sampled:
                    return output
                positions, weights = self._sampled[name]
                depths = [int(self.options[name][position]) for position in positions]
                parts = (weight * seen[depth] for weight, depth in zip(weights.to(output.dtype), depths, strict=True))
                mixed: Tensor = sum(parts, torch.zeros_like(output))
                seen.clear()
                return mixed

            return hook

        self.network.get_submodule(blocks[0]).register_forward_pre_hook(enter)
        for block in blocks:
            self.network.get_submodule(block).register_forward_hook(leave(block == blocks[-1]))

    def alone(self, architecture: Architecture) -> Sample:
        """The mixture of nothing but one architecture."""
        return {
            name: ([options.index(self._among(name, architecture))], torch.ones(1))
            for name, options in self.options.items()
        }

    @torch.no_grad()
    def _check(self) -> None:
        """Compares architectures run as a mixture of one with the same, cut, under random weights: none may be 0."""
        weights = {name: one.clone() for name, one in self.network.state_dict().items()}
        self.network.eval().double()
        randomise(self.network, torch.Generator().manual_seed(0))
        whole = copy.deepcopy(self.space.base).double()
        whole.load_state_dict(self.network.state_dict())
        images = torch.rand(2, *self.space.problem.input_shape, generator=torch.Generator().manual_seed(0)).double()
        rng = np.random.default_rng(0)
        for architecture in (self.space.sample(rng), self.space.sample(rng)):
            self.take({name: (at, one.double()) for name, (at, one) in self.alone(architecture).items()}, images.device)
            outputs = (self.network(images), _cut(whole, self.space, architecture).eval()(images))
            tensors = all(isinstance(one, Tensor) for one in outputs)
            if not tensors or not torch.allclose(*outputs, atol=1e-7, rtol=1e-5):
                raise NasplatError(
                    "the widths of this network cannot be searched by gradients: run at a smaller width, it is not the "
                    "network that is cut to it",
                    "use another strategy; the pruning space itself holds the network",
                )
        self._sampled = {}
        self.network.float().load_state_dict(weights)
        self.network.train()

    def _among(self, name: str, architecture: Architecture) -> Option:
        """The option of this choice, of those that make different networks."""
        value = architecture.values[name]
        if name.endswith(".depth"):
            return value
        group = name.removesuffix(".ratio")
        width = self.space.widths(architecture.values)[group]
        return self.options[name][self.widths[name].index(width)]


@lru_cache(maxsize=4096)
def interpolation(width: int, most: int) -> Tensor:
    """`(most, width)`: channel-wise interpolation, which is adaptive average pooling over channels."""
    return F.adaptive_avg_pool1d(torch.eye(width)[None], most)[0].T.contiguous()


class _Expected:
    """The polynomial of the cost, and the moments that it needs."""

    def __init__(self, relaxed: RelaxedNetwork) -> None:
        self.relaxed, space = relaxed, relaxed.space
        self.parts: list[tuple[str | None, int, Tensor, Tensor]] = [(None, 0, *_polynomial(WidthCost(space.channels)))]
        for name, blocks in space.stages.items():
            self.parts += [(name, place, *_polynomial(space.macs_of_block(one))) for place, one in enumerate(blocks)]
        self.names = [f"{group.name}.ratio" for group in space.channels.groups]
        self.sizes = [float(group.size) for group in space.channels.groups]
        self.widths = {name: torch.tensor(found, dtype=torch.float64) for name, found in relaxed.widths.items()}
        self.powers = int(max(exponents.max() for *_, exponents in self.parts))

    def __call__(self) -> Tensor:
        shares = {name: logits.double().softmax(0) for name, logits in self.relaxed.logits.items()}
        rows = []
        for power in range(self.powers + 1):
            rows.append(
                torch.stack(
                    [
                        (shares[name] * self.widths[name] ** power).sum()
                        if name in self.widths
                        else torch.tensor(size**power, dtype=torch.float64)
                        for name, size in zip(self.names, self.sizes, strict=True)
                    ]
                )
            )
        moments = torch.stack(rows)
        total = torch.zeros((), dtype=torch.float64)
        for name, place, coefficients, exponents in self.parts:
            value = (coefficients * moments.gather(0, exponents).prod(1)).sum()
            if name is None:
                total = total + value
            else:
                depths = torch.tensor([float(one) for one in self.relaxed.options[name]])
                total = total - (shares[name] * (depths <= place)).sum() * value
        return total


def _polynomial(cost: WidthCost) -> tuple[Tensor, Tensor]:
    coefficients, exponents = cost.macs_polynomial()
    return torch.from_numpy(coefficients), torch.from_numpy(exponents)


def _different(space: PruningSpace, name: str) -> tuple[Option, ...]:
    """The options of a choice that make different networks."""
    kept: dict[str, Option] = {}
    for option in space.choices[name].options:
        kept.setdefault(space.canonical({name: option}).digest, option)
    return tuple(kept.values())


def _cut(module: nn.Module, space: PruningSpace, architecture: Architecture) -> nn.Module:
    for operation in space.operations(architecture):
        module = without_blocks(module, operation) if isinstance(operation, tuple) else operate(module, operation)[0]
    return module


def _places(network: nn.Module, space: PruningSpace) -> list[tuple[str, _Place]]:
    """Where the channels of every group come out, after the normalisation that follows directly."""
    modules = dict(network.named_modules())
    follower = _followers(network, space)
    found = []
    for group in space.groups:
        order = torch.from_numpy(space.orders[group.name].copy())
        outputs = _outputs(modules, group)
        for path, indices in outputs.items():
            if follower.get(path) in outputs:
                continue  # what comes after it is looked at in its place
            source = next((one for one, after in follower.items() if after == path and one in outputs), path)
            module = modules[source]
            makes = isinstance(module, nn.Linear) or (
                isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1
            )
            last = isinstance(modules[path], nn.Linear | nn.LayerNorm | nn.RMSNorm)
            found.append((path, _Place(f"{group.name}.ratio", torch.from_numpy(indices)[order], makes, last)))
    return found


def _outputs(modules: Mapping[str, nn.Module], group: Group) -> dict[str, np.ndarray]:
    """Modules whose output channels a group holds, and which of them each atom has."""
    found: dict[str, np.ndarray] = {}
    for member in group.members:
        path, _, tensor = member.tensor.rpartition(".")
        module = modules[path]
        transposed = getattr(module, "transposed", False)
        if tensor in ("weight", "running_mean") and member.dim == (1 if transposed else 0):
            found.setdefault(path, member.indices)
    return found


@torch.no_grad()
def _followers(network: nn.Module, space: PruningSpace) -> dict[str, str]:
    """Convolution or linear layer -> the normalisation that reads its output, and nothing in between."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):

            def keep(module: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
                made[id(output)] = (path, output)  # held, so that no other tensor gets its identity

            handles.append(module.register_forward_hook(keep))
        elif isinstance(module, nn.modules.batchnorm._NormBase):

            def note(module: nn.Module, inputs: Any, path: str = path) -> None:
                if id(inputs[0]) in made:
                    found[made[id(inputs[0])][0]] = path

            handles.append(module.register_forward_pre_hook(note))
    network.eval()
    network(torch.zeros(2, *space.problem.input_shape))
    for handle in handles:
        handle.remove()
    return found
