"""YAML read safely, with the place of every key, so that an error can say where it is."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nasplat.core.errors import NasplatError, nearest

Location = tuple[Hashable, ...]


class _Loader(yaml.SafeLoader):
    """Plain data only, and `3e-4` is a number as in YAML 1.2 and JSON (YAML 1.1 reads it as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass
class YamlFile:
    """The content of a file (or of a part of it), and for every key where it stands."""

    path: Path
    data: dict[str, Any]
    places: dict[Location, str] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """`file, line 7` of a key, or of the nearest key around it."""
        for length in range(len(location), -1, -1):
            if tuple(location[:length]) in self.places:
                return self.places[tuple(location[:length])]
        return shown(self.path)

    def part(self, key: str) -> YamlFile:
        """The mapping under a key as a file of its own."""
        places = {location[1:]: place for location, place in self.places.items() if location[:1] == (key,)}
        return YamlFile(self.path, self.data[key], places)


def shown(path: Path) -> str:
    """A path as a person would write it: relative to the current folder where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def parse(text: str) -> Any:
    """A value as it would be read from a file."""
    return yaml.load(text, _Loader)  # a safe loader: plain data only


def read_yaml(path: Path) -> YamlFile:
    """Reads a mapping.

    Raises:
        NasplatError: the file is missing, a folder, empty, not YAML, holds a key twice, or is no mapping of keys.
    """
    text = _text(path)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        places: dict[Location, str] = {}
        if node is not None:
            _collect_places(loader, node, (), shown(path), places)
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown(path)}, line {mark.line + 1}" if mark else shown(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise NasplatError(
            f"{where}: this is not YAML: {problem}", "check indentation, colons and quotes there"
        ) from error
    finally:
        loader.dispose()
    if data is None:
        raise NasplatError(
            f"{shown(path)} is empty", "an experiment needs at least a line such as: space: search_spaces/darts.yaml"
        )
    if not isinstance(data, dict):
        raise NasplatError(
            f"{shown(path)}, line 1: expected keys with values, found {_kind(data)}",
            "write lines such as: name: my-search",
        )
    return YamlFile(path, data, places)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NasplatError(f"there is no file {shown(path)}", _files_nearby(path)) from error
    except IsADirectoryError as error:
        raise NasplatError(f"{shown(path)} is a folder, not a file", _files_nearby(path / "x.yaml")) from error
    except UnicodeDecodeError as error:
        raise NasplatError(f"{shown(path)} is not a text file", "name a YAML file") from error
    except OSError as error:
        raise NasplatError(
            f"{shown(path)} cannot be read: {error.strerror}", "check the path and its permissions"
        ) from error


def _files_nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {shown(folder)} either; you are in {Path.cwd()}"
    names = sorted(entry.name for entry in folder.glob("*.y*ml"))
    where = "the current folder" if folder.resolve() == Path.cwd() else shown(folder)
    if not names:
        return f"{where} holds no YAML file"
    return f"{nearest(path.name, names)}{where} holds {', '.join(names[:12])}"


def _kind(data: Any) -> str:
    if isinstance(data, list):
        return "a list"
    return "text" if isinstance(data, str) else f"the value {data!r}"


def _collect_places(
    loader: yaml.SafeLoader, node: yaml.Node, location: Location, name: str, places: dict[Location, str]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise NasplatError(f"{name}, line {line}: a key must be a word", "quote it, or write it as a list item")
            here = (*location, key)
            if here in places and key_node.tag != "tag:yaml.org,2002:merge":
                raise NasplatError(
                    f"{name}, line {line}: the key {key!r} stands there a second time (first: {places[here]})",
                    "keep one of the two",
                )
            places[here] = f"{name}, line {line}"
            _collect_places(loader, value_node, here, name, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*location, index)] = f"{name}, line {item.start_mark.line + 1}"
            _collect_places(loader, item, (*location, index), name, places)
