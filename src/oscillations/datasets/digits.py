"""scikit-learn's handwritten digits: 1,797 images of 8x8, 17 grey levels, no download.

The package gives no test split, and its order follows the writers, so 397 images are drawn once as a test
split with a fixed generator.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oscillations.datasets import Images

CLASSES = [str(digit) for digit in range(10)]
IMAGE_SHAPE = (1, 8, 8)
MEAN, STD = (0.305,), (0.376,)  # of all pixels
TRAIN_IMAGES = 1400


def prepare(source: Path | None, downloads: Path) -> Images:
    """The digits, whatever ``source``: a study may mix datasets, and that is for the others."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 16 is the brightest of 17 levels: stretch to the full range of a byte
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    labels = digits.target.astype(np.int64)
    return Images(images[train], labels[train], images[test], labels[test], "scikit-learn")
