"""The JSON Schemas of experiment, pruning and distillation files, by which editors complete, explain and check them."""

from __future__ import annotations

from typing import Any

from nasplat.core.distillation_file import DistillationFile
from nasplat.core.experiment import Experiment
from nasplat.core.pruning import PruningFile
from nasplat.jobs.experiment import KNOWN_NAMES, family_parameters

DRAFT = "https://json-schema.org/draft/2020-12/schema"
USER_FUNCTION = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "module:function of your own"}


def experiment_schema() -> dict[str, Any]:
    """The schema of the pydantic models, with the names of objectives, probes and families filled in."""
    from nasplat.spaces.families import FAMILIES

    schema = Experiment.model_json_schema()
    _fill_in_names(schema)
    parameters: dict[str, list[str]] = {}
    for family in FAMILIES:
        for name in family_parameters(family):
            parameters.setdefault(name, []).append(family)
    space = schema["properties"]["space"]
    space.pop("type", None)
    space["anyOf"] = [
        {"type": "string", "description": "a YAML file, such as search_spaces/darts.yaml"},
        {
            "type": "object",
            "required": ["family", "function"],
            "properties": {"family": {"const": "user"}, "function": USER_FUNCTION},
            "description": "a function of your own that asks nasplat.choice; further keys are passed to it",
        },
        {
            "type": "object",
            "required": ["family"],
            "properties": {
                "family": {"enum": [family for family in FAMILIES if family != "user"]},
                **{name: {"description": f"of {', '.join(families)}"} for name, families in parameters.items()},
            },
            "additionalProperties": False,
        },
    ]
    return {"$schema": DRAFT, **schema, "title": "nasplat experiment"}


def pruning_schema() -> dict[str, Any]:
    """The same of pruning files."""
    schema = PruningFile.model_json_schema()
    _fill_in_names(schema)
    return {"$schema": DRAFT, **schema, "title": "nasplat pruning"}


def distillation_schema() -> dict[str, Any]:
    """The same of distillation files."""
    schema = DistillationFile.model_json_schema()
    _fill_in_names(schema)
    return {"$schema": DRAFT, **schema, "title": "nasplat distillation"}


SCHEMAS = {"experiment": experiment_schema, "pruning": pruning_schema, "distillation": distillation_schema}


def _fill_in_names(schema: dict[str, Any]) -> None:
    """Writes into a schema which names stand for parts of nasplat, beside functions of the user's own."""
    for (section, key), names in KNOWN_NAMES.items():
        if str(section).capitalize() not in schema["$defs"]:
            continue
        node = schema["$defs"][str(section).capitalize()]["properties"][key]
        node.pop("type", None)
        optional = [{"type": "null"}] if node.get("default") is None else []
        node["anyOf"] = [{"enum": list(names)}, USER_FUNCTION, *optional]
