"""From an experiment file to a validated `Experiment`; what is wrong is answered with file, line and key."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from nasplat.artifacts.run_directory import RunDirectory
from nasplat.core.cost import COSTS
from nasplat.core.distillation import Network
from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Experiment, Train, Weights
from nasplat.core.section import Section
from nasplat.jobs.command import command
from nasplat.jobs.explain import dotted, explain
from nasplat.jobs.yaml_file import Location, YamlFile, parse, read_yaml, shown

AnyNetwork = TypeVar("AnyNetwork", bound=Network)

BUDGETS = {"epochs", "steps", "seconds"}
CHECK_EPOCHS = 5  # of networks that are trained alone to check a ranking, where the experiment gives no budget

# Names that stand for parts of nasplat; with a colon they are functions of the user. The tables themselves live in
# layers that import torch, so that a test holds these two equal to them.
METRICS = (
    "accuracy",
    "macs",
    "params",
    "peak_bytes",
    "latency",
    "latency_spread",
    "probe_mean",
    "probe_spread",
    "loss",
    "train_seconds",
    "delta_m",
)
KNOWN_NAMES: Mapping[Location, tuple[str, ...]] = {
    ("train", "objective"): ("supervised", "simclr", "memory_bank"),
    ("train", "weighting"): ("hand", "uncertainty", "gradnorm"),
    ("train", "augment"): ("crop", "flip", "resized_crop", "color_jitter", "grey", "blur", "cutout", "rotation"),
    ("score", "probe"): ("none", "linear", "knn"),
}


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """Reads, completes and checks an experiment file.

    The space is read into the experiment where it is a file of its own, and the path of the data becomes absolute:
    what comes back needs no other file.

    Args:
        path: of the YAML file, which may be one that comes with nasplat, such as experiments/quickstart.yaml; other
            paths in it are looked up beside it, then in the current folder, then in nasplat.
        overrides: `section.key=value` each, with values in YAML.

    Raises:
        NasplatError: with file, line, key, the allowed values and the nearest right name.
    """
    path = find_file(str(path), Path.cwd() / path.name) or path
    source = read_yaml(path)
    for text in overrides:
        override(source, text)
    experiment = validate(source)
    add_user_code(path)
    updates: dict[str, Any] = {"space": _space(source, experiment.space)}
    if experiment.data.path is not None:
        data_path = found_file(experiment.data.path, source, ("data", "path"))
        updates["data"] = experiment.data.model_copy(update={"path": str(data_path)})
    updates["train"] = with_teacher_files(experiment.train, source)
    if experiment.weights is not None:
        updates["weights"] = _with_training_space(experiment.weights, source)
    if "name" not in source.data:
        updates["name"] = path.stem
    experiment = experiment.model_copy(update=updates)
    for section in ("data", "train", "final"):
        if experiment.tabular and source.data.get(section):
            raise NasplatError(
                f"{source.place((section,))}: a tabular space answers from its table, and trains nothing",
                f"remove the section {section}",
            )
    return experiment


def validate(source: YamlFile) -> Experiment:
    """Checks the keys and values of an experiment; touches no other file."""
    no_empty_sections(source, Experiment)
    text_keys(source.data, source, ())
    score = source.data.get("score")
    if isinstance(score, dict) and score.get("probe") == "none":
        score["probe"] = None
    try:
        experiment = Experiment.model_validate(source.data)
    except ValidationError as error:
        raise explain(error, source) from error
    check_names(experiment, source)
    _check_metrics(experiment, source)
    try:
        final_train(experiment)
    except ValidationError as error:
        raise explain(error, source, ("final", "train")) from error
    if experiment.scored_by_source and experiment.weights is not None and experiment.weights.check:
        try:
            check_train(experiment)
        except ValidationError as error:
            raise explain(error, source, ("weights", "check_train")) from error
    return experiment


def check_names(settings: Section, source: YamlFile) -> None:
    """Raises NasplatError: a name that stands for nothing of nasplat's and is no function of the user's."""
    for location, known in KNOWN_NAMES.items():
        given = getattr(getattr(settings, str(location[0]), None), str(location[1]), None)
        for name in (given,) if isinstance(given, str) else given or ():
            if ":" not in name and name not in known:
                raise NasplatError(
                    f"{source.place(location)}: {dotted(location)} cannot be {name!r}",
                    f"{nearest(name, known)}allowed: {', '.join(known)}, or module:function of your own",
                )


def _check_metrics(experiment: Experiment, source: YamlFile) -> None:
    score = experiment.score
    places: list[tuple[Location, str]] = [
        *((("score", "maximise", index), name) for index, name in enumerate(score.maximise)),
        *((("score", "minimise", index), name) for index, name in enumerate(score.minimise)),
        *((("search", "constraints", name), name) for name in experiment.search.constraints),
    ]
    # A function of the user's own may measure several things under names of its own.
    if any(":" in name for name in (*score.maximise, *score.minimise, score.probe or "")):
        return
    if experiment.tabular:
        table = experiment.space.get("metrics") if isinstance(experiment.space, dict) else None
        known, others = tuple(table or ()), "the metrics of the table; see space.metrics"
        if isinstance(experiment.space, dict) and experiment.space.get("network"):
            known += tuple(name for name in COSTS if name not in known)
    else:
        known, others = METRICS, "or module:function of your own"
    for location, name in places:
        if name not in known and not ("." in name and experiment.data.tasks):
            raise NasplatError(
                f"{source.place(location)}: {dotted(location[:2])}: there is no metric {name!r}",
                f"{nearest(name, known)}allowed: {', '.join(known)}, {others}",
            )


def final_train(experiment: Experiment) -> Train:
    """The training settings of the full schedule: those of the search with the overrides of `final`."""
    return _overridden(experiment.train, experiment.final.train)


def check_train(experiment: Experiment) -> Train:
    """The training settings of networks that are trained alone to check how a source of weights ranks.

    Those of the search with the overrides of `weights.check_train`, or else those of `final.train`.
    """
    assert experiment.weights is not None
    changes = experiment.weights.check_train or experiment.final.train
    settings = _overridden(experiment.train, changes if BUDGETS & set(changes) else {"epochs": CHECK_EPOCHS, **changes})
    if settings.epochs == 0:
        raise NasplatError(
            "weights.check_train: networks that are trained for 0 epochs check nothing",
            f"give it epochs: {CHECK_EPOCHS}, or weights a check: 0 for no check",
        )
    return settings


def _overridden(train: Train, changes: Mapping[str, Any]) -> Train:
    settings = train.model_dump()
    if BUDGETS & set(changes):
        settings.update(dict.fromkeys(BUDGETS))
    return Train.model_validate({**settings, **changes})


def to_plain(experiment: Experiment) -> dict[str, Any]:
    """JSON-plain data that `Experiment.model_validate` reads again."""
    return experiment.model_dump(mode="json", exclude_none=True)


def add_user_code(path: Path) -> None:
    """Makes modules beside the experiment file and in the current folder importable, for `module:function`."""
    for folder in (Path.cwd(), path.resolve().parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def find_file(name: str, beside: Path) -> Path | None:
    """A path of an experiment: absolute, beside the experiment file, in the current folder, or part of nasplat."""
    package = Path(__file__).resolve().parents[1]
    for folder in (beside.resolve().parent, Path.cwd(), package.parent, package):
        candidate = folder / Path(name).expanduser()
        if candidate.exists():
            return candidate.resolve()
    return None


def found_file(name: str, source: YamlFile, location: Location) -> Path:
    """`find_file`, or an error with the place where it is named."""
    found = find_file(name, source.path)
    if found is None:
        beside = shown(source.path.resolve().parent)
        raise NasplatError(
            f"{source.place(location)}: {dotted(location)}: there is no {name}",
            f"it was looked for in {beside}, in the current folder and in nasplat itself",
        )
    return found


def read_space(path: Path) -> dict[str, Any]:
    """The space of a space file, or of an experiment file.

    Raises:
        NasplatError: there is no such file, or its family or a parameter does not exist.
    """
    source = read_yaml(path)
    if "space" not in source.data:
        return _checked_space(source)
    return _space(source, source.data["space"])


def _space(source: YamlFile, space: Any) -> dict[str, Any]:
    """The space of an experiment as inline data."""
    from nasplat.spaces.families import FAMILIES

    if isinstance(space, str):
        path = find_file(space, source.path)
        if path is None:
            raise NasplatError(
                f"{source.place(('space',))}: there is no space file {space}",
                f"{command('spaces')} lists those that come with nasplat; families are {', '.join(FAMILIES)}",
            )
        return _checked_space(read_yaml(path))
    return _checked_space(source.part("space"))


def _checked_space(space: YamlFile) -> dict[str, Any]:
    """A space whose family and parameters exist; make_space checks their values."""
    from nasplat.spaces.families import FAMILIES

    if "family" not in space.data:
        raise NasplatError(
            f"{space.place(())}: the space names no family",
            f"add a line such as family: darts; families are {', '.join(FAMILIES)}",
        )
    family = space.data["family"]
    if family not in FAMILIES:
        raise NasplatError(
            f"{space.place(('family',))}: there is no family {family!r}",
            f"{nearest(str(family), FAMILIES)}families are {', '.join(FAMILIES)}",
        )
    known = family_parameters(family)
    for key in space.data:
        if known and key != "family" and key not in known:
            raise NasplatError(
                f"{space.place((key,))}: the family {family} has no parameter {key!r}",
                f"{nearest(str(key), known)}its parameters are {', '.join(known)}",
            )
    return _with_files(space)


def _with_files(space: YamlFile) -> dict[str, Any]:
    """A space that needs no file beside those of its table: that path becomes absolute, the network's space is read."""
    found = dict(space.data)
    if found["family"] == "tabular":
        if isinstance(found.get("table"), str):
            found["table"] = str(found_file(found["table"], space, ("table",)))
        if isinstance(found.get("network"), str):
            found["network"] = _checked_space(read_yaml(found_file(found["network"], space, ("network",))))
    if found["family"] == "pruning" and isinstance(found.get("checkpoint"), str):
        found["checkpoint"] = str(found_file(found["checkpoint"], space, ("checkpoint",)))
    return found


