"""What is asked of a run afterwards: its state, its report, exports, and the costs of its networks."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nasplat.artifacts.weights import read_metadata
from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data
from nasplat.data.datasets import load_dataset
from nasplat.data.loader import Loader
from nasplat.jobs.export import export, pixels_of
from nasplat.jobs.profile import parse_shape, profile_model
from nasplat.jobs.report import report_data, write_results
from nasplat.jobs.runs import open_run
from nasplat.jobs.status import status
from nasplat.jobs.train import train


def test_an_export_runs_without_nasplat(run: Path) -> None:
    import onnxruntime

    found = open_run(run)
    (folder,) = export(run, formats=("onnx",))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.zeros((5, 1, 8, 8), np.float32)})
    assert logits.shape == (5, 10)
    assert json.loads((folder / "architecture.json").read_text())["digest"] == found.front[0].architecture.digest


def test_one_architecture_is_exported_by_number_or_digest(run: Path) -> None:
    best = open_run(run).front[0]
    for name in (str(best.number), best.architecture.digest[:6], best.name):
        (folder,) = export(run / name, formats=("safetensors",))
        assert folder.name == best.name


def test_what_cannot_be_exported_says_why(run: Path) -> None:
    found = open_run(run)
    with pytest.raises(NasplatError, match="no evaluated architecture '99'"):
        export(run / "99")
    with pytest.raises(NasplatError, match="neither a run nor an architecture"):
        export(run.parent / "nothing")
    with pytest.raises(NasplatError, match="unknown export format"):
        export(run, formats=("pickle",))
    dominated = [one for one in found.candidates if one not in found.front]
    for one in dominated[:1]:
        with pytest.raises(NasplatError) as caught:
            export(run / str(one.number))
        assert "nasplat train" in caught.value.advice


def test_a_damaged_run_is_answered_in_words(run: Path) -> None:
    with pytest.raises(NasplatError, match="no run directory"):
        open_run(run.parent / "elsewhere")
    (run / "study.journal").write_text("nonsense\n")
    with pytest.raises(NasplatError):
        open_run(run)


def test_status_tells_done_from_dead(run: Path) -> None:
    found = status(run)
    assert found.done and found.process is None
    assert found.summary == "done: 4 of 4 architectures evaluated"
    text = (run / "experiment.yaml").read_text()
    (run / "experiment.yaml").write_text(text.replace("trials: 4", "trials: 9"))
    assert status(run).summary == "stopped: 4 of 9 architectures evaluated"


def test_a_moved_run_is_still_a_run(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "moved elsewhere")
    assert len(open_run(moved).candidates) == 4
    assert write_results(open_run(moved))["report"].exists()


def test_the_report_asks_the_network_for_nothing(run: Path) -> None:
    page = write_results(open_run(run))["report"].read_text()
    assert 'src="http' not in page and '<link rel="stylesheet" href="http' not in page


def test_profile_takes_a_run_a_function_or_a_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = open_run(run).front[0]
    title, found = profile_model(str(run / str(best.number)), None)
    assert best.name in title and "1×8×8" in title
    assert (found.cost.macs, found.cost.params) == (best.metrics["macs"], best.metrics["params"])
    (tmp_path / "mine_to_profile.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Conv2d(3, 4, 1)\ndef no():\n    return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    assert profile_model("mine_to_profile:net", (3, 2, 2))[1].cost.macs == 48
    with pytest.raises(NasplatError, match="returned a int"):
        profile_model("mine_to_profile:no", None)
    with pytest.raises(NasplatError, match="no model") as caught:
        profile_model("resnet81", None)
    assert "did you mean" in caught.value.advice


def test_profile_of_a_run_takes_the_best_of_its_front_and_says_so(run: Path) -> None:
    best = open_run(run).front[0]
    title, found = profile_model(str(run), None)
    assert f"{best.name}, the best of the front" in title
    assert found.cost.macs == best.metrics["macs"]


def test_profile_of_a_network_that_was_trained_again(run: Path) -> None:
    best = open_run(run).front[0]
    with pytest.raises(NasplatError, match="not trained on the full schedule") as caught:
        profile_model(str(run / f"{best.number}-final"), None)
    assert f"--arch {best.number}" in caught.value.advice
    _, confirmation, _ = train(run)
    title, found = profile_model(str(run / f"{best.number}-final"), None)
    assert f"{best.name}-final" in title
    assert (found.cost.macs, found.cost.params) == tuple(
        confirmation.rows[0].costs[name] for name in ("macs", "params")
    )
    assert found.cost.macs > best.metrics["macs"], "final.space makes it larger"


def test_what_was_trained_again_is_reported_with_its_own_costs(run: Path) -> None:
    found, confirmation, _ = train(run, seeds=2)
    (row,) = confirmation.rows
    best = found.front[0]
    data = report_data(found, confirmation)
    (told,) = data.confirmed
    assert (told.trial, told.digest, told.final_digest) == (best.number, best.architecture.digest, row.final_digest)
    assert told.costs == row.costs
    assert told.costs["macs"] > best.metrics["macs"]
    assert "test_accuracy" not in data.metrics
    assert "1 network of the front, rebuilt at the final size, was trained again" in data.notes[1]
    picture = (run / "front/confirmed.svg").read_text()
    assert "Test accuracy against MACs, 1 network<" in picture
    assert 'class="fp-bar"' in picture
    (line,) = csv.DictReader((run / "confirmation.csv").open(encoding="utf-8"))
    assert (line["digest"], line["final_digest"]) == (row.digest, row.final_digest)


def test_the_card_of_a_final_network_tells_both_digests(run: Path) -> None:
    _, confirmation, _ = train(run)
    (row,) = confirmation.rows
    (folder,) = export(run, final=True, formats=("safetensors",))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# small: {row.digest[:8]}, rebuilt as {row.final_digest[:8]}\n")
    assert json.loads((folder / "architecture.json").read_text())["digest"] == row.final_digest
    assert read_metadata(folder / "weights.safetensors")["searched_digest"] == row.digest
    assert "means over 1 seed," in card


def test_raw_images_that_are_prepared_as_the_card_says_are_what_the_network_was_trained_on(run: Path) -> None:
    from sklearn.datasets import load_digits

    (folder,) = export(run, formats=("safetensors",))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "raw values 0..16" in card and "`round(raw / 16 * 255)`" in card
    dataset = load_dataset(open_run(run).experiment.data)
    pixels = np.round(load_digits().images / 16 * 255).astype(np.uint8)
    images = dataset.test.images
    assert isinstance(images, torch.Tensor)
    assert {image.numpy().tobytes() for image in images} <= {image.tobytes() for image in pixels}
    told = read_metadata(folder / "weights.safetensors")
    scale, mean, std = (torch.tensor(json.loads(told[key])) for key in ("input_scale", "mean", "std"))
    loader = Loader(dataset.test, batch_size=len(images), device="cpu", mean=dataset.mean, std=dataset.std)
    (batch,) = loader.ordered()
    torch.testing.assert_close((images * scale - mean) / std, batch.views[0])


def test_the_card_of_other_data_says_how_they_become_bytes() -> None:
    told = pixels_of(Data(path="digits", image_size=16))
    assert "floats 0..1 become bytes by `round(raw * 255)`" in told
    assert "resized to 16 × 16" in told
    assert "0..16" not in told


@pytest.mark.parametrize("text", ["3", "3,4", "a,b,c", "3,0,4"])
def test_a_wrong_input_shape_is_refused(text: str) -> None:
    with pytest.raises(NasplatError, match="input shape"):
        parse_shape(text)
    assert parse_shape("3x32x32") == parse_shape("3,32,32") == (3, 32, 32)
