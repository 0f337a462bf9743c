"""What any network costs, layer by layer, held against fvcore, thop and torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nasplat.core.errors import NasplatError, nearest
from nasplat.jobs.command import command

if TYPE_CHECKING:
    from torch import nn

    from nasplat.jobs.runs import Run
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
        name: `runs/NAME`, of which the best of its front is taken, `runs/NAME/ARCH` with a trial's number or the first
            letters of its digest (and `-final` behind it for what `nasplat train` made of it), `module:function` that
            takes nothing and returns a module, or a classification model of torchvision.
        input_shape: `(C, H, W)`; None stands for the shape of the run's images, or 3,224,224.

    Returns:
        What was profiled, in words, and the profile.
    """
    from nasplat.networks.profile import profile

    module, title, shape = _network(name, input_shape)
    return f"{title}, input {'×'.join(map(str, shape))}", profile(module, shape)


def _network(name: str, input_shape: tuple[int, int, int] | None) -> tuple[nn.Module, str, tuple[int, int, int]]:
    from nasplat.jobs.experiment import add_user_code
    from nasplat.jobs.runs import is_run, open_run
    from nasplat.networks.user_model import make_model

    path = Path(name)
    if is_run(path) or is_run(path.parent):
        run = open_run(path if is_run(path) else path.parent)
        module, title = _best(run) if is_run(path) else _of_run(run, path.name)
        return module, title, input_shape or run.space.problem.input_shape
    if ":" in name:
        add_user_code(Path.cwd() / "here")
        return make_model(name, {}), name, input_shape or (3, 224, 224)
    return _torchvision_model(name), f"{name} of torchvision", input_shape or (3, 224, 224)


def _best(run: Run) -> tuple[nn.Module, str]:
    if not run.front:
        raise NasplatError(
            f"{run.directory} has no front yet", f"{command('status', run.directory)} tells how far its search is"
        )
    best = run.front[0]
    return run.space.build(best.architecture), f"{best.name}, the best of the front of {run.directory}"


def _of_run(run: Run, name: str) -> tuple[nn.Module, str]:
    from nasplat.jobs.confirmation import FINAL, final_network

    candidate = run.candidate(name.removesuffix(FINAL))
    if not name.endswith(FINAL):
        return run.space.build(candidate.architecture), f"{candidate.name} of {run.directory}"
    space, _, _ = final_network(run, candidate)
    module = space.build(space.canonical(candidate.architecture.values))
    return module, f"{candidate.name}{FINAL} of {run.directory}, as nasplat train rebuilt it"


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
