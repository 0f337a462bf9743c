"""One copy of the images for all workers of a machine."""

import numpy as np
import torch

from nasplat.core.experiment import Data
from nasplat.data.datasets import load_dataset
from nasplat.data.shared import from_arrays, to_arrays


def test_a_shared_data_set_is_the_same_one_without_a_copy() -> None:
    """Workers that trained on other images, or each on a copy of its own, would be wrong or need the memory of all."""
    dataset = load_dataset(Data(source="digits", train_size=100))
    arrays = to_arrays(dataset)
    assert arrays is not None
    for images, labels, _ in arrays["parts"].values():
        images.flags.writeable = labels.flags.writeable = False  # as they come from Ray's object store
    again = from_arrays(arrays)
    assert again.fingerprint == dataset.fingerprint and again.problem == dataset.problem
    assert (again.mean, again.std, again.classes, again.name) == (
        dataset.mean,
        dataset.std,
        dataset.classes,
        dataset.name,
    )
    for part in ("train", "validation", "test"):
        split, own = getattr(again, part), getattr(dataset, part)
        assert torch.equal(split.images, own.images) and torch.equal(split.labels, own.labels)
        assert split.images.numpy().__array_interface__["data"] == own.images.numpy().__array_interface__["data"]


def test_images_that_are_decoded_when_asked_are_not_shared(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """They may be more than any memory holds: every worker opens the files itself."""
    from dataclasses import replace

    dataset = load_dataset(Data(source="digits", train_size=100))

    class Reader:
        shape = (100, 1, 8, 8)

        def __len__(self) -> int:
            return 100

        def __getitem__(self, rows: object) -> np.ndarray:
            raise AssertionError("nobody asked for images")

    assert to_arrays(replace(dataset, train=replace(dataset.train, images=Reader()))) is None  # type: ignore[arg-type]
