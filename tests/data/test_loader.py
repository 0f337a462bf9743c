"""Batches: every image once, the same for the same seed however they are held, and nothing waits for the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.core.experiment import Data
from nasplat.data.datasets import Dataset, Split, load_dataset
from nasplat.data.images import Images
from nasplat.data.loader import Batch, Loader
from nasplat.data.streaming import ahead
from tests.data.helpers import NoWaiting, seeded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(Data())


@dataclass(frozen=True)
class Lazy:
    """A reader of a user's own, over images that are in memory."""

    images: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor) -> Tensor:
        assert threading.current_thread() is not threading.main_thread(), "reading would hold up training"
        return self.images[rows]

    def select(self, rows: Tensor) -> Lazy:
        return Lazy(self.images[rows])


def loader(dataset: Dataset, split: Split | None = None, **options: object) -> Loader:
    settings = {"batch_size": 100, "device": CPU, "mean": dataset.mean, "std": dataset.std, **options}
    return Loader(dataset.train if split is None else split, **settings)  # type: ignore[arg-type]


def same(first: Batch, second: Batch) -> bool:
    assert first.labels is not None and second.labels is not None
    return (
        torch.equal(first.indices, second.indices)
        and torch.equal(first.labels, second.labels)
        and all(torch.equal(one, two) for one, two in zip(first.views, second.views, strict=True))
    )


def test_an_epoch_shows_every_image_at_most_once_with_its_own_label(digits: Dataset) -> None:
    made = loader(digits)
    batches = list(made.epoch(seeded()))
    assert len(batches) == made.batches_per_epoch == len(digits.train) // 100
    rows = torch.cat([batch.indices for batch in batches])
    assert len(rows.unique()) == len(rows) == 100 * len(batches)
    for batch in batches:
        assert batch.labels is not None and digits.train.labels is not None
        assert torch.equal(batch.labels, digits.train.labels[batch.indices])
        assert isinstance(digits.train.images, Tensor)
        expected = (digits.train.images[batch.indices].float() / 255 - digits.mean[0]) / digits.std[0]
        assert torch.allclose(batch.views[0], expected, atol=1e-5)


def test_ordered_shows_all_images_in_order_without_augmentation(digits: Dataset) -> None:
    made = loader(digits, augment=("crop", "flip"), views=2)
    batches = list(made.ordered())
    assert torch.equal(torch.cat([batch.indices for batch in batches]), torch.arange(len(digits.train)))
    assert all(len(batch.views) == 1 for batch in batches)
    whole = torch.cat([batch.views[0] for batch in batches])
    assert abs(float(whole.mean())) < 1e-3 and abs(float(whole.std()) - 1) < 1e-3


@pytest.mark.parametrize("batch_size", [1, 359, 360, 10_000])
def test_few_images_still_make_a_batch(digits: Dataset, batch_size: int) -> None:
    """A batch size above the number of images would otherwise train on nothing."""
    made = loader(digits, digits.test, batch_size=batch_size)
    assert made.batches_per_epoch == max(1, 359 // batch_size)
    first = next(made.epoch(seeded()))
    assert len(first.indices) == min(batch_size, 359)


@pytest.mark.parametrize("augment", [(), ("crop", "flip"), ("resized_crop", "color_jitter", "blur", "rotation")])
def test_a_seed_gives_the_same_batches_streamed_or_resident(digits: Dataset, augment: tuple[str, ...]) -> None:
    assert isinstance(digits.train.images, Tensor)
    lazy: Images = Lazy(digits.train.images)
    loaders = [
        loader(digits, augment=augment, views=2),
        loader(digits, augment=augment, views=2, resident="stream"),
        loader(digits, Split(lazy, digits.train.labels), augment=augment, views=2),
    ]
    assert [made.resident for made in loaders] == [True, False, False]
    epochs = [list(made.epoch(seeded(3))) for made in loaders]
    for batches in zip(*epochs, strict=True):
        assert same(batches[0], batches[1]) and same(batches[0], batches[2])
    assert not torch.equal(next(loaders[0].epoch(seeded(4))).indices, epochs[0][0].indices)


def test_views_of_an_image_differ(digits: Dataset) -> None:
    batch = next(loader(digits, augment=("crop",), views=2).epoch(seeded()))
    assert len(batch.views) == 2 and not torch.equal(*batch.views)


def test_the_generator_ends_in_the_same_state_however_far_an_epoch_was_followed(digits: Dataset) -> None:
    """Or a training that goes on from a checkpoint would see other images than one that was never interrupted."""
    whole, part = seeded(), seeded()
    list(loader(digits, augment=("crop",)).epoch(whole))
    list(islice(loader(digits, augment=("crop",)).epoch(part), 1))
    assert torch.equal(whole.get_state(), part.get_state())


@pytest.mark.parametrize("resident", ["device", "stream"])
def test_nothing_in_an_epoch_waits_for_the_device(digits: Dataset, resident: str) -> None:
    augment = ("crop", "flip", "resized_crop", "color_jitter", "grey", "blur", "cutout", "rotation")
    made = loader(digits, augment=augment, views=2, resident=resident)
    next(made.epoch(seeded()))
    with NoWaiting():
        assert len(list(made.epoch(seeded()))) == made.batches_per_epoch
        list(made.ordered())


def test_memory_format_and_type_are_as_asked(digits: Dataset) -> None:
    split = Split(torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=seeded()))
    colours = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    plain = next(loader(digits, split, **colours).ordered()).views[0]
    for augment in ((), ("color_jitter",)):
        made = loader(digits, split, channels_last=True, dtype=torch.bfloat16, augment=augment, **colours)
        for batch in (next(made.ordered()), next(made.epoch(seeded()))):
            assert batch.labels is None
            assert batch.views[0].is_contiguous(memory_format=torch.channels_last)
            assert batch.views[0].dtype == torch.bfloat16
        assert torch.allclose(next(made.ordered()).views[0].float(), plain, atol=0.02)


def test_images_are_never_written_to(digits: Dataset) -> None:
    assert isinstance(digits.train.images, Tensor)
    before = digits.train.images.clone()

    def careless(images: Tensor, generator: torch.Generator) -> Tensor:
        return images

    for batch in loader(digits, augment=careless).epoch(seeded()):
        batch.views[0].zero_()
    floats = 0.5 * torch.ones(4, 1, 8, 8)
    loader(digits)._normalised(floats)
    assert torch.equal(digits.train.images, before) and float(floats.min()) == 0.5


def test_images_are_copied_to_a_device_once_for_all_trials(digits: Dataset) -> None:
    split = Split(Lazy(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)))
    thread = threading.Thread(target=split.on, args=(CPU,))
    thread.start()
    thread.join()
    assert split.on(CPU) is split.on(CPU)
    assert replace(split).labels is None


def test_what_goes_wrong_while_reading_ahead_is_told_to_the_reader() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise NasplatError("picture.png is corrupt")

    received = []
    with pytest.raises(NasplatError, match=r"picture\.png"):
        for item in ahead(items()):
            received.append(item)
    assert received == [1]


def test_whoever_stops_early_leaves_no_thread_behind() -> None:
    """A search of a thousand trials with a budget in steps would end with a thousand threads."""
    before = threading.active_count()
    for _ in range(5):
        stream = ahead(iter(range(1000)))
        assert next(stream) == 0
        stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_images_or_wrong_statistics_are_refused(digits: Dataset) -> None:
    with pytest.raises(NasplatError, match="no images"):
        loader(digits, Split(torch.empty(0, 1, 8, 8, dtype=torch.uint8)))
    with pytest.raises(NasplatError, match="3 channels"):
        loader(digits, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
