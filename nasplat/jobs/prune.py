"""A trained network made smaller: from a pruning file to a folder that loads without nasplat, and a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.environment import machine, versions
from nasplat.artifacts.metric_names import prefixed
from nasplat.core.errors import NasplatError
from nasplat.core.pruning import PruningFile
from nasplat.jobs.claim import claim
from nasplat.jobs.trained import as_function

if TYPE_CHECKING:
    from torch import nn

    from nasplat.artifacts.report_pruning import LayerRow, PruningReport
    from nasplat.compression.prune import Pruned
    from nasplat.data.datasets import Dataset
    from nasplat.training.latency import Latency
    from nasplat.training.loop import Progress

BATCHES = (1, 32)  # at which latency is measured
SETTINGS = "pruning.yaml"
PROGRESS = "progress"
NETWORK = "network"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pruning came to.

    Args:
        pruned: the network, and how it came about.
        latencies: by batch size, of the original and of the result.
        warnings: what a person should know.
        paths: what to look at, by name.
    """

    pruned: Pruned
    latencies: Mapping[int, tuple[Latency, Latency]]
    warnings: tuple[str, ...]
    paths: Mapping[str, Path]


def prune(
    settings: PruningFile,
    directory: Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[str, Progress], None] = lambda name, progress: None,
) -> Outcome:
    """Prunes, writes the network in every format that takes it, and a report; goes on where it was interrupted.

    Args:
        settings: as `load_pruning` reads them.
        directory: for all files.
        say: is told what is being done.
        on_progress: is told of trainings.

    Raises:
        NasplatError: the model, its checkpoint or the data are not fit, the budget cannot be met, or the folder is
            taken by another pruning.
    """
    import torch

    from nasplat.artifacts.foreign_checkpoint import load_checkpoint
    from nasplat.compression.prune import Watch, prune_network
    from nasplat.data.datasets import load_dataset
    from nasplat.networks.user_model import make_model

    settings = as_function(settings)
    claim(directory, settings, SETTINGS, "pruning")
    original = make_model(settings.model, settings.arguments).eval()
    warnings = []
    if settings.checkpoint is None:
        warnings.append("no checkpoint was given: the weights are those that the model is made with")
    else:
        loaded = load_checkpoint(original, Path(settings.checkpoint))
        told = [f"from its entry {loaded.entry}"] * bool(loaded.entry)
        told += [f"without the prefix {loaded.prefix}"] * bool(loaded.prefix)
        told += [f"from {loaded.cast}"] * bool(loaded.cast)
        say(", ".join([f"{Path(settings.checkpoint).name} loaded", *told]))
    dataset = None if settings.data is None else load_dataset(settings.data)
    if settings.data is not None and settings.checkpoint is not None and settings.data.mean is None:
        say("images are normalised by their own mean and deviation; set data.mean and data.std where it wants others")
    shape = settings.input or (dataset.problem.input_shape if dataset else (3, 224, 224))
    inputs = (torch.zeros(1, *shape),)
    watch = Watch(say, on_progress)
    pruned = prune_network(original, inputs, settings, dataset=dataset, watch=watch, folder=directory / PROGRESS)
    say("measuring latency")
    latencies = _latencies(original, pruned, settings, shape)
    warnings += [*pruned.notes, *_slower(latencies)]
    layers = _layers(original, pruned.module, shape)
    say("writing and checking the files")
    paths = _write(directory, settings, original, pruned, shape, dataset, warnings)
    report = _report(settings, pruned, latencies, layers, warnings, directory, paths)
    from nasplat.artifacts.report_pruning import write_pruning_report

    write_pruning_report(report, directory / REPORT)
    return Outcome(pruned, latencies, tuple(warnings), {**paths, "report": directory / REPORT})


def _latencies(
    original: nn.Module, pruned: Pruned, settings: PruningFile, shape: tuple[int, ...]
) -> dict[int, tuple[Latency, Latency]]:
    from nasplat.training.devices import resolve_device
    from nasplat.training.latency import latencies

    device = resolve_device(settings.device)
    pair = tuple(network.to(device) for network in (original, pruned.module))
    found = {batch: latencies(pair, shape, device, batch) for batch in BATCHES}  # type: ignore[arg-type]
    for network in pair:
        network.cpu()
    return {batch: (before, after) for batch, (before, after) in found.items()}


