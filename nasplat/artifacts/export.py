"""Networks as files that load without nasplat, each compared with the network before it counts as done.

Torch, ONNX and onnxruntime are imported when something is exported, not before.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import runpy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasplat.artifacts.files import atomic_folder, read_json, write_bytes, write_json, write_text
from nasplat.artifacts.model_card import Description, ModelCard, metadata, model_card
from nasplat.artifacts.recipe import RECIPE
from nasplat.artifacts.weights import load_into, save_weights
from nasplat.core.architecture import Architecture
from nasplat.core.errors import NasplatError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    Outputs = dict[str, Tensor]

FORMATS = ("safetensors", "onnx", "torch_export")
WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"
PROGRAM = "model.pt2"
CARD = "README.md"
EXTRA = "load.py"
INPUT = "images"
BATCH = "batch"

# Neither is the batch of the trace (2): a size that was baked in shows.
_BATCHES = (1, 3)
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Args:
        directory: all of it lies there.
        files: their names, the model card last.
        differences: file and the largest absolute difference of its outputs from the network's.
    """

    directory: Path
    files: tuple[str, ...]
    differences: Mapping[str, float]


def export(
    network: nn.Module,
    description: Description,
    input_shape: Sequence[int],
    directory: Path | str,
    formats: Sequence[str] = FORMATS,
    card: ModelCard | None = None,
    output_names: Sequence[str] = (),
    script: str = "",
) -> Exported:
    """Writes the description, the formats that are asked for, and a model card; all of them or nothing.

    Every file is loaded back, and its outputs on random images, at two batch sizes, are compared with the network's.
    An earlier export in the same directory is replaced as a whole, since its files belong to other weights.

    Args:
        network: in any mode on any device; it is not changed. Takes `(N, C, H, W)`, returns a tensor or several by
            name.
        description: of the network: an `Architecture`, or the `Recipe` of a pruned one.
        input_shape: `(C, H, W)`.
        directory: to write; made where it is not there.
        formats: of `FORMATS`.
        card: what the model card should say; what one needs to prepare images also goes into the files.
        output_names: of what the network returns, where it returns no dict; `output` where there are none.
        script: text of a load.py with a function `load()` that makes the network from the other files; it is run once.

    Raises:
        NasplatError: an unknown format, a directory that holds other files, a network that a backend cannot express, a
            backend that is missing, outputs that differ, or a full disk.
    """
    directory = Path(directory)
    card = card or ModelCard("network")
    _check(formats, directory)
    module = _frozen(network)
    examples = [_images(batch, input_shape) for batch in _BATCHES]
    expected = [_outputs(module, images, output_names) for images in examples]
    _check_finite(expected)
    names = tuple(expected[0])
    texts = metadata(card, description)
    differences: dict[str, float] = {}
    with atomic_folder(directory) as folder:
        write_json(folder / description.filename, description.to_json())
        if type(description).from_json(read_json(folder / description.filename)).digest != description.digest:
            raise NasplatError(f"{description.filename} read back is another network")
        differences[description.filename] = 0.0
        if "safetensors" in formats:
            save_weights(module, folder / WEIGHTS, {**texts, "format": "pt"})
            differences[WEIGHTS] = _compare(
                WEIGHTS, _weights_runner(module, folder / WEIGHTS, names), examples, expected
            )
        if script:
            write_text(folder / EXTRA, script)
            differences[EXTRA] = _compare(EXTRA, _script_runner(folder / EXTRA, names), examples, expected)
        if {"onnx", "torch_export"} & set(formats):
            program = _traced(module, input_shape)
            if "torch_export" in formats:
                _write_program(program, folder / PROGRAM)
                differences[PROGRAM] = _compare(PROGRAM, _program_runner(folder / PROGRAM, names), examples, expected)
            if "onnx" in formats:
                _write_onnx(program, folder / ONNX, names, texts)
                differences[ONNX] = _compare(ONNX, _onnx_runner(folder / ONNX, names), examples, expected)
        shapes = {name: tuple(value.shape[1:]) for name, value in expected[0].items()}
        write_text(folder / CARD, model_card(card, description, input_shape, shapes, differences))
    return Exported(directory, (*differences, CARD), differences)


def _check(formats: Sequence[str], directory: Path) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise NasplatError(f"unknown export format {unknown[0]!r}", f"the formats are {', '.join(FORMATS)}")
    if directory.exists() and not directory.is_dir():
        raise NasplatError(f"cannot export to {directory}: it is a file", "choose another folder")
    own = {Architecture.filename, RECIPE, WEIGHTS, ONNX, PROGRAM, CARD, EXTRA}
    others = sorted(path.name for path in directory.iterdir() if path.name not in own) if directory.exists() else []
    if others:
        raise NasplatError(
            f"{directory} holds files that are not of an export, such as {others[0]}", "choose an empty or a new folder"
        )


