"""Networks of a run as files that load without nasplat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.metric_names import counted
from nasplat.artifacts.recipe import SCRIPT_TEXT
from nasplat.artifacts.run_directory import short
from nasplat.core.architecture import Architecture
from nasplat.core.cost import COSTS
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data
from nasplat.core.space import SearchSpace
from nasplat.jobs.command import command
from nasplat.jobs.confirmation import FINAL, final_network, read_confirmation
from nasplat.jobs.experiment import to_plain
from nasplat.jobs.runs import Candidate, Run, is_run, open_trained_run
from nasplat.spaces.families import NETWORK_OF, network_arguments
from nasplat.spaces.pruning import PruningSpace

if TYPE_CHECKING:
    from torch import nn

    from nasplat.artifacts.model_card import Description
    from nasplat.data.datasets import Dataset

FORMATS = ("safetensors", "onnx", "torch_export")


@dataclass(frozen=True)
class _Source:
    """A trained network to export: where its weights are, and what its card says."""

    candidate: Candidate
    space: SearchSpace
    spec: Mapping[str, Any]
    weights: Path
    digest: str
    metrics: dict[str, float]
    training: dict[str, object]
    seed: int | None
    note: str


def export(
    target: Path,
    *,
    top: int = 1,
    formats: Sequence[str] = FORMATS,
    final: bool = False,
    tasks: Sequence[str] = (),
    say: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Exports the best of a run's front, or one architecture of it.

    Args:
        target: a run, or RUN/ARCH with the number of a trial or the first letters of a digest.
        top: of a run: how many, the best on the first goal first.
        formats: of `FORMATS`; architecture.json and the model card are always written.
        final: the networks that `nasplat train` trained on the full schedule, in place of those of the search.
        tasks: of networks for several tasks those that are wanted, with only what they need; one alone has one output.

    Returns:
        The folder of every exported network.

    Raises:
        NasplatError: no such run or architecture, weights that were not kept, or a file that does not compute what
            the network does.
    """
    if is_run(target):
        run = open_trained_run(target)
        chosen: Sequence[Candidate] = _confirmed(run) if final else run.front
        if not chosen:
            raise NasplatError(f"{target} has no front yet", f"{command('status', target)} tells how far its search is")
        return export_candidates(run, chosen[:top], formats=formats, final=final, tasks=tasks, say=say)
    if is_run(target.parent):
        run = open_trained_run(target.parent)
        chosen = [run.candidate(target.name)]
        return export_candidates(run, chosen, formats=formats, final=final, tasks=tasks, say=say)
    raise NasplatError(
        f"{target} is neither a run nor an architecture of one", "for instance runs/quickstart, or runs/quickstart/7"
    )