def _with_training_space(weights: Weights, source: YamlFile) -> Weights:
    """A source of weights whose own space, where it has one in a file, is read."""
    space = weights.options.get("space")
    if not isinstance(space, str):
        return weights
    read = _checked_space(read_yaml(found_file(space, source, ("weights", "options", "space"))))
    return weights.model_copy(update={"options": {**weights.options, "space": read}})


def with_teacher_files(train: Train, source: YamlFile) -> Train:
    """The training settings with absolute paths of the teachers' files."""
    if train.distill is None:
        return train
    teachers = [
        with_files(one, source, ("train", "distill", "teachers", place))
        for place, one in enumerate(train.distill.teachers)
    ]
    return train.model_copy(update={"distill": train.distill.model_copy(update={"teachers": teachers})})


def with_files(network: AnyNetwork, source: YamlFile, location: Location) -> AnyNetwork:
    """A network with the absolute paths of its checkpoint, and of the folder or the run that it is read from."""
    updates = {}
    if network.checkpoint is not None:
        updates["checkpoint"] = str(found_file(network.checkpoint, source, (*location, "checkpoint")))
    if ":" not in network.model:
        updates["model"] = in_run(network.model, source) or str(found_file(network.model, source, (*location, "model")))
    return network.model_copy(update=updates)


