"""The model card: what an exported network is, and how it is loaded without nasplat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nasplat.artifacts.metric_names import label, text
from nasplat.core.architecture import Architecture
from nasplat.core.cost import Cost


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the one who exports knows of a network; what is unknown is left out of the card.

    Args:
        name: of the experiment.
        data: what it was trained on: source, number of images, fingerprint, in any words.
        seed: of the training.
        cost: of the network as it is exported.
        metrics: what was measured, on which split goes by the name (`accuracy` is validation).
        versions: as `nasplat.artifacts.environment.versions` tells them.
        space: the family and its parameters.
        training: the settings of the training.
        mean, std: a channel; images are scaled to 0..1, then `(image - mean) / std`.
        classes: names, in the order of the logits.
        notes: sentences that a reader should know.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    cost: Cost | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    classes: Sequence[str] = ()
    notes: Sequence[str] = ()


# File -> what it is, how it is loaded without nasplat in three lines.
LOADING: dict[str, tuple[str, str]] = {
    "model.onnx": (
        "ONNX, for onnxruntime and whatever else reads ONNX",
        'import onnxruntime\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        'outputs = session.run(None, {"images": images})  # images: a float32 array (N, C, H, W)',
    ),
    "model.pt2": (
        "a torch.export program, for PyTorch without the code of the network",
        'import torch\nnetwork = torch.export.load("model.pt2").module()\n'
        "outputs = network(images)  # images: a float32 tensor (N, C, H, W)",
    ),
    "weights.safetensors": (
        "the weights by name",
        'from safetensors.torch import load_file\nweights = load_file("weights.safetensors")\n'
        "network.load_state_dict(weights)  # the module of model.pt2, or one of your own with these names",
    ),
    "architecture.json": (
        "the choices that make the architecture, and its digest",
        'import json\narchitecture = json.load(open("architecture.json"))\nprint(architecture["values"])',
    ),
}


def model_card(
    card: ModelCard,
    architecture: Architecture,
    input_shape: Sequence[int],
    outputs: Mapping[str, Sequence[int]],
    differences: Mapping[str, float],
) -> str:
    """The card as Markdown.

    Args:
        card: what the exporter knows.
        architecture: the exported one.
        input_shape: `(C, H, W)`.
        outputs: name and shape without the batch.
        differences: of every exported file, the largest absolute difference of its outputs from the module's.
    """
    parts = [
        f"# {card.name}: {architecture.digest[:8]}",
        "An image network found by nasplat. Every file here was loaded back, and its outputs were compared with those "
        "of the network it was made from.",
        _table(("", ""), _facts(card, architecture, input_shape, outputs)),
    ]
    measured = {**_costs(card.cost), **card.metrics}
    if measured:
        rows = [(label(name), text(name, value), _exact(value)) for name, value in measured.items()]
        parts += ["## What it costs and how good it is", _table(("", "", "exactly"), rows)]
        parts.append(
            "MACs are multiply-accumulates at batch 1 of convolutions, linear layers and matrix products "
            '(what the literature calls "FLOPs"); peak activations are at batch 1 in float32.'
        )
    parts += ["## Input and output", _preparation(card, input_shape, outputs)]
    parts.append("## Files, and how to load them without nasplat")
    for name, (what, code) in LOADING.items():
        if name in differences:
            verdict = "" if name == "architecture.json" else f"; {_verdict(differences[name])}"
            parts += [f"**{name}** — {what}{verdict}", f"```python\n{code}\n```"]
    for title, settings in (("Training", card.training), ("Search space", card.space)):
        if settings:
            shown = json.dumps(dict(settings), indent=2, ensure_ascii=False, default=str)
            parts += [f"## {title}", f"```json\n{shown}\n```"]
    parts += ["## Architecture", f"```json\n{json.dumps(dict(architecture.values), indent=2)}\n```"]
    if card.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in card.notes)]
    return "\n\n".join(parts) + "\n"


def _facts(
    card: ModelCard, architecture: Architecture, input_shape: Sequence[int], outputs: Mapping[str, Sequence[int]]
) -> list[tuple[str, str]]:
    facts = [("digest", f"`{architecture.digest}`")]
    facts += [(f"data: {key}", str(value)) for key, value in card.data.items()]
    if card.seed is not None:
        facts.append(("seed", str(card.seed)))
    facts.append(("input", _shape(input_shape)))
    facts += [(f"output `{name}`", _shape(shape)) for name, shape in outputs.items()]
    if card.versions:
        facts.append(("versions", ", ".join(f"{name} {number}" for name, number in card.versions.items())))
    return facts


def _costs(cost: Cost | None) -> dict[str, float]:
    return {} if cost is None else {"macs": cost.macs, "params": cost.params, "peak_bytes": cost.peak_bytes}


def _preparation(card: ModelCard, input_shape: Sequence[int], outputs: Mapping[str, Sequence[int]]) -> str:
    lines = [f"Input: float32 images `{_shape(input_shape)}`, any N."]
    if card.mean and card.std:
        mean, std = ([round(float(value), 6) for value in values] for values in (card.mean, card.std))
        lines.append(
            f"Scale the pixels to 0..1, then `(image - mean) / std` with mean {mean} and std {std}, a channel."
        )
    lines.append("Output: " + ", ".join(f"`{name}` `{_shape(shape)}`" for name, shape in outputs.items()) + ".")
    if card.classes:
        lines.append("Classes, in order: " + ", ".join(str(name) for name in card.classes) + ".")
    return "\n".join(lines)


def _shape(shape: Sequence[int]) -> str:
    return f"(N, {', '.join(str(side) for side in shape)})"


def _exact(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.6g}"


def _verdict(difference: float) -> str:
    return "equal to the network" if difference == 0 else f"largest difference from the network {difference:.1e}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
