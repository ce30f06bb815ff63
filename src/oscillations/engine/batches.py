"""A dataset in memory: uint8 images on the device, normalised batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oscillations.engine.recipe import Recipe

EVALUATION_BATCH = 500  # images; accuracy does not depend on it, memory does


def split_indices(count: int, validation: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation indices: one fixed permutation of the training images, its tail held out."""
    order = np.random.RandomState(seed).permutation(count)
    return order[: count - validation], order[count - validation :]


def evenly(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Ascending indices of ``count`` of ``labels`` ``[n]``, drawn evenly over the classes that occur; all if n is less.

    Numbers per class differ by at most one, but for classes with fewer images, which give all they have. Who is drawn
    is a function of the arguments alone: numpy's RandomState is the same everywhere and in every version.
    """
    generator = np.random.RandomState(seed)
    shuffled = generator.permutation(len(labels))
    classes, of_class = np.unique(labels[shuffled], return_inverse=True)
    turn = np.empty(len(labels), np.int64)  # how many of its class come before an image
    for place in range(len(classes)):
        members = np.flatnonzero(of_class == place)
        turn[members] = np.arange(len(members))
    class_order = generator.permutation(len(classes))  # who gives one more if the classes do not divide the count
    rounds = np.lexsort((class_order[of_class], turn))  # one image of every class, then the second of every class
    return np.sort(shuffled[rounds[:count]])


class ImageSet:
    """Images ``[n, channels, height, width]`` (uint8) with labels ``[n]``; batches come normalised.

    ``resize`` upsamples every batch on the device to that side length (bilinear), for networks that were
    pretrained on larger images.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: list[float], std: list[float], resize: int | None = None):
        self.images, self.labels, self.resize = images, labels, resize
        shape = (1, len(mean), 1, 1)
        # (x / 255 - mean) / std as one multiplication and one subtraction
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(shape)
        self._shift = torch.tensor([m / s for m, s in zip(mean, std)], device=images.device).view(shape)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised float32 images and labels at ``indices``."""
        if isinstance(indices, slice):
            images, labels = self.images[indices], self.labels[indices]
        else:  # four times as fast as indexing with a tensor
            images, labels = self.images.index_select(0, indices), self.labels.index_select(0, indices)
        images = images.float().mul_(self._scale).sub_(self._shift)
        if self.resize:
            images = F.interpolate(images, size=(self.resize, self.resize), mode="bilinear", antialias=False)
        return images, labels

    def batches(self, size: int = EVALUATION_BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order of the images in one epoch: a function of seed and epoch alone, so a resume finds it."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(len(self), generator=generator).to(self.labels.device)


def crop_flip(images: Tensor, padding: int = 4) -> Tensor:
    """A random crop of every zero-padded image, mirrored with probability 1/2; a new tensor of the same shape.

    The random numbers come from torch's CPU generator, whose state a resumed run restores.
    """
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1))
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    rows, columns = (top + torch.arange(height)).to(images.device), (left + columns).to(images.device)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def chosen_images(about: dict, tensors: dict[str, Tensor], recipe: Recipe) -> dict[str, tuple[str, Tensor, Tensor]]:
    """Which images of the file are the ``train``, ``validation`` and ``test`` set of a recipe.

    Of each set: the file's split, ``train`` or ``test``; the indices there, in the set's order; and their labels, both
    ``[n]``. ``classes`` keeps only the images of some classes, renumbered from 0; ``images`` so many of each set, drawn
    evenly over the classes.
    """
    train, validation = split_indices(about["train"], recipe.validation, recipe.split_seed)
    parts = {
        "train": ("train", torch.from_numpy(train)),
        "validation": ("train", torch.from_numpy(validation)),
        "test": ("test", torch.arange(about["test"])),
    }
    chosen = {}
    for part, (source, indices) in parts.items():
        labels = tensors[f"{source}_labels"]
        if recipe.classes is not None:
            new_label = torch.full((len(about["classes"]),), -1)
            new_label[list(recipe.classes)] = torch.arange(len(recipe.classes))
            labels = new_label[labels]
            indices = indices[labels[indices] >= 0]
        if recipe.images is not None:
            drawn = evenly(labels[indices].numpy(), getattr(recipe.images, part), recipe.split_seed)
            indices = indices[torch.from_numpy(drawn)]
        chosen[part] = source, indices, labels[indices]
    return chosen


def image_sets(about: dict, tensors: dict[str, Tensor], recipe: Recipe, device: torch.device) -> dict[str, ImageSet]:
    """The ``train``, ``validation`` and ``test`` sets of a recipe (:func:`chosen_images`), on the device.

    Inputs are normalised as those that the pretrained weights saw, or by the dataset.
    """
    norm = recipe.pretrained
    mean, std = (norm.mean, norm.std) if norm else (about["mean"], about["std"])
    sets = {}
    for part, (source, indices, labels) in chosen_images(about, tensors, recipe).items():
        images = tensors[f"{source}_images"][indices].to(device)
        sets[part] = ImageSet(images, labels.to(device), mean, std, recipe.resize)
    return sets


def images_per_class(images: ImageSet, classes: int) -> list[int]:
    """How many images a set holds of each of ``classes`` classes."""
    return torch.bincount(images.labels, minlength=classes).tolist()
