"""Without these a user would be told of a missing GPU by a traceback, or train in a precision that their machine does
slowly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nasplat.core.errors import Infeasible, NasplatError
from nasplat.training.devices import memory_guard, place, repeatable, resolve_device, set_threads
from tests.training.toys import settings


def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "match"), [("gpu", "unknown device"), ("cuda:99", "99|not available"), ("xpu", "not available")]
)
def test_a_device_that_is_not_there_is_told_so(name: str, match: str) -> None:
    with pytest.raises(NasplatError, match=match):
        resolve_device(name)


def test_what_the_settings_ask_for_comes_before_what_suits_the_device() -> None:
    cpu = torch.device("cpu")
    chosen = place(settings(precision="auto"), cpu)
    assert (chosen.dtype, chosen.channels_last) == (torch.float32, True)
    chosen = place(settings(precision="bfloat16", channels_last=False), cpu)
    assert (chosen.dtype, chosen.channels_last) == (torch.bfloat16, False)
    assert chosen.memory_format == torch.contiguous_format


def test_a_layer_that_overruns_memory_is_kept_from_the_format_in_which_it_does() -> None:
    """Training ended in a segmentation fault, or in wrong weights."""
    cpu = torch.device("cpu")
    narrow = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2))
    assert not place(settings(), cpu, narrow).channels_last
    for safe in (nn.Conv2d(16, 8, 1, stride=2), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, stride=2)):
        assert place(settings(), cpu, nn.Sequential(safe)).channels_last
    with pytest.raises(NasplatError, match="layer '0'"):
        place(settings(channels_last=True), cpu, narrow)


@pytest.mark.parametrize(("capability", "dtype"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)])
def test_a_gpu_trains_in_bfloat16_where_it_has_tensor_cores_for_it(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    chosen = place(settings(precision="auto"), gpu)
    assert (chosen.dtype, chosen.channels_last) == (dtype, dtype == torch.bfloat16)
    if dtype == torch.float32:
        with pytest.raises(NasplatError, match="bfloat16"):
            place(settings(precision="bfloat16"), gpu)


def test_memory_that_runs_out_is_told_from_other_errors() -> None:
    with pytest.raises(Infeasible, match="while testing"), memory_guard("testing"):
        torch.empty(2**50)
    with pytest.raises(Infeasible), memory_guard("testing"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(RuntimeError, match="other"), memory_guard("testing"):
        raise RuntimeError("other")


def test_default_generators_are_seeded_for_the_while_and_given_back() -> None:
    torch.manual_seed(7)
    expected = torch.randn(2)
    torch.manual_seed(7)
    cpu = torch.device("cpu")
    with repeatable(cpu, 3):
        first = torch.randn(2)
    assert torch.equal(torch.randn(2), expected)
    with repeatable(cpu, 3):
        assert torch.equal(torch.randn(2), first)


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(before)