def in_run(name: str, source: YamlFile) -> str | None:
    """RUN/ARCH with the absolute path of the run; None where there is no such run."""
    parent = find_file(str(Path(name).parent), source.path)
    if parent is None or not RunDirectory(parent).experiment.is_file():
        return None
    return str(parent / Path(name).name)


def family_parameters(family: str) -> tuple[str, ...]:
    """Names of the parameters of a family, without `problem`; empty where it takes any."""
    import inspect

    from nasplat.spaces.families import FAMILIES

    parameters = inspect.signature(FAMILIES[family]).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ()
    return tuple(parameter.name for parameter in parameters if parameter.name != "problem")


def override(source: YamlFile, change: str) -> None:
    """Sets one key from `section.key=value`, as if it stood in the file."""
    key, separator, text = change.partition("=")
    if not separator or not key.strip():
        raise NasplatError(f"--set {change}: expected key=value", "for instance --set train.epochs=3")
    import yaml

    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise NasplatError(f"--set {change}: the value is not YAML", "quote it, for instance 'key=[1, 2]'") from error
    location = tuple(key.strip().split("."))
    section: Any = source.data
    for name in location[:-1]:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise NasplatError(
                f"--set {change}: {name} is not a section with keys",
                "a space that is a file of its own is changed in that file, or written inline",
            )
    if location[-2:-1] == ("train",) and location[-1] in ("epochs", "steps", "seconds"):
        # A new budget takes the place of the one in the file.
        for other in ("epochs", "steps", "seconds"):
            section.pop(other, None)
    section[location[-1]] = value
    source.places[location] = f"--set {change}"


def no_empty_sections(source: YamlFile, what: type[Section]) -> None:
    """`train:` with nothing under it means the defaults, as a reader would expect."""
    for name, field in what.model_fields.items():
        if name in source.data and source.data[name] is None and field.default_factory is not None:
            source.data[name] = {}


def text_keys(data: Any, source: YamlFile, location: Location) -> None:
    """Raises NasplatError: a key is not text."""
    if isinstance(data, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                raise NasplatError(
                    f"{source.place((*location, key))}: the key {key!r} is not text",
                    "quote it if it is meant as a name",
                )
            text_keys(value, source, (*location, key))
