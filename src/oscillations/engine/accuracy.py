"""Accuracy of a network as it is, and its batch-norm statistics anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from oscillations.engine.batches import ImageSet

REESTIMATION_IMAGES = 4096  # training images for new batch-norm statistics
REESTIMATION_BATCH = 128


@torch.no_grad()
def accuracy(model: nn.Module, images: ImageSet) -> tuple[float, float]:
    """Top-1 accuracy in percent and mean cross-entropy, in evaluation mode."""
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=images.labels.device)
    for x, y in images.batches():
        logits = model(x)
        correct += (logits.argmax(1) == y).sum()
        loss += F.cross_entropy(logits, y, reduction="sum")
    return 100 * correct.item() / len(images), loss.item() / len(images)


@contextmanager
def reestimated_norms(model: nn.Module, images: ImageSet) -> Iterator[None]:
    """Batch-norm statistics of the present weights inside the block; the model's own come back after it.

    The statistics are the plain average over batches of the first 4,096 training images.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m, m.momentum, {k: v.clone() for k, v in m.named_buffers()}) for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        if norms:
            with torch.no_grad():
                for start in range(0, min(REESTIMATION_IMAGES, len(images)), REESTIMATION_BATCH):
                    stop = min(start + REESTIMATION_BATCH, REESTIMATION_IMAGES, len(images))
                    if stop - start > 1:
                        model(images.batch(slice(start, stop))[0])
        model.eval()
        yield
    finally:
        for norm, momentum, buffers in kept:
            norm.momentum = momentum
            for key, value in buffers.items():
                getattr(norm, key).copy_(value)
