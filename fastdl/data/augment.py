"""Augmentation: transforms of a batch that leave its meaning, for ``Batches(..., transform=...)``.

    Batches(images, labels, batch_size=64, seed=0, transform=Compose(Affine(rotate=10, shift=2), CutOut(8)))

A transform is called as ``transform(rng, x, *rest)`` and answers the batch to use, new memory, with rest as it was (MixUp
changes labels, too). It draws from rng alone, so a seed fixes it. Images are (N, C, H, W) of float32 or float64, in any memory
layout (channels-first or channels-last), and are answered in the same; what comes in from beyond the border is 0. Sequences are
(N, steps, channels).

Each constructor raises TypeError or ValueError for an argument out of range, each call ValueError for an x of another rank.
"""

from __future__ import annotations

import math

import numpy as np

from .. import check

__all__ = ["Affine", "Compose", "Crop", "CutOut", "Elastic", "Flip", "MixUp", "Noise", "Rotate", "Scale", "Shift", "TimeWarp"]


class Compose:
    """One transform after another."""

    def __init__(self, *transforms):
        for i, transform in enumerate(transforms):
            if not callable(transform):
                raise TypeError(f"Compose: transform {i} must be callable, got {transform!r}")
        self.transforms = transforms

    def __call__(self, rng, *batch):
        for transform in self.transforms:
            batch = transform(rng, *batch)
        return batch


# ------------------------------------------------------------------------------------------------ images, cell by cell
class Crop:
    """A window of ``size`` (an integer or (height, width)) at a random place of the image after ``padding`` cells of 0 on each side.

    Raises ValueError where the window is larger than the padded image.
    """

    def __init__(self, size, padding=0):
        self.size = check.integers("Crop", "size", size, 2, 1)
        self.padding = check.integer("Crop", "padding", padding, 0)

    def __call__(self, rng, x, *rest):
        _check_images("Crop", x)
        return _windows("Crop", rng, x, self.size, self.padding), *rest


class Shift:
    """Each image moved by up to ``most`` whole cells up or down and left or right."""

    def __init__(self, most=2):
        self.most = check.integer("Shift", "most", most, 0)

    def __call__(self, rng, x, *rest):
        _check_images("Shift", x)
        return _windows("Shift", rng, x, x.shape[2:], self.most), *rest


class Flip:
    """Mirrors each image with probability p: left and right (axis=-1) or up and down (axis=-2)."""

    def __init__(self, p=0.5, axis=-1):
        self.p = check.number("Flip", "p", p, 0, 1)
        self.axis = check.choice("Flip", "axis", axis, (-1, -2))

    def __call__(self, rng, x, *rest):
        _check_images("Flip", x)
        y = x.copy(order="K")
        chosen = rng.random(len(x)) < self.p
        y[chosen] = np.flip(x[chosen], self.axis)
        return y, *rest


class CutOut:
    """A square of ``size`` x ``size`` cells around a random cell of each image becomes 0 (less of it at the border).

    Source: T. DeVries, G. Taylor, "Improved regularization of convolutional neural networks with cutout" (2017).
    """

    def __init__(self, size):
        self.size = check.integer("CutOut", "size", size, 1)

    def __call__(self, rng, x, *rest):
        _check_images("CutOut", x)
        n, _, height, width = x.shape
        inside = []
        for cells in (height, width):
            first = rng.integers(0, cells, (n, 1)) - self.size // 2
            inside.append((np.arange(cells) >= first) & (np.arange(cells) < first + self.size))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        y = x.copy(order="K")
        np.copyto(y, 0, where=hole)
        return y, *rest


