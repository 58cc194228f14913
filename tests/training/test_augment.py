"""Augmentation: what is moved, what is mixed, and that the same generator gives the same images."""

import pytest
import torch
from programs import augment


def images(n=6, channels=3, size=24):
    return torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(1)).byte()


def test_without_augmentation_only_the_scale_changes():
    x = augment.to_inputs(images(), 24, augment.NONE)
    assert torch.equal(x, images().float() / 255 * 2 - 1)


def test_without_augmentation_another_size_is_the_whole_image():
    gradient = torch.arange(48).expand(1, 1, 48, 48).byte() * 5
    x = augment.to_inputs(gradient, 32, augment.NONE)
    expected = (torch.arange(32) + 0.5) * 48 / 32 - 0.5
    torch.testing.assert_close(x[0, 0, 16], expected * 5 / 255 * 2 - 1, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_same_generator_same_images(name):
    def augmented(seed):
        return augment.to_inputs(images(), 16, augment.AUGMENTATIONS[name], torch.Generator().manual_seed(seed))

    assert torch.equal(augmented(0), augmented(0))
    assert torch.equal(augmented(0), augmented(1)) == (name == "none")
    assert augmented(0).shape == (6, 3, 16, 16)


def test_every_image_is_moved_its_own_way():
    same = images(1).expand(8, -1, -1, -1)
    x = augment.to_inputs(same, 24, augment.AUGMENTATIONS["photos"], torch.Generator().manual_seed(0))
    assert all(not torch.equal(x[0], other) for other in x[1:])


def test_flip_mirrors_some_images_and_leaves_the_others():
    x = augment.to_inputs(images(64), 24, augment.Augmentation(flip=True), torch.Generator().manual_seed(0))
    plain = augment.to_inputs(images(64), 24, augment.NONE)
    as_is = (x - plain).abs().amax(dim=(1, 2, 3)) < 1e-4
    mirrored = (x - plain.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (as_is ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_mixup_blends_images_as_it_blends_labels():
    x, y = torch.randn(7, 1, 8, 8), torch.arange(7)
    mixed, (y_a, y_b, lam) = augment.mixup(x, y, torch.Generator().manual_seed(3))
    assert torch.equal(y_a, y)
    torch.testing.assert_close(mixed, lam * x[y_a] + (1 - lam) * x[y_b])


def test_cutmix_label_share_is_the_share_of_pixels():
    y = torch.arange(9)
    x = y.float().view(9, 1, 1, 1).expand(9, 1, 16, 16)
    for seed in range(20):
        mixed, (y_a, y_b, lam) = augment.cutmix(x, y, torch.Generator().manual_seed(seed))
        own = (mixed == y_a.view(9, 1, 1, 1)).float().mean(dim=(1, 2, 3))
        other = (mixed == y_b.view(9, 1, 1, 1)).float().mean(dim=(1, 2, 3))
        moved = y_a != y_b
        torch.testing.assert_close(own[moved], torch.full_like(own[moved], lam))
        torch.testing.assert_close(other[moved], torch.full_like(own[moved], 1 - lam))
    assert torch.equal(x, y.float().view(9, 1, 1, 1).expand(9, 1, 16, 16)), "the input must stay as it was"
