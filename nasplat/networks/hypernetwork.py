"""Any network with weights that another network generates.

hyper = hypernetwork(network, Static(), "*.conv*.weight", parametrisation=PLAIN)   # fewer parameters than weights
hyper = hypernetwork(network, Chunked(), condition=Continuous(1))                  # one network for every g in [0, 1]
logits = hyper(images, condition=torch.tensor([0.3]))
ordinary = hyper.frozen(torch.tensor([0.3]))                                       # of the network's own class
save_hypernetwork(hyper, path); load_hypernetwork(network, path)

Conditions are hyperparameters (`Continuous`), a task (`Categorical`), or an architecture: the indices of its options.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from nasplat.artifacts.weights import load_into, read_metadata, save_weights
from nasplat.core.architecture import fingerprint
from nasplat.core.errors import NasplatError, nearest
from nasplat.networks.kept_weights import KeptWeights, keep
from nasplat.networks.weight_conditions import MIP, Categorical, Condition, Continuous, OneHot, Parametrisation
from nasplat.networks.weight_generators import Chunked, Dense, GeneratorSettings, Recurrent, Static, WeightGenerator

VERSION = "1"  # of the files
_DEFAULT = Chunked()
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Static, Dense, Chunked, Recurrent, Continuous, Categorical, OneHot)
}
_REBUILD = "build the network as it was when the hypernetwork was saved"


class HyperNetwork(nn.Module):
    """A network some of whose parameters are generated; what is not, and all buffers, is the network's own.

    In evaluation and without gradients weights are generated once and kept. They are generated anew for another
    condition, and after a step of any optimiser, loaded weights, a move, `train()` or `eval()`, and other changes that
    torch counts. What is written through `.data` it does not count: call `eval()` afterwards.

    Args:
        network: its chosen parameters are None.
        generator: generates them, by their first names.
        places: of each generated tensor all names that the network has for it; tied weights have several.
        target: `names_and_shapes` of the network when it had its parameters.
    """

    def __init__(
        self, network: nn.Module, generator: WeightGenerator, places: Mapping[str, tuple[str, ...]], target: str
    ) -> None:
        super().__init__()
        self.network, self.generator = network, generator
        self.places, self.target = dict(places), target
        self._kept: KeptWeights | None = None

    def forward(self, *inputs: Any, condition: Tensor | None = None, **keywords: Any) -> Any:
        """What the network makes of its inputs.

        Args:
            condition: one for the whole batch, of the shape that `generator.condition` says; None where there is none.

        Raises:
            NasplatError: a condition is missing, or not taken, or is none of those that there are.
        """
        weights = self.weights(condition)
        placed = {place: weights[name] for name, places in self.places.items() for place in places}
        return functional_call(self.network, placed, inputs, keywords, tie_weights=False)

    def weights(self, condition: Tensor | None = None) -> dict[str, Tensor]:
        """The generated weights by name; from the cache where that is the same."""
        wanted = [*self.generator.parameters(), *([] if condition is None else [condition])]
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted)
        if self.training or learns:
            return self._generate(condition)
        learned = [*self.generator.parameters(), *self.generator.buffers()]
        if self._kept is None or not self._kept.hold(condition, learned):
            # Ordinary tensors, even if this is the first batch of an inference mode that ends before the next.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = keep(self._generate(condition), condition, learned)
        return self._kept.weights

    def frozen(self, condition: Tensor | None = None) -> nn.Module:
        """An ordinary network of the original's class, with the generated weights as its parameters.

        Raises:
            NasplatError: as `forward` does.
        """
        with torch.no_grad():
            weights = self.weights(condition)
        network = copy.deepcopy(self.network)
        for name, weight in weights.items():
            parameter = nn.Parameter(weight.detach().clone())
            for place in self.places[name]:
                _put(network, place, parameter)
        return network

    def train(self, mode: bool = True) -> HyperNetwork:
        self._kept = None
        return super().train(mode)

    def _generate(self, condition: Tensor | None) -> dict[str, Tensor]:
        # In full precision always: the generator is small, and rounded weights would outlive the autocast block.
        with torch.autocast(self.generator.scales.device.type, enabled=False):
            weights: dict[str, Tensor] = self.generator(condition)
        return weights

    def _apply(self, fn: Any, recurse: bool = True) -> HyperNetwork:
        self._kept = None  # torch moves parameters without counting it as a change
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def hypernetwork(
    network: nn.Module,
    generator: GeneratorSettings = _DEFAULT,
    parameters: str | Sequence[str] | None = None,
    condition: Condition | None = None,
    parametrisation: Parametrisation = MIP,
    rng: torch.Generator | None = None,
) -> HyperNetwork:
    """A hypernetwork made from a copy of a network, which itself is left as it is.

    Args:
        network: its values are the base of the generated weights, or at least set their scale; it may be pretrained.
        generator: `Static`, `Dense`, `Chunked` or `Recurrent`.
        parameters: which are generated: a pattern such as `layer*.weight`, names, or None for the weights of all
            convolutions and linear layers. Weights that are tied stay so.
        condition: `Continuous`, `Categorical` or `OneHot`, where the weights are to depend on one.
        parametrisation: `MIP`, or `PLAIN` without base and encoding.
        rng: draws the generator's initial weights; torch's default generator where there is none.

    Raises:
        NasplatError: a name or pattern that no parameter has, or a parameter that cannot be generated.
    """
    places = chosen(network, parameters)
    own = copy.deepcopy(network)
    targets = {name: own.get_parameter(name) for name in places}
    generates = WeightGenerator(targets, generator, condition, parametrisation, rng)
    for names in places.values():
        for name in names:
            _put(own, name, None)
    return HyperNetwork(own, generates, places, names_and_shapes(network)).train(network.training)


def chosen(network: nn.Module, parameters: str | Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The chosen parameters by their first names, with all names of each, in the order of the network.

    Raises:
        NasplatError: a name or pattern that no parameter has, a lazy parameter, or one of torch's recurrent layers.
    """
    names_of: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    groups = [tuple(names) for names in names_of.values()]
    known = [name for names in groups for name in names]
    if parameters is None:
        wanted = {name for name in known if _is_layer_weight(network, name)}
    elif isinstance(parameters, str):
        wanted = {name for name in known if fnmatchcase(name, parameters)}
    else:
        wanted = set(parameters)
        for name in parameters:
            if name not in known:
                raise NasplatError(
                    f"the network has no parameter {name!r}", f"{nearest(name, known)}list them with named_parameters()"
                )
    found = {names[0]: names for names in groups if wanted.intersection(names)}
    if not found:
        what = "no convolution and no linear layer" if parameters is None else f"no parameter like {parameters!r}"
        raise NasplatError(f"the network has {what}", "name its parameters as named_parameters() does")
    for name in found:
        if is_lazy(network.get_parameter(name)):
            raise NasplatError(f"the parameter {name!r} has no shape yet", "run the network on a batch first")
        if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.RNNBase):
            # They hold their weights a second time, in a list that would keep what was generated last.
            raise NasplatError(
                f"the parameter {name!r} is one of torch's recurrent layers",
                "leave it out, or use cells such as LSTMCell",
            )
    return found