# ------------------------------------------------------------------------------------------------ images, interpolated
class Affine:
    """Each image turned, scaled and shifted at random about its centre, by one linear interpolation.

    rotate: by up to so many degrees either way. scale: by a factor between 1 / (1 + scale) and 1 + scale, both directions
    alike (log-uniform). shift: by up to so many cells, fractions included, in each direction. Needs scipy.
    """

    def __init__(self, rotate=0.0, scale=0.0, shift=0.0):
        name = type(self).__name__
        self.rotate = check.number(name, "rotate", rotate, 0, 180)
        self.scale = check.number(name, "scale", scale, 0)
        self.shift = check.number(name, "shift", shift, 0)

    def __call__(self, rng, x, *rest):
        _check_images(type(self).__name__, x)
        n, _, height, width = x.shape
        draw = lambda most: rng.uniform(-most, most, n)[:, None, None]
        angle, factor = draw(math.radians(self.rotate)), np.exp(draw(math.log1p(self.scale)))
        down, right = draw(self.shift), draw(self.shift)
        i, j = np.mgrid[:height, :width]
        i, j = i - (height - 1) / 2 - down, j - (width - 1) / 2 - right  # of the output, from its centre; then backwards to the input
        cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
        return _resample(x, cos * i - sin * j + (height - 1) / 2, sin * i + cos * j + (width - 1) / 2), *rest


class Rotate(Affine):
    """Each image turned about its centre by up to so many degrees either way."""

    def __init__(self, degrees):
        super().__init__(rotate=degrees)


class Scale(Affine):
    """Each image larger or smaller by a factor between 1 / (1 + most) and 1 + most."""

    def __init__(self, most):
        super().__init__(scale=most)


class Elastic:
    """Each image bent as if it were printed on rubber: random displacements, smoothed by a Gaussian of ``sigma`` cells, whose
    standard deviation is ``strength`` cells. Needs scipy.

    Source: P. Simard et al., "Best practices for convolutional neural networks applied to visual document analysis" (2003).
    """

    def __init__(self, strength=1.0, sigma=4.0):
        self.strength = check.number("Elastic", "strength", strength, 0)
        self.sigma = check.number("Elastic", "sigma", sigma, 0.5)

    def __call__(self, rng, x, *rest):
        _check_images("Elastic", x)
        n, _, height, width = x.shape
        field = rng.standard_normal((2, n, height, width))
        field = _ndimage().gaussian_filter(field, (0, 0, self.sigma, self.sigma), mode="reflect")
        field *= self.strength * 2 * math.sqrt(math.pi) * self.sigma  # the smoothed field's deviation is 1 / (2 sqrt(pi) sigma)
        i, j = np.mgrid[:height, :width]
        return _resample(x, i + field[0], j + field[1]), *rest


# ------------------------------------------------------------------------------------------------ labels too
class MixUp:
    """Each row becomes a mixture of itself and another one, and so does its label, which becomes a row of probabilities.

    classes: how many. alpha: the mixture's share is drawn from Beta(alpha, alpha), one for a batch. Labels are
    integers from 0 to classes - 1, the batch's last array; they are answered as (N, classes) in x's dtype, which
    ``cross_entropy`` takes. Raises ValueError for a label out of range.
    Source: H. Zhang et al., "mixup: beyond empirical risk minimization" (2018).
    """

    def __init__(self, classes, alpha=0.2):
        self.classes = check.integer("MixUp", "classes", classes, 2)
        self.alpha = check.number("MixUp", "alpha", alpha, 0)

    def __call__(self, rng, x, *rest):
        *others, labels = rest
        if labels.dtype.kind not in "iu" or labels.shape != (len(x),):
            raise ValueError(f"MixUp: labels are {labels.dtype}, shape {labels.shape}; the rule is integers, one for each row ({len(x)})")
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ValueError(f"MixUp: labels are from {labels.min()} to {labels.max()}; the rule is 0 to {self.classes - 1}")
        share = x.dtype.type(rng.beta(self.alpha, self.alpha) if self.alpha else 1.0)
        order = rng.permutation(len(x))
        one_hot = np.eye(self.classes, dtype=x.dtype)[labels]
        y = np.multiply(x, share, out=np.empty_like(x))
        y += (1 - share) * x[order]
        return y, *others, share * one_hot + (1 - share) * one_hot[order]