def _slower(latencies: Mapping[int, tuple[Latency, Latency]]) -> list[str]:
    from nasplat.training.latency import is_faster

    return [
        f"the network is smaller but not faster at batch {batch}: {after.median:.2f} ms against {before.median:.2f} ms "
        "before (round_to: 8 or 16, whole blocks, or a latency budget may help)"
        for batch, (before, after) in latencies.items()
        if not is_faster(before, after)
    ]


def _layers(original: nn.Module, smaller: nn.Module, shape: tuple[int, ...]) -> list[LayerRow]:
    from nasplat.artifacts.report_pruning import LayerRow
    from nasplat.networks.counter import count
    from nasplat.networks.rebuild import width_of

    before, after = ({layer.name: layer for layer in count(network, shape).layers} for network in (original, smaller))
    modules = (dict(original.named_modules()), dict(smaller.named_modules()))
    rows = []
    for name, layer in before.items():
        width = width_of(modules[0][name])
        if not layer.macs or width is None:
            continue
        left = after.get(name)
        stays = (width_of(modules[1][name]) if name in modules[1] else None) or 0
        pairs = (
            (one, getattr(left, key) if left else 0) for key, one in (("macs", layer.macs), ("params", layer.params))
        )
        rows.append(LayerRow(name, type(modules[0][name]).__name__, (width, stays), *pairs))
    return rows


def _write(
    directory: Path,
    settings: PruningFile,
    original: nn.Module,
    pruned: Pruned,
    shape: tuple[int, ...],
    dataset: Dataset | None,
    warnings: list[str],
) -> dict[str, Path]:
    from nasplat.artifacts.export import export
    from nasplat.artifacts.model_card import ModelCard
    from nasplat.artifacts.recipe import SCRIPT_TEXT
    from nasplat.compression.files import recipe_of

    first, last = pruned.stages[0], pruned.stages[-1]
    metrics: dict[str, float] = {
        "macs": last.macs,
        "params": last.params,
        "original_macs": first.macs,
        "original_params": first.params,
    }
    metrics |= {prefixed("test", name): value for name, value in last.metrics.items()}
    metrics |= {prefixed("original_test", name): value for name, value in first.metrics.items()}
    card = ModelCard(
        name=settings.name,
        data={} if dataset is None else {"source": dataset.name, "fingerprint": dataset.fingerprint},
        metrics=metrics,
        versions=versions(),
        mean=dataset.mean if dataset else (),
        std=dataset.std if dataset else (),
        classes=dataset.classes if dataset else (),
        training=settings.model_dump(mode="json", exclude_none=True),
        origin=f"{settings.model}, pruned by nasplat.",
        notes=warnings,
    )
    recipe = recipe_of(pruned, original, shape, settings.model, settings.arguments)
    options: dict[str, Any] = {"card": card, "script": SCRIPT_TEXT}
    folder = directory / NETWORK
    try:
        exported = export(pruned.module, recipe, shape, folder, **options)
    except NasplatError as error:
        warnings.append(f"no ONNX and no torch.export: {error.message}")
        exported = export(pruned.module, recipe, shape, folder, formats=("safetensors",), **options)
    return {"network": folder, **{name: folder / name for name in exported.files if name == "model.onnx"}}


def _report(
    settings: PruningFile,
    pruned: Pruned,
    latencies: Mapping[int, tuple[Latency, Latency]],
    layers: list[LayerRow],
    warnings: list[str],
    directory: Path,
    paths: Mapping[str, Path],
) -> PruningReport:
    from dataclasses import asdict

    from nasplat.artifacts.report_pruning import LatencyRow, PruningReport

    checkpoint = f", {Path(settings.checkpoint).name}" if settings.checkpoint else ""
    return PruningReport(
        name=settings.name,
        model=f"{settings.model}{checkpoint}: {settings.importance.criterion}, {settings.importance.scope}",
        stages=[asdict(stage) for stage in pruned.stages],
        layers=layers,
        latencies=[
            LatencyRow(batch, (before.median, before.spread), (after.median, after.spread))
            for batch, (before, after) in latencies.items()
        ],
        untouched=[(one.name, one.size, f"{one.reason} ({one.where})") for one in pruned.untouched],
        warnings=warnings,
        settings=settings.model_dump(mode="json", exclude_none=True),
        links={
            path.name: path.relative_to(directory).as_posix()
            for path in sorted(paths["network"].iterdir())
            if path.is_file()
        },
        versions=versions(),
        machine=machine(),
    )
