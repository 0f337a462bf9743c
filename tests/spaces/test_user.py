"""A network function of the user's own is a search space like the others, and its mistakes are told where they are.

What a user would lose: the way to search networks that nasplat does not know, and the line to look at when it fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nasplat.spaces.user
from nasplat import choice
from nasplat.core.drawing import Drawing
from nasplat.core.errors import NasplatError
from nasplat.core.problem import Output, Problem, classification
from nasplat.networks.counter import count
from nasplat.spaces.families import make_space, transfer
from nasplat.spaces.user import UserSpace
from tests.spaces import example_networks

PROBLEM = classification((3, 16, 16), 5)
EXAMPLES = "tests.spaces.example_networks"


def space_of(name: str, problem: Problem = PROBLEM, **parameters: Any) -> UserSpace:
    space = make_space({"family": "user", "function": f"{EXAMPLES}:{name}", **parameters}, problem)
    assert isinstance(space, UserSpace)
    return space


def line_of(text: str) -> int:
    """The line of the example networks that holds a text."""
    lines = Path(example_networks.__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_the_documented_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the docstring shows is under 20 lines, and works as it stands there."""
    text = re.search(r"    # my_networks\.py\n(.*?)\n\n    # experiment", nasplat.spaces.user.__doc__ or "", re.DOTALL)
    assert text is not None
    code = dedent(text[1])
    assert len(code.splitlines()) < 20
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    space = make_space({"family": "user", "function": "my_networks:network"}, PROBLEM)
    assert list(space.choices) == ["width", "activation", "depth", "kernel0", "kernel1", "kernel2"]
    assert space.choices["width"].ordered and not space.choices["activation"].ordered
    # Depths 1, 2, 3 have 1, 2, 3 kernels: 2 + 4 + 8 of them, times widths and activations.
    assert len(list(space.enumerate())) == (2 + 4 + 8) * 3 * 2
    architecture = space.canonical({"depth": 3, "width": 64})
    assert space.build(architecture)(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert space.cost(architecture) == count(space.build(architecture), PROBLEM.input_shape).cost


def test_a_choice_that_is_not_reached_is_dead() -> None:
    space = space_of("convolutions")
    shallow = space.canonical({"depth": 1, "kernel2": 5})
    assert shallow == space.canonical({"depth": 1}) and shallow.values["kernel2"] == 3
    assert space.canonical({"depth": 3, "kernel2": 5}) != space.canonical({"depth": 3})


def test_the_function_runs_on_its_own() -> None:
    """Outside a search every choice takes its first option."""
    network = example_networks.convolutions(PROBLEM)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert choice("anything", ["first", "second"]) == "first"


def test_a_choice_behind_a_pair_of_options_is_found() -> None:
    assert list(space_of("reveals_by_pair").choices)[-1] == "inner"


def test_a_choice_that_tracing_missed_is_an_error_with_advice() -> None:
    space = space_of("hides_too_well")
    assert "inner" not in space.choices
    with pytest.raises(NasplatError, match="'inner' was not found") as caught:
        space.canonical({f"digit{number}": 7 for number in range(6)})
    line = line_of('choice("inner", [8, 16]) if set')
    assert f"example_networks.py:{line}" in caught.value.message
    assert "ask it before" in caught.value.advice


def test_inconsistent_options_name_both_places() -> None:
    with pytest.raises(NasplatError, match=r"'width' has the options \[4, 8\]") as caught:
        space_of("contradicts")
    for text in ('first = choice("width", [4, 8])', 'choice("width", [4, 16])'):
        assert f"example_networks.py:{line_of(text)}" in caught.value.message


def test_tracing_that_does_not_end_is_stopped() -> None:
    with pytest.raises(NasplatError, match="too many choices to trace"):
        space_of("never_ends")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("divides_by_zero", "return _two_layers(problem, 8 // width)", "ZeroDivisionError"),
        ("wrong_shape", "return images @ images.new_zeros(7, 7)", "RuntimeError"),
        ("AsksLate", 'choice("scale", [1, 2])', "asked while the network runs"),
    ],
)
def test_errors_in_the_users_code_come_with_file_and_line(name: str, text: str, said: str) -> None:
    with pytest.raises(NasplatError, match=said) as caught:
        space_of(name)
    assert f"example_networks.py:{line_of(text)}" in caught.value.message


