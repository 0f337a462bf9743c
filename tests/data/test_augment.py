"""Augmentation of whole batches: each image as torchvision would have made it alone, and nothing waits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nasplat.core.errors import NasplatError
from nasplat.data import augment, colour
from nasplat.data.augment import AUGMENTATIONS, as_float, compose, default_augmentations
from nasplat.data.torchvision_import import torchvision
from tests.data.helpers import NoWaiting, pictures, seeded

one_by_one = importlib.import_module("torchvision.transforms.v2.functional")
InterpolationMode = torchvision.transforms.InterpolationMode


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 20, 31)])
def test_crop_cuts_where_it_is_told(shape: tuple[int, int, int]) -> None:
    images = pictures(5, *shape)
    top, left = torch.tensor([0, 4, 8, 1, 7]), torch.tensor([8, 4, 0, 2, 3])
    found = augment.crop_at(images, top, left, 4)
    for image, there, y, x in zip(images, found, top.tolist(), left.tolist(), strict=True):
        assert torch.equal(there, one_by_one.crop(one_by_one.pad(image, [4]), y, x, *shape[1:]))


def test_flip_mirrors_about_half_and_leaves_the_rest() -> None:
    images = pictures(400)
    found = augment.flip(images, seeded())
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    same = (found == images).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize("as_bytes", [True, False])
def test_resized_crop_is_that_of_torchvision(as_bytes: bool) -> None:
    images = pictures(height=32, width=24)
    boxes = [(0, 0, 32, 24), (3, 5, 17, 9), (10, 2, 22, 22), (0, 0, 1, 1), (31, 23, 1, 1), (7, 0, 8, 24)]
    top, left, tall, wide = torch.tensor(boxes).T
    found = augment.resized_crop_at(images if as_bytes else as_float(images), top, left, tall, wide)
    for image, there, box in zip(as_float(images), found, boxes, strict=True):
        expected = one_by_one.resized_crop(image, *box, size=[32, 24], antialias=True)
        assert torch.allclose(there, expected, atol=1e-5)


def test_resized_crop_stays_inside_long_and_flat_images() -> None:
    images = torch.full((64, 3, 4, 60), 255, dtype=torch.uint8)
    assert torch.allclose(augment.resized_crop(images, seeded()), torch.ones(1), atol=1e-5)


NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
ADJUST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": one_by_one.adjust_brightness,
    "contrast": one_by_one.adjust_contrast,
    "saturation": one_by_one.adjust_saturation,
}


def jittered(images: Tensor, factors: dict[str, Tensor], order: Tensor) -> Tensor:
    count = len(images)
    each = [factors.get(name, torch.full((count,), neutral)) for name, neutral in NEUTRAL.items()]
    return colour.jitter(images, *each, order)


@pytest.mark.parametrize("name", ADJUST)
def test_one_change_of_colour_is_that_of_torchvision_and_clamped(name: str) -> None:
    images, factors = as_float(pictures(5)), torch.tensor([0.0, 0.3, 1.0, 1.4, 2.5])
    found = jittered(images, {name: factors}, torch.arange(4).expand(5, 4))
    for image, there, factor in zip(images, found, factors.tolist(), strict=True):
        assert torch.allclose(there, ADJUST[name](image, factor), atol=1e-5)


def test_each_image_has_its_own_order_of_changes() -> None:
    """A colour jitter that composes maps must do so in the order drawn, contrast with the mean of its moment."""
    images = 0.4 + 0.2 * as_float(pictures(24))  # far from where torchvision clamps in between
    order = torch.stack([torch.randperm(4, generator=seeded(seed)) for seed in range(24)])
    values = {name: 0.8 + 0.4 * torch.rand(24, generator=seeded(index)) for index, name in enumerate(ADJUST)}
    found = jittered(images, values, order)
    names = list(NEUTRAL)
    for index, image in enumerate(images):
        expected = image
        for step in order[index].tolist():
            if names[step] in ADJUST:
                expected = ADJUST[names[step]](expected, values[names[step]][index].item())
        assert torch.allclose(found[index], expected, atol=1e-5)


def test_hue_turns_the_way_of_torchvision_and_keeps_lightness_and_greys() -> None:
    images = 0.3 + 0.4 * as_float(pictures(8))
    order = torch.arange(4).expand(8, 4)
    turned = jittered(images, {"hue": torch.full((8,), 0.05)}, order)
    assert (turned - one_by_one.adjust_hue(images, 0.05)).abs().mean() < (turned - images).abs().mean()
    assert torch.allclose(jittered(images, {"hue": torch.ones(8)}, order), images, atol=1e-5)
    lightness = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert torch.allclose((turned * lightness).sum(1), (images * lightness).sum(1), atol=1e-3)
    greys = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert torch.allclose(jittered(greys, {"hue": torch.full((8,), 0.3)}, order), greys, atol=1e-5)


def test_grey_takes_the_colour_out_of_the_chosen_images_only() -> None:
    images = as_float(pictures(4))
    found = colour.grey(images, torch.tensor([True, False, True, False]))
    assert torch.equal(found[1::2], images[1::2])
    assert torch.allclose(found[::2], one_by_one.rgb_to_grayscale(images[::2], 3), atol=1e-5)


def test_blur_is_that_of_torchvision_with_its_own_width_an_image() -> None:
    images, sigma = as_float(pictures(5, height=24, width=32)), torch.tensor([0.0, 0.1, 0.7, 1.3, 2.0])
    found = augment.blur_by(images, sigma, 5)
    assert torch.allclose(found[0], images[0], atol=1e-6)
    for image, there, width in zip(images[1:], found[1:], sigma[1:].tolist(), strict=True):
        assert torch.allclose(there, one_by_one.gaussian_blur(image, [5, 5], [width, width]), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (20, 32)])
def test_rotation_is_that_of_torchvision(size: tuple[int, int]) -> None:
    images, degrees = as_float(pictures(4, 3, *size)), torch.tensor([0.0, 10.0, -15.0, 90.0])
    found = augment.rotate_by(images, degrees)
    for image, there, angle in zip(images, found, degrees.tolist(), strict=True):
        expected = one_by_one.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
        assert (there - expected).abs().mean() < 1e-4


def test_cutout_covers_one_square_an_image_with_its_mean_colour() -> None:
    images = pictures(200, height=16, width=16)
    found = augment.cutout(images, seeded())
    changed = (found != images).any(1)
    assert changed.flatten(1).any(1).all()
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    assert int(rows.max()) == int(columns.max()) == 8
    assert int(rows.min()) < 8  # some lie partly outside
    for image, there, where in zip(images[:20], found[:20], changed[:20], strict=True):
        inside = there[:, where].float()
        assert torch.equal(inside.amin(1), inside.amax(1))
        assert (inside[:, 0] - image.float().mean((1, 2))).abs().max() <= 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_keeps_shape_and_range_and_its_input(name: str, channels: int) -> None:
    images = pictures(32, channels, 20, 28)
    for handed in (images, as_float(images)):
        kept = handed.clone()
        found = AUGMENTATIONS[name](handed, seeded())
        assert found.shape == handed.shape
        assert torch.equal(handed, kept), "the data set would change with every epoch"
        values = as_float(found)
        assert float(values.min()) >= -1e-6 and float(values.max()) <= 1 + 1e-5


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_images_of_a_batch_draw_their_own_parameters(name: str) -> None:
    """One draw for a whole batch would make training see a fraction of the variety."""
    images = pictures(1, height=40, width=40).repeat(64, 1, 1, 1)
    found = AUGMENTATIONS[name](images, seeded())
    kinds = {image.numpy().tobytes() for image in found}
    assert len(kinds) > (1 if name in ("flip", "grey") else 20)
    assert torch.equal(found, AUGMENTATIONS[name](images, seeded())), "the same generator draws the same"
    assert not torch.equal(found, AUGMENTATIONS[name](images, seeded(1)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_no_augmentation_waits_for_the_device(name: str) -> None:
    images = pictures(8)
    AUGMENTATIONS[name](images, seeded())  # what is made once may be made now
    with NoWaiting():
        AUGMENTATIONS[name](images, seeded())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(AUGMENTATIONS)), max_size=4),
    st.sampled_from([(1, 8, 8), (3, 32, 32), (1, 3, 5), (4, 16, 12), (3, 2, 2)]),
    st.integers(1, 5),
)
def test_augmentations_follow_each_other_in_any_order(
    names: list[str], shape: tuple[int, int, int], count: int
) -> None:
    found = compose(names)(pictures(count, *shape), seeded())
    assert found.shape == (count, *shape)
    assert torch.isfinite(found.float()).all()


@pytest.mark.parametrize("objective", ["supervised", "simclr", "memory_bank", "my_module:mine"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 96, 96), (1, 28, 28)])
def test_every_objective_has_defaults_that_exist(objective: str, shape: tuple[int, int, int]) -> None:
    names = default_augmentations(objective, shape)
    assert names and set(names) <= set(AUGMENTATIONS)
    assert ("flip" in names) == (shape[0] == 3), "a flipped digit is another digit"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NasplatError, match="colour_jitter") as caught:
        compose(["crop", "colour_jitter"])
    assert "did you mean 'color_jitter'?" in caught.value.advice


def test_an_augmentation_of_ones_own_is_named_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "my_own_augment.py").write_text("def invert(images, generator):\n    return 255 - images\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    images = pictures()
    assert torch.equal(compose(["my_own_augment:invert"])(images, seeded()), 255 - images)