def _frozen(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and evaluation mode, without gradients."""
    module = copy.deepcopy(network).cpu().float().eval()
    return module.requires_grad_(False)


def _images(batch: int, input_shape: Sequence[int]) -> Tensor:
    import torch

    return torch.randn(batch, *input_shape, generator=torch.Generator().manual_seed(batch))


def _outputs(module: Callable[[Tensor], Any], images: Tensor, names: Sequence[str]) -> Outputs:
    """Outputs by name, whatever the module returns; without names `output`, or `output_0` and so on."""
    import torch

    with torch.inference_mode():
        outputs = module(images)
    if isinstance(outputs, Mapping):
        return dict(outputs)
    several = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    given = names or (["output"] if len(several) == 1 else [f"output_{index}" for index in range(len(several))])
    if len(given) != len(several) or not all(isinstance(value, torch.Tensor) for value in several):
        raise NasplatError(
            f"the network returns {len(several)} outputs, where {', '.join(given)} is expected",
            "a network returns a tensor, a tuple of tensors, or a dict of them",
        )
    return dict(zip(given, several, strict=True))


def _check_finite(expected: list[Outputs]) -> None:
    for outputs in expected:
        for name, value in outputs.items():
            if not value.isfinite().all():
                raise NasplatError(
                    f"the network's output {name!r} is not finite on random images",
                    "its weights are broken; train it again",
                )


def _compare(
    file: str, run: Callable[[Tensor], Outputs], examples: Sequence[Tensor], expected: Sequence[Outputs]
) -> float:
    """The largest absolute difference of a file's outputs. Raises NasplatError where it is too large."""
    largest = 0.0
    for images, wanted in zip(examples, expected, strict=True):
        try:
            found = run(images)
        except NasplatError:
            raise
        except Exception as error:
            reason = f"{file} cannot be run at batch size {len(images)}: {_first_line(error)}"
            raise NasplatError(reason, "the network may treat the batch size as a constant") from error
        for name, value in wanted.items():
            other = found.get(name)
            if other is None or other.shape != value.shape:
                shape = None if other is None else tuple(other.shape)
                raise NasplatError(f"{file}: output {name!r} has shape {shape}, the network's {tuple(value.shape)}")
            difference = float((other - value).abs().max()) if value.numel() else 0.0
            allowed = _ABSOLUTE + _RELATIVE * float(value.abs().max()) if value.numel() else 0.0
            if not difference <= allowed:  # also where it is not a number
                raise NasplatError(
                    f"{file} does not compute what the network does: output {name!r} differs by {difference:.3g} at "
                    f"batch size {len(images)}",
                    "nothing was exported; does the network draw random numbers or keep state in evaluation mode?",
                )
            largest = max(largest, difference)
    return largest


def _weights_runner(module: nn.Module, path: Path, names: Sequence[str]) -> Callable[[Tensor], Outputs]:
    """The network with its weights wiped and read back from the file."""
    empty = copy.deepcopy(module)
    for tensor in empty.state_dict().values():
        tensor.zero_()
    load_into(empty, path)
    return lambda images: _outputs(empty, images, names)


def _script_runner(path: Path, names: Sequence[str]) -> Callable[[Tensor], Outputs]:
    loaded = runpy.run_path(str(path))["load"]()
    return lambda images: _outputs(loaded.eval(), images, names)


def _traced(module: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    import torch

    batch = torch.export.Dim(BATCH, min=1)
    with _backend("torch.export"):
        program = torch.export.export(module, (_images(2, input_shape),), dynamic_shapes=({0: batch},), strict=False)
    for node in program.graph.nodes:  # where in whose files it was traced is nobody's business
        node.meta.pop("stack_trace", None)
    return program


def _write_program(program: ExportedProgram, path: Path) -> None:
    import torch

    content = io.BytesIO()
    with _backend("torch.export"):
        torch.export.save(program, content)
    write_bytes(path, content.getvalue())


def _program_runner(path: Path, names: Sequence[str]) -> Callable[[Tensor], Outputs]:
    import torch

    with _backend("torch.export"):
        loaded = torch.export.load(path).module()
    return lambda images: _outputs(loaded, images, names)


def _write_onnx(program: ExportedProgram, path: Path, names: Sequence[str], texts: Mapping[str, str]) -> None:
    import torch

    with _backend("ONNX export"):
        from onnx.helper import set_model_props

        model = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(names),
            dynamic_shapes=({0: BATCH},),  # only names the dimension, which else goes by a symbol of the trace
            verbose=False,
            external_data=False,
        )
        if model is None:
            raise RuntimeError("the exporter returned nothing")
        proto = model.model_proto
        # The exporter's notes on how it came by each node are half of the file.
        for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
            for node in nodes:
                node.ClearField("metadata_props")
        set_model_props(proto, dict(texts))
        content = proto.SerializeToString()
    write_bytes(path, content)


def _onnx_runner(path: Path, names: Sequence[str]) -> Callable[[Tensor], Outputs]:
    import torch

    with _backend("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Outputs:
        values = session.run(list(names), {INPUT: images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


@contextlib.contextmanager
def _backend(name: str) -> Iterator[None]:
    """Silences a backend's chatter, and turns what it raises into a NasplatError."""
    loggers = [logging.getLogger(each) for each in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise NasplatError(
            f"{name} needs a package that is not here: {error}", "pip install onnx onnxscript onnxruntime"
        ) from error
    except Exception as error:
        raise NasplatError(
            f"{name} failed: {_first_line(error)}",
            "the network uses something that this format cannot express; leave the format out, or change the network",
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
