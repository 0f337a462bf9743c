"""A student taught by trained networks: from a distillation file to a folder that loads without nasplat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nasplat.artifacts.environment import machine, versions
from nasplat.artifacts.files import write_json
from nasplat.artifacts.metric_names import label, prefixed, text
from nasplat.core.distillation_file import DistillationFile
from nasplat.jobs.claim import claim

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nasplat.data.datasets import Dataset
    from nasplat.jobs.trained import Opened
    from nasplat.training.loop import Progress

SETTINGS = "distillation.yaml"
PROGRESS = "progress"
NETWORK = "network"
RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Row:
    """A network as it was measured on the test images.

    Args:
        metrics: `accuracy`, or of several tasks the main metric of each; empty without labels.
        agreement: share of the images of which it says the same class as the teachers together; None of several tasks.
    """

    title: str
    macs: int
    params: int
    metrics: Mapping[str, float]
    agreement: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a distillation came to; `paths` is what to look at, by name."""

    rows: tuple[Row, ...]
    seconds: float
    paths: Mapping[str, Path]


def distill(
    settings: DistillationFile,
    directory: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[str, Progress], None] = lambda name, progress: None,
) -> Outcome:
    """Trains the student, and writes it in every format that takes it; goes on where it was interrupted.

    Args:
        settings: as `load_distillation` reads them.
        directory: for all files.
        say: is told what is being done.
        on_progress: is told of the training.

    Raises:
        NasplatError: a network does not load, the networks and the data do not fit each other, or the folder is taken.
    """
    import torch

    from nasplat.artifacts.weights import load_into, read_metadata, save_weights
    from nasplat.compression.images import test_metrics, why_not_judged
    from nasplat.data.datasets import load_dataset
    from nasplat.jobs.trained import open_network
    from nasplat.networks.counter import count
    from nasplat.training.devices import resolve_device
    from nasplat.training.distillation import distillation
    from nasplat.training.fit import fit

    claim(directory, settings, SETTINGS, "distillation")
    dataset = load_dataset(settings.data)
    device = resolve_device(settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        student = open_network(settings.student)
    teachers = []
    for one in settings.distill.teachers:
        say(f"reading the teacher {one.model}")
        opened = open_network(one)
        if not opened.trained and not one.arguments:
            say(f"the teacher {one.model} has no checkpoint: its weights are those that its function makes")
        teachers.append(opened.module)
    unjudged = why_not_judged(student.module, dataset)
    if unjudged is not None:
        say(f"the accuracy is not measured: {unjudged}")
    objective = distillation(settings.train, dataset, student.module, teachers=teachers, device=device)
    specialists = any(one.classes is not None for one in settings.distill.teachers)
    answers = None if specialists or dataset.tasks else _answers(teachers, dataset, device)

    def row(title: str, network: nn.Module) -> Row:
        costs = count(network, dataset.problem.input_shape)
        judged = unjudged is None and not (specialists and title.startswith("teacher"))
        agreement = None
        if answers is not None:
            agreement = float((_answers([network], dataset, device) == answers).float().mean())
        metrics = test_metrics(network, dataset, device) if judged else {}
        found = Row(title, costs.macs, costs.params, metrics, agreement)
        told = [f"{label(name).lower()} {text(name, value)}" for name, value in metrics.items()]
        say(f"{title}: {', '.join([*told, f'{costs.macs:,} MACs'])}")
        return found

    rows = [row(f"teacher {one.model}", net) for one, net in zip(settings.distill.teachers, teachers, strict=True)]
    if student.trained:
        rows.append(row("student before", student.module))
    done = directory / PROGRESS / "student.safetensors"
    mark = {"objective": objective.identity, "data": dataset.fingerprint}
    if done.is_file() and mark.items() <= read_metadata(done).items():
        load_into(student.module, done)
        seconds = float(read_metadata(done)["seconds"])
        say("the student was trained before")
    else:
        trained = fit(
            student.module,
            dataset,
            settings.train,
            device=device,
            seed=settings.seed,
            resident=settings.data.resident,
            checkpoint=directory / PROGRESS / "student",
            on_progress=lambda progress: on_progress("the student", progress),
            objective=objective,
        )
        seconds = trained.seconds
        save_weights(student.module.cpu(), done, {**mark, "seconds": f"{seconds:.3f}"})
    rows.append(row("student", student.module))
    say("writing and checking the files")
    paths = _write(directory, settings, student, dataset, rows, seconds)
    return Outcome(tuple(rows), seconds, paths)


def _answers(networks: Sequence[nn.Module], dataset: Dataset, device: torch.device) -> Tensor:
    """The class that several networks together give each test image, `(N,)`."""
    import torch

    from nasplat.training.evaluate import evaluation_loader
    from nasplat.training.features import evaluating
    from nasplat.training.teachers import answer, mean_of

    found = []
    with ExitStack() as modes:
        for network in networks:
            modes.enter_context(evaluating(network.to(device)))
        for batch in evaluation_loader(dataset, "test", device).ordered():
            found.append(mean_of([answer(network, batch.views[0]) for network in networks], 1.0).argmax(1).cpu())
    return torch.cat(found)


def _write(
    directory: Path, settings: DistillationFile, student: Opened, dataset: Dataset, rows: Sequence[Row], seconds: float
) -> dict[str, Path]:
    from nasplat.artifacts.export import export
    from nasplat.artifacts.model_card import ModelCard
    from nasplat.artifacts.recipe import SCRIPT_TEXT

    results = {
        "rows": [asdict(row) for row in rows],
        "seconds": seconds,
        "versions": versions(),
        "machine": machine(),
    }
    write_json(directory / RESULTS, results)
    last = rows[-1]
    metrics: dict[str, float] = {"macs": last.macs, "params": last.params}
    metrics |= {prefixed("test", name): value for name, value in last.metrics.items()}
    notes = [
        f"Taught by {one.title.removeprefix('teacher ')}"
        + "".join(
            f"; {label(prefixed('test', name)).lower()}: {text(name, value)}" for name, value in one.metrics.items()
        )
        + "."
        for one in rows
        if one.title.startswith("teacher")
    ]
    module, shape = student.module.cpu().eval(), dataset.problem.input_shape
    card = ModelCard(
        name=settings.name,
        data={"source": dataset.name, "fingerprint": dataset.fingerprint},
        metrics=metrics,
        versions=versions(),
        mean=dataset.mean,
        std=dataset.std,
        classes=dataset.classes,
        training=settings.model_dump(mode="json", exclude_none=True),
        origin=f"{settings.student.model}, distilled by nasplat.",
        notes=notes,
    )
    script = {} if student.architecture is not None else {"script": SCRIPT_TEXT}
    export(module, student.describe(module, shape), shape, directory / NETWORK, card=card, **script)
    return {"network": directory / NETWORK, "results": directory / RESULTS}