def names_and_shapes(network: nn.Module) -> str:
    """SHA-256 over the names and shapes of parameters and buffers."""
    state = network.state_dict()
    return fingerprint({name: list(one.shape) for name, one in state.items() if isinstance(one, Tensor)})


def save_hypernetwork(hyper: HyperNetwork, path: Path | str) -> None:
    """Writes the generator, and what the network has of its own, as safetensors.

    Raises:
        NasplatError: the file cannot be written.
    """
    generator = hyper.generator
    settings = {
        "generator": _as_json(generator.settings),
        "condition": None if generator.condition is None else _as_json(generator.condition),
        "parametrisation": asdict(generator.parametrisation),
        "parameters": list(hyper.places),
    }
    save_weights(hyper, path, {"hypernetwork": VERSION, "target": hyper.target, "settings": json.dumps(settings)})


def load_hypernetwork(network: nn.Module, path: Path | str) -> HyperNetwork:
    """The hypernetwork of a file.

    Args:
        network: an ordinary network of the architecture that the hypernetwork was made from, with any weights.
        path: of the file.

    Raises:
        NasplatError: the file is missing, damaged, no hypernetwork, of another version, or of another network.
    """
    metadata = read_metadata(path)
    version = metadata.get("hypernetwork")
    if version is None:
        raise NasplatError(f"{path} holds no hypernetwork", "give a file that save_hypernetwork wrote")
    if version != VERSION:
        raise NasplatError(
            f"the hypernetwork in {path} is of version {version}, not {VERSION}", "train it again with this nasplat"
        )
    if metadata.get("target") != names_and_shapes(network):
        raise NasplatError(
            f"the hypernetwork in {path} generates weights of another network: names or shapes differ", _REBUILD
        )
    try:
        settings = json.loads(metadata["settings"])
        generator = _from_json(settings["generator"])
        condition = None if settings["condition"] is None else _from_json(settings["condition"])
        parametrisation = Parametrisation(**settings["parametrisation"])
        names = [str(name) for name in settings["parameters"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NasplatError(f"the settings in {path} are damaged: {error!r}", "restore the file from a copy") from error
    # What is drawn is overwritten, and torch's default generator is not to notice.
    hyper = hypernetwork(network, generator, names, condition, parametrisation, torch.Generator())
    load_into(hyper, path)
    return hyper


def _as_json(settings: GeneratorSettings | Condition) -> dict[str, Any]:
    return {"kind": type(settings).__name__, **asdict(settings)}


def _from_json(fields: Mapping[str, Any]) -> Any:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items() if key != "kind"}
    return _KINDS[fields["kind"]](**values)


def _is_layer_weight(network: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(network.get_submodule(path), _ConvNd | nn.Linear)


def _put(network: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    path, _, leaf = name.rpartition(".")
    network.get_submodule(path).register_parameter(leaf, parameter)
