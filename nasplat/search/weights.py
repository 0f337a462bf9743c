"""The section `weights` of an experiment: its source is trained once before the search, and read by every trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment, Train, Weights
from nasplat.core.space import SearchSpace
from nasplat.search.seeds import candidate_seed
from nasplat.search.weight_sources import Source, make, read_source, save_source, source_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nasplat.data.datasets import Dataset
    from nasplat.data.loader import Batch
    from nasplat.training.loop import Progress

WEIGHTS = "weights"
FOLDER = "weights"

Say = Callable[[str], None]


def with_weights_trained(
    experiment: Experiment, space: SearchSpace, root: Path, say: Say, load: Callable[[], Dataset] | None = None
) -> Experiment:
    """The experiment with the file of its source of weights, which is trained where there is none yet.

    A training that was interrupted goes on from its checkpoint.

    Args:
        root: the folder to keep the source in.
        say: is told how far the training is.
        load: gives the data to train on; default: those of the experiment.

    Raises:
        NasplatError: options that the source does not have, a space that it cannot make weights for, or a file of
            another space, where the options do not allow that.
    """
    weights = experiment.weights
    if weights is None:
        return experiment
    path = source_file(root) if weights.file is None else Path(weights.file)
    if weights.file is None and not path.exists():
        _train(experiment, weights, space, path, say, load)
    source: Any = read_source(path, space, source_of(weights.source, weights.options).outside)
    if source.space_fingerprint != space.fingerprint:
        say(f"{weights.source}: it was trained on networks of another space than this one, for which it can but guess")
    return experiment.model_copy(update={"weights": weights.model_copy(update={"file": str(path)})})


def source_file(root: Path) -> Path:
    """Where a run keeps the source of weights that it trained."""
    return root / FOLDER / "source.safetensors"


def _train(
    experiment: Experiment,
    weights: Weights,
    space: SearchSpace,
    path: Path,
    say: Say,
    load: Callable[[], Dataset] | None,
) -> None:
    from nasplat.search.evaluate import load_data
    from nasplat.spaces.families import make_space
    from nasplat.training.devices import resolve_device, set_threads
    from nasplat.training.fit import fit
    from nasplat.training.objectives import make_objective
    from nasplat.training.weight_source import SourceObjective

    source = source_of(weights.source, weights.options)
    dataset = load() if load else load_data(experiment.data)
    spec = experiment.space if source.space is None else source.space
    if source.space is not None:
        wanted, space = space, make_space(source.space, dataset.problem)
        if source.outside == "refuse" and space.fingerprint != wanted.fingerprint:
            raise NasplatError(
                "weights.options: the source is trained on another space than the experiment's, and outside is refuse",
                "leave out outside, or space",
            )
    rule = source.rule(space)
    settings = source_settings(experiment.train, source, weights.train)
    device = resolve_device(experiment.run.device)
    set_threads(experiment.run.threads)
    seed = candidate_seed(experiment.search.seed, space.fingerprint, 0)
    module = make(source, space, seed)
    objective = SourceObjective(space, rule, make_objective(settings, dataset.problem, len(dataset.train)))
    say(f"training the {weights.source} that all candidates get their weights from")
    told = 0

    def on_progress(progress: Progress) -> None:
        nonlocal told
        if int(progress.epoch) > told:
            told = int(progress.epoch)
            left = f"{progress.seconds_left:.0f} s left"
            say(f"{weights.source}: epoch {told}, loss {progress.loss:.3f}, {left}")

    checkpoint = path.parent / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    fit(
        module,
        dataset,
        settings,
        device=device,
        seed=seed,
        resident=experiment.data.resident,
        checkpoint=checkpoint,
        on_progress=on_progress,
        objective=objective,
    )
    if objective.left_out:
        say(
            f"{weights.source}: {objective.left_out} of {objective.trained} networks were left out of the training, "
            "for their loss was not finite, or the memory did not suffice"
        )
    save_source(module, path, space, weights.source, weights.options, None if isinstance(spec, str) else spec)


def source_settings(train: Train, source: Source, overrides: Mapping[str, Any]) -> Train:
    """How the source is trained: as a candidate is, with what suits the source, and the overrides of the section.

    Raises:
        NasplatError: a setting that the section train does not have, or a value that it refuses.
    """
    from pydantic import ValidationError

    plain = train.model_dump(mode="json")
    budgets = ("epochs", "steps", "seconds")
    if any(name in overrides for name in budgets):
        plain |= dict.fromkeys(budgets)
    try:
        settings = Train.model_validate({**plain, **source.train, **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise NasplatError(f"weights.train.{place}: {first['msg']}", "it takes what the section train takes") from error
    if settings.epochs == 0:
        raise NasplatError("weights: a source that is trained for 0 epochs knows nothing", "give weights.train.epochs")
    return settings


def started(
    experiment: Experiment, space: SearchSpace, architecture: Architecture, dataset: Dataset, device: torch.device
) -> nn.Module:
    """A network that starts from the weights of the source."""
    from nasplat.training.weight_source import with_weights

    source = _source(experiment, space, device)
    return with_weights(source, space, architecture, _images(dataset, device)[1])


def score(
    experiment: Experiment, space: SearchSpace, architecture: Architecture, dataset: Dataset, device: torch.device
) -> float:
    """The share of validation images that a network gets right with the weights of the source."""
    from nasplat.training.weight_source import accuracies

    batches, calibration = _images(dataset, device)
    (found,) = accuracies(_source(experiment, space, device), space, [architecture], batches, calibration)
    return found


def _source(experiment: Experiment, space: SearchSpace, device: torch.device) -> nn.Module:
    """The source of an experiment, read once a process."""
    assert experiment.weights is not None and experiment.weights.file is not None  # the driver has seen to it
    key = (experiment.weights.file, space.fingerprint, str(device))
    if key not in _sources:
        _sources.clear()
        outside = source_of(experiment.weights.source, experiment.weights.options).outside
        _sources[key] = read_source(Path(experiment.weights.file), space, outside).to(device).eval()
    return _sources[key]


_sources: dict[tuple[str, str, str], nn.Module] = {}


def _images(dataset: Dataset, device: torch.device) -> tuple[list[Batch], list[Tensor]]:
    """Validation images, and training images to measure batch norm on; made once a process and data set."""
    from nasplat.training.evaluate import evaluation_loader
    from nasplat.training.weight_source import calibration

    for known, place, images in _held:
        if known is dataset and place == device:
            return images
    images = (list(evaluation_loader(dataset, "validation", device).ordered()), calibration(dataset, device))
    _held[:] = [(dataset, device, images)]
    return images


_held: list[tuple[Dataset, torch.device, tuple[list[Batch], list[Tensor]]]] = []
