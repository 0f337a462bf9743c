"""Which device a network runs on, and in which precision and memory format it is trained there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from nasplat.core.errors import Infeasible, NasplatError
from nasplat.core.experiment import Train

_REGISTER = 16  # single-precision numbers in the widest vector register of a CPU


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a network is trained.

    Args:
        device: of the weights, the images and every draw.
        dtype: `torch.bfloat16` trains under autocast; weights and batch norm statistics stay in float32.
        channels_last: images and convolution weights in the memory format NHWC.
    """

    device: torch.device
    dtype: torch.dtype
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[object]:
        """For the forward pass and the loss. Nothing at all in float32, where even an idle autocast costs time."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def resolve_device(name: str = "auto") -> torch.device:
    """The device that a name stands for; `auto` is the first GPU where there is one.

    Raises:
        NasplatError: an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise NasplatError(f"unknown device {name!r}", "use auto, cpu, cuda or cuda:0") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type == "cuda" and torch.cuda.is_available():
        device = torch.device("cuda", device.index or 0)
        if device.index < torch.cuda.device_count():
            return device
        raise NasplatError(f"there is no {name}: this machine has {torch.cuda.device_count()} GPUs", "use auto")
    if device.type == "mps" and torch.backends.mps.is_available():
        return device
    raise NasplatError(f"the device {name!r} is not available on this machine", "use auto or cpu")


def overruns(network: nn.Module) -> str:
    """The first layer, if any, whose gradient oneDNN writes past its memory in channels_last; torch 2.13 has the fault.

    These are 1×1 convolutions with a stride and fewer input channels than a vector register holds: runs end in a
    segmentation fault, or in wrong numbers.
    """
    for name, module in network.named_modules():
        strided = isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and max(module.stride) > 1
        if strided and module.in_channels // module.groups < _REGISTER:  # type: ignore[operator]
            return name
    return ""


def place(settings: Train, device: torch.device, network: nn.Module | None = None) -> Placement:
    """Precision and memory format for a device. What the settings say comes first; `auto` means:

    - CUDA: bfloat16 and channels_last where the GPU has tensor cores for them (compute capability 8.0).
    - CPU: float32, channels_last. With channels_last a cell of 8 channels trained 1.0 to 2.0 times as fast, plain
      convolutions 1.1 times. bfloat16 stays a choice (`precision: bfloat16`) even where the processor has AMX: plain
      3x3 convolutions then trained 2 to 3 times as fast, separable ones at 0.4 to 1.1 times, and without AMX
      everything was slower. The choice must not depend on the candidate, or a search would compare precisions.

    Args:
        network: what is to be trained: on a CPU it does without channels_last where `overruns` says so.

    Raises:
        NasplatError: bfloat16 was asked of a GPU that does not have it, or channels_last of a network that must not.
    """
    has_tensor_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if settings.precision == "bfloat16" and device.type == "cuda" and not has_tensor_cores:
        raise NasplatError(f"precision: {device} does not calculate in bfloat16", "use precision: auto")
    bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and has_tensor_cores)
    channels_last = settings.channels_last
    if channels_last == "auto":
        channels_last = has_tensor_cores or device.type == "cpu"
    if channels_last and device.type == "cpu" and network is not None and (layer := overruns(network)):
        if settings.channels_last is True:
            raise NasplatError(
                f"channels_last: on CPUs the gradient of layer {layer!r} would overwrite other memory",
                "use channels_last: auto",
            )
        channels_last = False
    return Placement(device, torch.bfloat16 if bfloat16 else torch.float32, bool(channels_last))


def set_threads(threads: int) -> None:
    """CPU threads of this process. The number is part of what makes scores repeatable: sums are split by it."""
    torch.set_num_threads(threads)


@contextmanager
def memory_guard(doing: str) -> Iterator[None]:
    """Turns running out of memory into `Infeasible`: a finding about the candidate, and no reason to stop a search."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"out of memory while {doing}: {reason}"
        raise Infeasible(message, "a smaller batch_size needs less") from error


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU torch raises a plain RuntimeError, which only its text tells from others.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch's default generators for the while, and gives them back as they were.

    No step of nasplat draws from them, but a module that is made does, and a user's dropout. On CUDA, cuDNN is held
    to its deterministic algorithms: the same seed is to give the same score in every executor.
    """
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before