# ------------------------------------------------------------------------------------------------ sequences
class Noise:
    """Normal noise of standard deviation ``std`` on every value of x, whatever its rank."""

    def __init__(self, std):
        self.std = check.number("Noise", "std", std, 0)

    def __call__(self, rng, x, *rest):
        y = np.empty_like(x)
        y[...] = rng.standard_normal(x.shape, dtype=x.dtype)
        y *= x.dtype.type(self.std)
        y += x
        return y, *rest


class TimeWarp:
    """Each sequence (steps, channels) runs faster here and slower there, first and last step kept, by linear interpolation.

    strength: the standard deviation of the logarithm of the speed at ``knots`` points in time, between which it is linear.
    lengths: the batch's second array says how many steps each row has; what lies behind them stays.
    """

    def __init__(self, strength=0.2, knots=4, lengths=False):
        self.strength = check.number("TimeWarp", "strength", strength, 0)
        self.knots = check.integer("TimeWarp", "knots", knots, 2)
        self.lengths = bool(lengths)

    def __call__(self, rng, x, *rest):
        if x.ndim != 3:
            raise ValueError(f"TimeWarp: x has shape {x.shape}; the rule is (N, steps, channels)")
        n, steps, _ = x.shape
        last = (np.asarray(rest[0])[:, None] if self.lengths else np.full((n, 1), steps)) - 1
        step = np.arange(steps)
        knot = np.minimum(step, last) / np.maximum(last, 1) * (self.knots - 1)
        z = rng.normal(0, self.strength, (n, self.knots))
        speed = np.exp(_between(z[..., None], knot)[..., 0])
        way = np.cumsum(np.where(step < last, speed, 0), axis=1) - np.where(step < last, speed, 0)  # before each step
        whole = np.take_along_axis(way, last, axis=1)
        source = np.where(step <= last, way * (last / np.where(whole > 0, whole, 1)), step)
        return _between(x, np.clip(source, 0, steps - 1)), *rest


def _between(x, places):
    """x (N, steps, channels) at places (N, new steps), fractions of a step included."""
    low = np.minimum(places.astype(int), x.shape[1] - 1)
    high = np.minimum(low + 1, x.shape[1] - 1)
    share = (places - low)[..., None].astype(x.dtype)
    row = np.arange(len(x))[:, None]
    return x[row, low] * (1 - share) + x[row, high] * share


# ------------------------------------------------------------------------------------------------ what images share
def _check_images(name, x):
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.ndim != 4:
        what = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"{name}: x is {what}; the rule is images (N, C, H, W) of floats")


def _windows(name, rng, x, size, padding):
    n, channels, height, width = x.shape
    rows, columns = height + 2 * padding - size[0] + 1, width + 2 * padding - size[1] + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"{name}: size is {size}, the images are {height} x {width} with a padding of {padding}; the rule is no larger")
    padded = np.zeros((n, height + 2 * padding, width + 2 * padding, channels), x.dtype)
    padded[:, padding : padding + height, padding : padding + width] = np.moveaxis(x, 1, -1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, (1, 2))
    y = _like(x, size)
    y[...] = windows[np.arange(n), rng.integers(0, rows, n), rng.integers(0, columns, n)]  # (N, C, height, width)
    return y


def _resample(x, i, j):
    """Each image at rows i and columns j (N, H, W), fractions of a cell included; 0 outside."""
    y = _like(x, i.shape[1:])
    places = np.broadcast_arrays(np.arange(len(x), dtype=float)[:, None, None], i, j)
    for channel in range(x.shape[1]):
        y[:, channel] = _ndimage().map_coordinates(x[:, channel], places, order=1, mode="constant", output=x.dtype)
    return y


def _like(x, size):
    """New images of this size in x's memory layout."""
    n, channels, *_ = x.shape
    if channels > 1 and x.strides[1] < x.strides[3]:
        return np.moveaxis(np.empty((n, *size, channels), x.dtype), -1, 1)
    return np.empty((n, channels, *size), x.dtype)


def _ndimage():
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ModuleNotFoundError("this augmentation needs scipy: pip install fastdl[demo]", name="scipy") from error
    return ndimage
