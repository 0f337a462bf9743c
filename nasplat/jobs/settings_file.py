"""From a pruning file or a distillation file, or from options of the command line alone, to validated settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from nasplat.core.distillation_file import DistillationFile
from nasplat.core.initialisation import Initialisation
from nasplat.core.pruning import PruningFile
from nasplat.jobs.experiment import (
    add_user_code,
    check_names,
    find_file,
    found_file,
    in_run,
    no_empty_sections,
    override,
    text_keys,
    with_files,
    with_teacher_files,
)
from nasplat.jobs.explain import explain
from nasplat.jobs.yaml_file import YamlFile, read_yaml

Settings = TypeVar("Settings", PruningFile, DistillationFile)


def load_pruning(path: Path | None, overrides: Iterable[str] = ()) -> PruningFile:
    """Reads, completes and checks a pruning; all paths in it become absolute.

    Args:
        path: of the YAML file; None where the overrides say everything.
        overrides: `section.key=value` each, with values in YAML.

    Raises:
        NasplatError: with file, line, key, the allowed values and the nearest right name.
    """
    settings, source = _read(PruningFile, path, overrides)
    updates: dict[str, Any] = {}
    if settings.checkpoint is not None:
        updates["checkpoint"] = str(found_file(settings.checkpoint, source, ("checkpoint",)))
    if ":" not in settings.model:
        updates["model"] = in_run(settings.model, source) or settings.model
    if "name" not in source.data:
        function = settings.model.rpartition(":")[2]  # torchvision.models:resnet18 is resnet18, runs/mine/12 is mine-12
        updates["name"] = "-".join(Path(function).parts[-2:]) if path is None else source.path.stem
    return settings.model_copy(update=updates)


def load_distillation(path: Path | None, overrides: Iterable[str] = ()) -> DistillationFile:
    """The same of a distillation."""
    settings, source = _read(DistillationFile, path, overrides)
    updates: dict[str, Any] = {"student": with_files(settings.student, source, ("student",))}
    if "name" not in source.data and path is not None:
        updates["name"] = source.path.stem
    return settings.model_copy(update=updates)


def load_initialisation(overrides: Iterable[str]) -> Initialisation:
    """What `section.key=value` each say of a network that gets generated weights."""
    path = Path.cwd() / "the command line"
    source = YamlFile(path, {})
    for text in overrides:
        override(source, text)
    try:
        settings = Initialisation.model_validate(source.data)
    except ValidationError as error:
        raise explain(error, source, what=Initialisation) from error
    add_user_code(path)
    return with_files(settings, source, ())


def _read(kind: type[Settings], path: Path | None, overrides: Iterable[str]) -> tuple[Settings, YamlFile]:
    """The settings with absolute paths of images and teachers, and where each key stands."""
    if path is None:
        path = Path.cwd() / "the command line"
        source = YamlFile(path, {})
    else:
        path = find_file(str(path), Path.cwd() / path.name) or path
        source = read_yaml(path)
    for text in overrides:
        override(source, text)
    no_empty_sections(source, kind)
    for name in ("data", "train"):
        if name in source.data and source.data[name] is None:
            source.data[name] = {}
    text_keys(source.data, source, ())
    try:
        settings = kind.model_validate(source.data)
    except ValidationError as error:
        raise explain(error, source, what=kind) from error
    check_names(settings, source)
    add_user_code(path)
    updates: dict[str, Any] = {}
    if settings.train is not None:
        updates["train"] = with_teacher_files(settings.train, source)
    if settings.data is not None and settings.data.path is not None:
        found = found_file(settings.data.path, source, ("data", "path"))
        updates["data"] = settings.data.model_copy(update={"path": str(found)})
    return settings.model_copy(update=updates), source