@pytest.mark.parametrize(
    ("code", "said"), [("x = 1\ny = 1 / 0\n", "ZeroDivisionError"), ("x = 1\ndef (\n", "invalid syntax")]
)
def test_a_module_that_cannot_be_imported(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NasplatError, match=said) as caught:
        make_space({"family": "user", "function": "broken_networks:network"}, PROBLEM)
    assert "broken_networks.py:2" in caught.value.message


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("plain", "def plain", r"layer 2, Linear\(in_features=99, out_features=5, bias=True\), was given \(1, 768\)"),
        ("Own", "return self.head(", r"layer head, Linear\(in_features=99, .*\), was given \(1, 768\)"),
        ("Looks", "if images.mean() > 0", "the forward of own_mistakes:Looks depends on the values"),
        ("Selects", "return images[images > 0]", "the forward of own_mistakes:Selects depends on the values"),
    ],
)
def test_mistakes_that_torch_finds_are_placed_in_the_users_file(
    name: str, line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in torch's own code, where nobody can mend them."""
    code = """
        from torch import nn

        def plain(problem):
            return nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(99, 5))

        class Own(nn.Module):
            def __init__(self, problem):
                super().__init__()
                self.head = nn.Linear(99, 5)

            def forward(self, images):
                return self.head(images.flatten(1))

        class Looks(Own):
            def forward(self, images):
                if images.mean() > 0:
                    images = -images
                return images

        class Selects(Own):
            def forward(self, images):
                return images[images > 0]
        """
    file = tmp_path / "own_mistakes.py"
    file.write_text(dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_mistakes", raising=False)
    number = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if line in text)
    with pytest.raises(NasplatError, match=said) as caught:
        make_space({"family": "user", "function": f"own_mistakes:{name}"}, PROBLEM)
    assert caught.value.message.startswith(f"{file}:{number}: ")


def test_the_functions_of_a_module_are_told_where_none_is_near() -> None:
    with pytest.raises(NasplatError) as caught:
        space_of("qqq")
    assert caught.value.advice.startswith("it has convolutions, fixed, ")
    with pytest.raises(NasplatError) as caught:
        space_of("convolution")
    assert caught.value.advice == f"did you mean {EXAMPLES}:convolutions?"


def test_the_options_that_led_to_an_error_are_told() -> None:
    with pytest.raises(NasplatError) as caught:
        space_of("divides_by_zero")
    assert "width=0" in caught.value.advice


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_classes", r"shape \(1, 6\) as 'logits', not \(1, 5\)"),
        ("not_a_module", "returns a str"),
        ("no_such_function", "no_such_function"),
    ],
)
def test_functions_that_make_no_network(name: str, said: str) -> None:
    with pytest.raises(NasplatError, match=said):
        space_of(name)


def test_parameters_go_to_the_function_by_name() -> None:
    """How a found architecture is rebuilt larger: same choices, other parameters."""
    space, larger = space_of("convolutions"), space_of("convolutions", channels=16)
    found = space.canonical({"width": 2, "depth": 2})
    rebuilt = transfer(found, space, larger)
    assert rebuilt.values == found.values and rebuilt.digest != found.digest
    assert larger.cost(rebuilt).macs > 4 * space.cost(found).macs
    with pytest.raises(NasplatError, match="chanels"):
        space_of("convolutions", chanels=16)


def test_functions_that_read_numbers_from_tensors_are_traced_with_data() -> None:
    state = torch.random.get_rng_state()
    space = space_of("reads_numbers")
    assert list(space.choices) == ["width"]
    assert space.cost(space.canonical({"width": 8})).macs == 768 * 8 + 8 * 5
    assert torch.equal(torch.random.get_rng_state(), state), "tracing must not change what is drawn afterwards"


def test_several_outputs_and_attention() -> None:
    problem = Problem((3, 8, 8), (Output("kind", "classification", 3), Output("colour", "classification", 7)))
    space = space_of("TwoOutputs", problem)
    architecture = space.canonical({"heads": 2})
    graph = space.graph(architecture)
    assert [graph.operations[graph.outputs[name]].shape for name in ("kind", "colour")] == [(3,), (7,)]
    assert space.cost(architecture) == count(space.build(architecture), problem.input_shape).cost


def test_a_function_without_choices_is_a_space_of_one() -> None:
    space = space_of("fixed")
    only = space.canonical({})
    assert space.neighbours(only) == [] and space.mutate(only, np.random.default_rng(0)) is None
    assert list(space.enumerate()) == [only]


def test_an_unlabelled_problem_needs_no_classes() -> None:
    space = space_of("convolutions", Problem((3, 8, 8), (Output("embedding", "embedding", 1),)))
    assert isinstance(space.build(space.canonical({})), nn.Module)


def test_the_recorded_graph_can_be_drawn() -> None:
    space = space_of("convolutions")
    architecture = space.canonical({"depth": 2, "kernel1": 5})
    graph = space.graph(architecture)
    kinds = [operation.kind for operation in graph.operations]
    assert kinds[:5] == ["input", "conv2d", "batch_norm", "relu", "max_pool"] and kinds[-1] == "linear"
    assert [operation.name for operation in graph.operations if operation.kind == "conv2d"] == ["0", "4"]
    assert graph.operations[graph.taps["features"]].shape == (4,)
    drawing = space.drawings(architecture)["network"]
    assert isinstance(drawing, Drawing) and any("5×5" in node.label for node in drawing.nodes)


@pytest.mark.parametrize("options", ["abc", [], [1, 1], [nn.ReLU], [(1, 2)]])
def test_wrong_options_are_named_with_their_line(options: Any) -> None:
    with pytest.raises(NasplatError, match=r"test_user\.py:\d+: choice 'bad'"):
        choice("bad", options)


def test_the_order_can_be_said() -> None:
    assert space_of("reveals_by_pair").choices["first"].ordered
    assert not space_of("reveals_by_pair").choices["second"].ordered
    assert not space_of("convolutions").choices["pool"].ordered, "True and False are no sizes"


def test_importing_choice_loads_no_torch() -> None:
    code = "import sys; from nasplat import choice, __version__; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
