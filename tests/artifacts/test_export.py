"""An exported file computes what the network computes, loads without nasplat, or is not there at all."""

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nasplat.artifacts import export as module_under_test
from nasplat.artifacts.environment import versions
from nasplat.artifacts.export import export
from nasplat.artifacts.model_card import ModelCard
from nasplat.artifacts.weights import read_metadata
from nasplat.core.architecture import Architecture
from nasplat.core.cost import Cost
from nasplat.core.errors import NasplatError

SHAPE = (3, 8, 8)
ARCHITECTURE = Architecture("space", {"width": 4, "op": "conv"})
SEARCHED = "5ea7c4ed" + "0" * 56


class Small(nn.Module):
    """Convolution, batch norm and a classifier, with statistics that are not the initial ones."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-1, 1, generator=generator)
        self.norm.running_var.uniform_(0.5, 2, generator=generator)
        self.fc = nn.Linear(4, 5)

    def features(self, images: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(images))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))


class Two(Small):
    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        features = self.features(images)
        return {"logits": self.fc(features), "features": features}


class BakedBatch(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * images.shape[0]


class Random(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.rand(images.shape[0], 5)


class Untraceable(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2.0 if float(images.sum()) > 0 else 1.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    network = Small().train()
    card = ModelCard(
        "digits",
        data={"source": "digits"},
        seed=3,
        cost=Cost(1234, 567, 89),
        metrics={"accuracy": 0.9712},
        versions=versions(),
        mean=(0.3,) * 3,
        std=(0.2,) * 3,
        pixels="Raw values 0..16 are multiplied.",
        classes=("zero", "one", "two", "three", "four"),
        trial=7,
        searched=SEARCHED,
    )
    folder = tmp_path_factory.mktemp("exports") / "one"
    found = export(network, ARCHITECTURE, SHAPE, folder, card=card, output_names=("logits",))
    assert set(found.files) == {path.name for path in folder.iterdir()}
    assert found.differences["weights.safetensors"] == 0
    return network, folder


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_every_file_computes_what_the_network_does(exported: tuple[nn.Module, Path], batch: int) -> None:
    network, folder = exported
    images = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))
    expected = network.eval()(images).detach()
    program = torch.export.load(folder / "model.pt2").module()
    torch.testing.assert_close(program(images), expected)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (outputs,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(outputs, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_no_file_tells_where_it_was_made(exported: tuple[nn.Module, Path]) -> None:
    """Exports are given away; the folders and names of who made them are not."""
    for path in exported[1].iterdir():
        content = path.read_bytes()
        assert b"site-packages" not in content and str(Path(__file__).parents[2]).encode() not in content, path


def test_weights_load_into_the_exported_program(exported: tuple[nn.Module, Path]) -> None:
    """The model card promises it: no code of the network is needed."""
    _, folder = exported
    program = torch.export.load(folder / "model.pt2").module()
    program.load_state_dict(load_file(folder / "weights.safetensors"))


def test_the_snippets_of_the_model_card_run(exported: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    network, folder = exported
    monkeypatch.chdir(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 4
    for snippet in snippets:
        assert len(snippet.strip().splitlines()) == 3
        images = torch.zeros(2, *SHAPE)
        given = {"images": images.numpy() if "onnxruntime" in snippet else images, "network": network}
        exec(snippet, given)


def test_the_model_card_tells_what_the_network_is(exported: tuple[nn.Module, Path]) -> None:
    text = (exported[1] / "README.md").read_text(encoding="utf-8")
    told = [
        ARCHITECTURE.digest,
        "digits",
        "97.12 %",
        "1,234",
        "567",
        "torch ",
        "(N, 3, 8, 8)",
        "`logits` `(N, 5)`",
        "four",
    ]
    told += ["mean [0.3, 0.3, 0.3]", '"width": 4', "| seed | 3 |"]
    told += ["whole numbers 0..255", "(pixels / 255 - mean) / std", "Raw values 0..16 are multiplied."]
    told += ["within `model.onnx` and `weights.safetensors`"]
    for words in told:
        assert words in text, words


def test_the_model_card_tells_both_digests_of_a_network_that_was_rebuilt(exported: tuple[nn.Module, Path]) -> None:
    """The folder goes by the digest of the search, architecture.json holds the other."""
    text = (exported[1] / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# digits: {SEARCHED[:8]}, rebuilt as {ARCHITECTURE.digest[:8]}\n")
    assert f"trial 7 of the search, as `{SEARCHED}`; rebuilt" in text


def test_the_model_card_tells_one_digest_where_there_is_one(tmp_path: Path) -> None:
    card = ModelCard("digits", trial=7, searched=ARCHITECTURE.digest)
    export(Small(), ARCHITECTURE, SHAPE, tmp_path / "one", ["safetensors"], card)
    text = (tmp_path / "one/README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# digits: {ARCHITECTURE.digest[:8]}\n")
    assert "rebuilt" not in text
    assert "| found as | trial 7 of the search |" in text
    assert "searched_digest" not in read_metadata(tmp_path / "one/weights.safetensors")


def test_files_that_were_sent_on_alone_still_tell_how_images_are_prepared(exported: tuple[nn.Module, Path]) -> None:
    _, folder = exported
    in_onnx = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
    for found in (in_onnx, read_metadata(folder / "weights.safetensors")):
        assert (found["digest"], found["searched_digest"]) == (ARCHITECTURE.digest, SEARCHED)
        assert json.loads(found["mean"]) == [0.3] * 3
        assert json.loads(found["std"]) == [0.2] * 3
        assert float(found["input_scale"]) == 1 / 255
        assert json.loads(found["classes"]) == ["zero", "one", "two", "three", "four"]


def test_the_batch_dimension_is_called_so(exported: tuple[nn.Module, Path]) -> None:
    session = onnxruntime.InferenceSession(exported[1] / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", *SHAPE]
    assert session.get_outputs()[0].shape == ["batch", 5]


def test_the_architecture_reads_back(exported: tuple[nn.Module, Path]) -> None:
    data = json.loads((exported[1] / "architecture.json").read_text())
    assert Architecture.from_json(data) == ARCHITECTURE


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = Small().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    export(network, ARCHITECTURE, SHAPE, tmp_path / "one", ["safetensors"])
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_several_outputs_keep_their_names(tmp_path: Path) -> None:
    export(Two(), ARCHITECTURE, SHAPE, tmp_path / "two", ["onnx", "torch_export"])
    session = onnxruntime.InferenceSession(tmp_path / "two" / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["logits", "features"]
    images = torch.randn(3, *SHAPE)
    expected = torch.export.load(tmp_path / "two" / "model.pt2").module()(images)
    for name, values in zip(expected, session.run(None, {"images": images.numpy()}), strict=True):
        np.testing.assert_allclose(values, expected[name].detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [Random(), Untraceable()])
def test_what_cannot_be_expressed_leaves_nothing(tmp_path: Path, network: nn.Module) -> None:
    with pytest.raises(NasplatError) as caught:
        export(network, ARCHITECTURE, SHAPE, tmp_path / "one", ["safetensors", "torch_export"])
    assert caught.value.advice
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("runner", ["_onnx_runner", "_program_runner", "_weights_runner"])
def test_a_file_that_computes_something_else_is_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """A backend with a wrong kernel: its outputs are off by half a percent of the largest."""
    right = getattr(module_under_test, runner)

    def wrong(*arguments: object) -> object:
        run = right(*arguments)
        return lambda images: {name: value * 1.005 for name, value in run(images).items()}

    monkeypatch.setattr(module_under_test, runner, wrong)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "README.md").write_text("earlier")
    with pytest.raises(NasplatError, match="does not compute"):
        export(Small(), ARCHITECTURE, SHAPE, tmp_path / "one")
    assert [path.name for path in tmp_path.rglob("*")] == ["one", "README.md"]
    assert (tmp_path / "one" / "README.md").read_text() == "earlier"


def test_a_batch_size_that_matters_is_kept_dynamic(tmp_path: Path) -> None:
    export(BakedBatch(), ARCHITECTURE, SHAPE, tmp_path / "one", ["torch_export"])
    assert (tmp_path / "one" / "model.pt2").exists()


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    network = Small()
    nn.init.constant_(network.fc.bias, float("nan"))
    with pytest.raises(NasplatError, match="not finite"):
        export(network, ARCHITECTURE, SHAPE, tmp_path / "one", ["safetensors"])


def test_unknown_format_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NasplatError, match="onnxx") as caught:
        export(Small(), ARCHITECTURE, SHAPE, tmp_path / "one", ["onnxx"])
    assert "torch_export" in caught.value.advice


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(NasplatError, match=r"thesis\.tex"):
        export(Small(), ARCHITECTURE, SHAPE, tmp_path, ["safetensors"])
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(NasplatError, match="is a file"):
        export(Small(), ARCHITECTURE, SHAPE, tmp_path / "thesis.tex", ["safetensors"])


def test_a_missing_backend_is_told_with_the_command_that_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NasplatError, match="onnxruntime") as caught:
        export(Small(), ARCHITECTURE, SHAPE, tmp_path / "one", ["onnx"])
    assert "pip install" in caught.value.advice
    assert not list(tmp_path.iterdir())
