"""A validation error of pydantic in the words of someone who writes experiment files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from nasplat.core.errors import NasplatError, nearest
from nasplat.core.experiment import Experiment
from nasplat.core.section import Section
from nasplat.jobs.yaml_file import Location, YamlFile

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def dotted(location: Location) -> str:
    return ".".join(str(key) for key in location)


def explain(
    error: ValidationError, source: YamlFile, section: Location = (), what: type[Section] = Experiment
) -> NasplatError:
    """What is wrong in one line and what to do in another; of several mistakes each in a line of its own.

    Args:
        section: where in the file the validated data stand: the whole of it, or ("final", "train"), whose keys are
            those of the section train.
        what: the file as a whole.
    """
    data: Any = source.data
    for key in section:
        data = data[key]
    found: dict[Location, _Mistake] = {}
    for one in sorted(error.errors(), key=lambda one: one["type"] == "missing"):
        inside = _without_branches(one["loc"], data)
        if inside not in found and not _mistyped(one, inside, found):
            found[inside] = _mistake(one, inside, source, section, what.model_json_schema())
    order = {location: number for number, location in enumerate(source.places)}
    mistakes = [
        found[inside] for inside in sorted(found, key=lambda inside: order.get((*section, *inside), len(order)))
    ]
    if len(mistakes) == 1:
        return NasplatError(mistakes[0].what, mistakes[0].hint + mistakes[0].advice)
    lines = [f"{one.what}; {one.hint.strip() or one.advice}" for one in mistakes]
    return NasplatError(
        f"the {what.__name__.removesuffix('File').lower()} has {len(mistakes)} mistakes", "\n".join(lines)
    )


@dataclass(frozen=True)
class _Mistake:
    """What is wrong, and where; `did you mean …` if a name is near; and what is allowed."""

    what: str
    hint: str
    advice: str


def _mistyped(error: ErrorDetails, inside: Location, found: Mapping[Location, _Mistake]) -> bool:
    """Whether a key is missing because it stands there mistyped, which is told already."""
    beside = [other for location, other in found.items() if location[:-1] == inside[:-1]]
    return error["type"] == "missing" and any(f"{inside[-1]!r}" in other.hint for other in beside)


def _mistake(
    error: ErrorDetails, inside: Location, source: YamlFile, section: Location, schema: Mapping[str, Any]
) -> _Mistake:
    place, key = source.place((*section, *inside)), dotted((*section, *inside))
    described = ("train", *inside) if section else inside
    if error["type"] == "extra_forbidden":
        known = list(_node(schema, described[:-1]).get("properties", {}))
        parent = dotted((*section, *inside[:-1]))
        article = {"Experiment": "an experiment"}.get(schema["title"], "a pruning")
        holder = f"section {parent} has" if parent else f"{article} has"
        what = f"{place}: {holder} no key {str(inside[-1])!r}"
        return _Mistake(what, nearest(str(inside[-1]), known), f"allowed: {', '.join(known)}")
    if error["type"] == "missing":
        return _Mistake(f"{place}: the key {key} is missing", "", f"add it: {_expected(schema, described)}")
    if error["type"] == "value_error":
        reason = error["msg"].removeprefix("Value error, ")
        return _Mistake(f"{place}: {key + ': ' if key else ''}{reason}", "", "change it there")
    given = "a section with keys" if isinstance(error["input"], dict) else repr(error["input"])
    hint = nearest(str(error["input"]), _options(schema, described))
    return _Mistake(f"{place}: {key} cannot be {given}", hint, f"allowed: {_expected(schema, described)}")


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
        sections = [branch for branch in node.get("anyOf", ()) if "$ref" in branch]
        if len(sections) == 1:  # a section that may be left out
            node = sections[0]
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
    if "properties" in node:
        keys = ", ".join(node["properties"])
        required = node.get("required", ["KEY"])[0]
        return f"a section with keys ({keys}), for instance {{{required}: {_example(node, required)}}}"
    description = node.get("description")
    return f"{words} ({description})" if description else words


def _example(node: Mapping[str, Any], key: str) -> str:
    options = node["properties"].get(key, {}).get("enum", ["…"])
    return str(options[0])


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
