"""The measures of the evaluation: balanced accuracy, a sign test and SSIM."""

from __future__ import annotations

from math import comb

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d


def balanced_accuracy(truth: np.ndarray, verdict: np.ndarray) -> float:
    """Mean of the shares found right among each of the true classes, 0 to 1."""
    shares = [float((verdict[truth == kind] == kind).mean()) for kind in np.unique(truth)]
    return sum(shares) / len(shares)


def sign_test(fewer: int, more: int) -> float:
    """One-sided p-value of at least `fewer` of the pairs that changed changing that way, if
    both ways were as likely (McNemar's exact test)."""
    changed = fewer + more
    return float(sum(comb(changed, k) for k in range(fewer, changed + 1)) / 2**changed)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of pairs of pictures [n, 3, height, width] in -1 to 1, as [n].

    On luma, with the Gaussian window of 11 pixels and the constants of Wang et al., 2004.
    """
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x, y = (((p + 1) / 2 * luma).sum(1, keepdim=True) for p in (first, second))
    line = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return conv2d(values, window)

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return likeness.mean(dim=(1, 2, 3))
