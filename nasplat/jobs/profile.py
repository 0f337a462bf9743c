"""What any network costs, layer by layer, held against fvcore, thop and torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nasplat.core.errors import NasplatError
from nasplat.jobs.yaml_file import nearest

if TYPE_CHECKING:
    from torch import nn

    from nasplat.networks.profile import Profile


def parse_shape(text: str) -> tuple[int, int, int]:
    """`3,224,224` or `3x224x224` as (channels, height, width)."""
    try:
        channels, height, width = (int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError as error:
        raise NasplatError(f"input shape {text!r} is not channels,height,width", "for instance 3,224,224") from error
    if min(channels, height, width) < 1:
        raise NasplatError(f"input shape {text!r} has a side below 1", "for instance 3,224,224")
    return channels, height, width


def profile_model(name: str, input_shape: tuple[int, int, int] | None) -> tuple[str, Profile]:
    """Profiles a network.

    Args:
        name: `runs/NAME/ARCH` with a trial's number or the first letters of its digest, `module:function` that takes
            nothing and returns a module, or a classification model of torchvision.
        input_shape: `(C, H, W)`; None stands for the shape of the run's images, or 3,224,224.

    Returns:
        What was profiled, in words, and the profile.
    """
    from nasplat.networks.profile import profile

    module, title, shape = _network(name, input_shape)
    return f"{title}, input {'×'.join(map(str, shape))}", profile(module, shape)


def _network(name: str, input_shape: tuple[int, int, int] | None) -> tuple[nn.Module, str, tuple[int, int, int]]:
    from nasplat.jobs.runs import is_run, open_run

    path = Path(name)
    if is_run(path.parent) and not is_run(path):
        run = open_run(path.parent)
        candidate = run.candidate(path.name)
        shape = input_shape or run.space.problem.input_shape
        return run.space.build(candidate.architecture), f"{candidate.name} of {path.parent}", shape
    if is_run(path):
        raise NasplatError(f"{name} is a run; which of its architectures?", f"for instance {name}/0, by its number")
    if ":" in name:
        return _user_module(name), name, input_shape or (3, 224, 224)
    return _torchvision_model(name), f"{name} of torchvision", input_shape or (3, 224, 224)


def _user_module(name: str) -> nn.Module:
    from torch import nn

    from nasplat.core.user_function import load_function
    from nasplat.jobs.experiment import add_user_code

    add_user_code(Path.cwd() / "here")
    module = load_function(name, "model")()
    if not isinstance(module, nn.Module):
        raise NasplatError(f"{name} returned a {type(module).__name__}", "it takes nothing and returns a torch module")
    return module


def _torchvision_model(name: str) -> nn.Module:
    from nasplat.data.torchvision_import import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise NasplatError(
            f"there is no model {name!r}",
            f"{nearest(name, known)}name a model of torchvision, a run and an architecture (runs/quickstart/0), "
            "or module:function of your own",
        )
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model
