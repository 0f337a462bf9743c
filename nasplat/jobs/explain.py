"""A validation error of pydantic in the words of someone who writes experiment files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Experiment
from nasplat.jobs.yaml_file import Location, YamlFile, nearest


def dotted(location: Location) -> str:
    return ".".join(str(key) for key in location)


def explain(error: ValidationError, source: YamlFile, section: Location = ()) -> NasplatError:
    """The first error as one line of what is wrong and one of what to do.

    Args:
        section: where in the file the validated data stand: the whole of it, or ("final", "train"), whose keys are
            those of the section train.
    """
    data: Any = source.data
    for key in section:
        data = data[key]
    # A mistyped key is an unknown one and perhaps a missing one: the first of the two says what to do.
    errors = sorted(error.errors(), key=lambda one: one["type"] == "missing")
    locations = [_without_branches(one["loc"], data) for one in errors]
    first, inside = errors[0], locations[0]
    place, key = source.place((*section, *inside)), dotted((*section, *inside))
    described = ("train", *inside) if section else inside
    schema = Experiment.model_json_schema()
    more = len(set(locations)) - 1
    rest = f" ({more} more after this one)" if more else ""
    if first["type"] == "extra_forbidden":
        known = list(_node(schema, described[:-1]).get("properties", {}))
        parent = dotted((*section, *inside[:-1]))
        holder = f"section {parent} has" if parent else "an experiment has"
        advice = f"{nearest(str(inside[-1]), known)}allowed: {', '.join(known)}"
        return NasplatError(f"{place}: {holder} no key {str(inside[-1])!r}{rest}", advice)
    if first["type"] == "missing":
        return NasplatError(f"{place}: the key {key} is missing{rest}", f"add it: {_expected(schema, described)}")
    if first["type"] == "value_error":
        reason = first["msg"].removeprefix("Value error, ")
        return NasplatError(f"{place}: {key + ': ' if key else ''}{reason}{rest}", "change it there")
    given = "a section with keys" if isinstance(first["input"], dict) else repr(first["input"])
    hint = nearest(str(first["input"]), _options(schema, described))
    return NasplatError(f"{place}: {key} cannot be {given}{rest}", f"{hint}allowed: {_expected(schema, described)}")


def _without_branches(location: Location, data: Any) -> Location:
    """pydantic appends the branch of a union to a location; what lies below a scalar is such a branch."""
    kept: list[Any] = []
    for key in location:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            break
        kept.append(key)
    return tuple(kept)


def _node(schema: Mapping[str, Any], location: Location) -> Mapping[str, Any]:
    """The part of a JSON Schema that describes a key; empty where anything goes."""
    node: Mapping[str, Any] = schema
    for key in (None, *location):
        if key is not None:
            if isinstance(key, int):
                node = node.get("items", {})
            else:
                extra = node.get("additionalProperties")
                node = node.get("properties", {}).get(key) or (extra if isinstance(extra, dict) else {})
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _options(schema: Mapping[str, Any], location: Location) -> list[str]:
    node = _node(schema, location)
    branches = node.get("anyOf", [node])
    found = [option for branch in branches for option in branch.get("enum", [branch.get("const")])]
    return [str(option) for option in found if option is not None]


def _expected(schema: Mapping[str, Any], location: Location) -> str:
    """What a key may hold, in words."""
    node = _node(schema, location)
    branches = [branch for branch in node.get("anyOf", [node]) if branch.get("type") != "null"]
    words = " or ".join(_words(branch) for branch in branches)
    description = node.get("description")
    return f"{words} ({description})" if description else words


def _words(node: Mapping[str, Any]) -> str:
    if "enum" in node or "const" in node:
        return ", ".join(str(option) for option in node.get("enum", [node.get("const")]))
    limits = [
        f"{word} {node[key]:g}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in node
    ]
    kind = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "array": "a list such as [a, b]",
        "object": "a section with keys",
        "string": "text",
    }.get(str(node.get("type")), "a section with keys" if "$ref" in node else "another value")
    if node.get("pattern"):
        kind += f" that matches {node['pattern']}"
    return " ".join([kind, " and ".join(limits)]).strip()
