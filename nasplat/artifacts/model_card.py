"""The model card: what an exported network is, and how it is loaded without nasplat."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from nasplat.artifacts.metric_names import label, text
from nasplat.artifacts.run_directory import short
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
        mean, std: a channel, of pixels in 0..1; the network's input is `(pixels / 255 - mean) / std` of bytes.
        pixels: how raw values that are no bytes become bytes, in sentences.
        classes: names, in the order of the logits.
        trial: of the search, where the architecture was found.
        searched: its digest there; another than that of the exported one where it was rebuilt at another size.
        notes: sentences that a reader should know.
        origin: what it is, in a sentence.
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
    pixels: str = ""
    classes: Sequence[str] = ()
    trial: int | None = None
    searched: str = ""
    notes: Sequence[str] = ()
    origin: str = "An image network found by nasplat."


LARGEST_PIXEL = 255  # images are uint8 wherever nasplat trains on them

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
    "load.py": (
        "makes the network again with torch and safetensors alone, to train it on or to change it",
        "from load import load\nnetwork = load()  # an ordinary torch module",
    ),
    "recipe.json": (
        "what was done to the original network, as plain data, and a digest",
        'from nasplat.networks.rebuild import load_pruned  # checks the hashes, too\nnetwork = load_pruned(".")',
    ),
    "architecture.json": (
        "the choices that make the architecture, and its digest",
        'import json\narchitecture = json.load(open("architecture.json"))\nprint(architecture["values"])',
    ),
}


class Description(Protocol):
    """What tells a network apart from others, as plain data: an `Architecture`, or a `Recipe`.

    Attributes:
        filename: under which it lies beside the weights.
        digest: of the whole.
        values: what a reader wants to see of it.
    """

    filename: ClassVar[str]

    @property
    def digest(self) -> str: ...

    @property
    def values(self) -> Mapping[str, Any]: ...

    def to_json(self) -> dict[str, Any]: ...

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Description: ...


def metadata(card: ModelCard, architecture: Description) -> dict[str, str]:
    """What travels within the files themselves, as texts: lists as JSON, numbers at full precision."""
    texts = {"digest": architecture.digest}
    if _rebuilt(card, architecture):
        texts["searched_digest"] = card.searched
    if card.mean and card.std:
        texts |= {
            "preprocessing": "(pixels * input_scale - mean) / std, pixels as bytes 0..255, mean and std a channel",
            "input_scale": repr(1 / LARGEST_PIXEL),
            "mean": json.dumps([float(value) for value in card.mean]),
            "std": json.dumps([float(value) for value in card.std]),
        }
    if card.classes:
        texts["classes"] = json.dumps([str(name) for name in card.classes], ensure_ascii=False)
    return texts


def _rebuilt(card: ModelCard, architecture: Description) -> bool:
    return bool(card.searched) and card.searched != architecture.digest


def model_card(
    card: ModelCard,
    architecture: Description,
    input_shape: Sequence[int],
    outputs: Mapping[str, Sequence[int]],
    differences: Mapping[str, float],
) -> str:
    """The card as Markdown.

    Args:
        card: what the exporter knows.
        architecture: what describes the exported network.
        input_shape: `(C, H, W)`.
        outputs: name and shape without the batch.
        differences: of every exported file, the largest absolute difference of its outputs from the module's.
    """
    parts = [
        f"# {card.name}: {_heading(card, architecture)}",
        f"{card.origin} Every file here was loaded back, and its outputs were compared with those "
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
    parts += ["## Input and output", _preparation(card, input_shape, outputs, differences)]
    parts.append("## Files, and how to load them without nasplat")
    for name, (what, code) in LOADING.items():
        if name in differences:
            verdict = "" if name == architecture.filename else f"; {_verdict(differences[name])}"
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
    card: ModelCard, architecture: Description, input_shape: Sequence[int], outputs: Mapping[str, Sequence[int]]
) -> list[tuple[str, str]]:
    facts = [("digest", f"`{architecture.digest}`")]
    if card.trial is not None:
        found = f"trial {card.trial} of the search"
        if _rebuilt(card, architecture):
            found += f", as `{card.searched}`; rebuilt at another size, which has the digest above"
        facts.append(("found as", found))
    facts += [(f"data: {key}", str(value)) for key, value in card.data.items()]
    if card.seed is not None:
        facts.append(("seed", str(card.seed)))
    facts.append(("input", _shape(input_shape)))
    facts += [(f"output `{name}`", _shape(shape)) for name, shape in outputs.items()]
    if card.versions:
        facts.append(("versions", ", ".join(f"{name} {number}" for name, number in card.versions.items())))
    return facts


def _heading(card: ModelCard, architecture: Description) -> str:
    """Both digests where there are two: that of the search, after which the folder is named, and the network's own."""
    own = short(architecture.digest)
    return f"{short(card.searched)}, rebuilt as {own}" if _rebuilt(card, architecture) else own


def _costs(cost: Cost | None) -> dict[str, float]:
    return {} if cost is None else {"macs": cost.macs, "params": cost.params, "peak_bytes": cost.peak_bytes}


def _preparation(
    card: ModelCard, input_shape: Sequence[int], outputs: Mapping[str, Sequence[int]], files: Collection[str]
) -> str:
    lines = [f"Input: float32 images `{_shape(input_shape)}`, any N."]
    if card.mean and card.std:
        mean, std = ([round(float(value), 6) for value in values] for values in (card.mean, card.std))
        lines.append(
            f"Take pixels as bytes, whole numbers 0..{LARGEST_PIXEL}. Divide them by {LARGEST_PIXEL}, then subtract "
            f"the mean and divide by the standard deviation of their channel: `(pixels / {LARGEST_PIXEL} - mean) / "
            f"std` with mean {mean} and std {std}."
        )
    if card.pixels:
        lines.append(card.pixels)
    lines.append("Output: " + ", ".join(f"`{name}` `{_shape(shape)}`" for name, shape in outputs.items()) + ".")
    if card.classes:
        lines.append("Classes, in order: " + ", ".join(str(name) for name in card.classes) + ".")
    carriers = [f"`{name}`" for name in ("model.onnx", "weights.safetensors") if name in files]
    if carriers and card.mean:
        lines.append(f"The metadata within {' and '.join(carriers)} say the same, at full precision.")
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