def export_candidates(
    run: Run,
    candidates: Sequence[Candidate],
    *,
    formats: Sequence[str] = FORMATS,
    final: bool = False,
    tasks: Sequence[str] = (),
    dataset: Dataset | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Exports candidates of a run into its folder exports/; see `export`."""
    from nasplat.artifacts.environment import versions
    from nasplat.artifacts.export import export as write
    from nasplat.artifacts.model_card import ModelCard
    from nasplat.artifacts.weights import load_into
    from nasplat.networks.branched import part
    from nasplat.networks.counter import count
    from nasplat.search.evaluate import load_data

    dataset = dataset or load_data(run.experiment.data)
    folders = []
    for candidate in candidates:
        source = _trained(run, candidate) if final else _searched(run, candidate)
        architecture = source.space.canonical(candidate.architecture.values)
        network = source.space.build(architecture)
        load_into(network, source.weights, source.digest)
        name = "-".join([candidate.name + FINAL * final, *tasks])
        outputs = tasks or tuple(output.name for output in run.space.problem.outputs)
        shape = run.space.problem.input_shape
        metrics = {key: value for key, value in source.metrics.items() if key not in COSTS}
        if tasks:
            network = part(network, tasks)
            counts = count(network, shape)
            of_tasks = {key: value for key, value in metrics.items() if key.rpartition(".")[0] in tasks}
            metrics = {"macs": counts.macs, "params": counts.params, **of_tasks}
        description, options = _description(source, architecture, network, tasks)
        card = ModelCard(
            name=run.experiment.name,
            data={
                "source": run.experiment.data.name,
                "training images": len(dataset.train),
                "validation images": len(dataset.validation),
                "test images": len(dataset.test),
                "fingerprint": short(dataset.fingerprint),
            },
            seed=source.seed,
            cost=None if tasks else source.space.cost(architecture),
            metrics=metrics,
            versions=versions(),
            space={key: value for key, value in source.space.identity.items() if key != "problem"},
            training=source.training,
            mean=dataset.mean,
            std=dataset.std,
            pixels=pixels_of(run.experiment.data),
            classes=dataset.classes,
            trial=candidate.number,
            searched=candidate.architecture.digest,
            notes=(source.note,),
        )
        say(f"exporting {name}")
        folder = run.files.exports / name
        write(network, description, shape, folder, formats, card, outputs, **options)
        folders.append(folder)
    return folders


def _description(
    source: _Source, architecture: Architecture, network: nn.Module, tasks: Sequence[str]
) -> tuple[Description, dict[str, str]]:
    """What the files say of a network, and the script that makes it again where the description alone does not."""
    from nasplat.networks.rebuild import make_recipe

    if tasks:
        problem = source.space.problem
        arguments = {**network_arguments(source.spec, problem, architecture.values), "tasks": list(tasks)}
        recipe = make_recipe(network, network, (), problem.input_shape, NETWORK_OF, arguments)
        return recipe, {"script": SCRIPT_TEXT}
    if isinstance(source.space, PruningSpace):
        return source.space.recipe(architecture, network), {"script": SCRIPT_TEXT}
    return architecture, {}


def _searched(run: Run, candidate: Candidate) -> _Source:
    from nasplat.search.seeds import candidate_seed

    assert isinstance(run.experiment.space, dict)
    return _Source(
        candidate=candidate,
        space=run.space,
        spec=run.experiment.space,
        weights=candidate.folder.weights,
        digest=candidate.architecture.digest,
        metrics=dict(candidate.metrics),
        training=to_plain(run.experiment)["train"],
        seed=candidate_seed(run.experiment.search.seed, candidate.architecture.digest),
        note="The weights are those of the search: a short training, scored on validation images, by which it was "
        "chosen. `nasplat train` trains it on the full schedule and scores it on test images.",
    )


def _trained(run: Run, candidate: Candidate) -> _Source:
    space, row, confirmation = final_network(run, candidate)
    if not row.weights:
        raise NasplatError(
            f"the first training of {candidate.name} failed, and the weights of the others were not kept",
            f"{command('train', run.directory, '--arch', candidate.number)} with other settings, then export again",
        )
    return _Source(
        candidate=candidate,
        space=space,
        spec=confirmation.settings["space"],
        weights=run.directory / row.weights,
        digest=row.final_digest,
        metrics={name: one.mean for name, one in row.metrics.items()},
        training=dict(confirmation.settings["train"]),
        seed=row.seeds[0],
        note="Trained on training and validation images. The metrics are means over "
        f"{counted(len(row.seeds), 'seed')}, measured on test images; the weights are those of the first seed.",
    )


def _confirmed(run: Run) -> list[Candidate]:
    confirmation = read_confirmation(run.files)
    if confirmation is None:
        raise NasplatError(
            f"{run.directory} holds no full training yet", f"{command('train', run.directory)} makes one"
        )
    return [run.candidate(str(row.trial)) for row in confirmation.rows if row.weights]


def pixels_of(data: Data) -> str:
    """How the loaders of nasplat.data make bytes of raw values, in sentences for one who has no nasplat."""
    if (data.source or "").lower() == "digits":
        text = "The raw values 0..16 of scikit-learn's digits become bytes by `round(raw / 16 * 255)`."
    else:
        text = (
            "Of raw data that are no bytes, floats 0..1 become bytes by `round(raw * 255)` and booleans become 0 and "
            "255; image files are decoded to 8-bit grey or RGB."
        )
    return text + (f" Images are resized to {data.image_size} × {data.image_size}, bilinear." * bool(data.image_size))
