"""Augmentation: each transform does what it says, from the seed alone, in both memory layouts."""

import numpy as np
import pytest
from checker import channels_last
from scipy import ndimage

from fastdl.data import Batches
from fastdl.data.augment import Affine, Compose, Crop, CutOut, Elastic, Flip, MixUp, Noise, Rotate, Scale, Shift, TimeWarp

RNG = np.random.default_rng
IMAGES = RNG(0).random((6, 3, 12, 10), dtype=np.float32)
LABELS = np.arange(6)
SERIES = RNG(1).standard_normal((5, 9, 2)).astype("f4")
ON_IMAGES = [
    Crop((8, 6)), Crop(12, padding=2), Shift(3), Flip(), Flip(1.0, -2), CutOut(4),
    Affine(20, 0.2, 2), Rotate(30), Scale(0.3), Elastic(1.0, 2),
]


@pytest.mark.parametrize("transform", [*ON_IMAGES, Noise(0.1), MixUp(6, 1.0)], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_images(transform, dtype):
    x = IMAGES.astype(dtype)
    before = x.copy()
    got, labels = transform(RNG(3), x, LABELS)
    assert got.dtype == dtype and (labels is LABELS or isinstance(transform, MixUp)) and not np.shares_memory(got, x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(transform(RNG(3), x, LABELS)[0], got)  # a seed fixes it
    assert len(got) == 6 and got.shape[1] == 3
    last = channels_last(x)
    answer = transform(RNG(3), last, LABELS)[0]
    np.testing.assert_array_equal(answer, got)  # the same values in the other layout
    assert np.moveaxis(answer, 1, -1).flags.c_contiguous and got.flags.c_contiguous
    assert transform(RNG(3), x[:0], LABELS[:0])[0].shape == (0, *got.shape[1:])
    strided = np.repeat(x, 2, axis=3)[..., ::2]
    np.testing.assert_array_equal(transform(RNG(3), strided, LABELS)[0], got)


def test_seeds_differ():
    for transform in (Shift(3), Affine(20), Elastic(), CutOut(4), Noise(0.1), Flip()):
        assert any((transform(RNG(0), IMAGES)[0] != transform(RNG(s), IMAGES)[0]).any() for s in (1, 2))


def dots(n=400, size=9):
    x = np.zeros((n, 1, size, size), np.float32)
    x[:, 0, size // 2, size // 2] = 1
    return x


def test_shift_reaches_every_place_and_no_other():
    moved, = Shift(2)(RNG(0), dots())
    assert moved.sum() == 400
    assert {tuple(where - 4) for where in np.argwhere(moved[:, 0])[:, 1:]} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_crop():
    x = np.arange(5 * 6, dtype="f4").reshape(1, 1, 5, 6).repeat(200, 0)
    got, = Crop((3, 4))(RNG(0), x)
    assert {int(window[0, 0, 0]) for window in got} == {6 * i + j for i in range(3) for j in range(3)}
    for window in got[:20, 0]:
        np.testing.assert_array_equal(window - window[0, 0], x[0, 0, :3, :4])
    np.testing.assert_array_equal(Crop(5)(RNG(0), x[..., :5])[0], x[..., :5])
    padded, = Crop(7, padding=3)(RNG(0), x + 1)
    assert (padded == 0).any()


def test_flip():
    got, = Flip(0.3)(RNG(0), np.repeat(IMAGES[:1], 1000, 0))
    mirrored = (got == IMAGES[:1, :, :, ::-1]).all((1, 2, 3))
    assert 250 < mirrored.sum() < 350 and ((got == IMAGES[:1]).all((1, 2, 3)) ^ mirrored).all()
    np.testing.assert_array_equal(Flip(1.0, axis=-2)(RNG(0), IMAGES)[0], IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(Flip(0.0)(RNG(0), IMAGES)[0], IMAGES)


def test_cut_out():
    x = np.ones((300, 2, 9, 9), np.float32)
    got, = CutOut(3)(RNG(0), x)
    np.testing.assert_array_equal(got[:, 0], got[:, 1])  # all channels alike
    holes = 81 - got[:, 0].sum((1, 2))
    assert set(holes) == {4, 6, 9}  # a corner, a border, inside
    hole = np.argwhere(got[holes == 9][0, 0] == 0)
    assert (hole.max(0) - hole.min(0) == 2).all()


def test_affine_against_scipy():
    """One image, its rotation, scale and shift known: scipy's affine_transform about the centre."""

    class Fixed:
        def __init__(self, *values):
            self.values = list(values)

        def uniform(self, low, high, n):
            return np.full(n, self.values.pop(0))

    x = ndimage.gaussian_filter(RNG(2).random((1, 1, 15, 11)), (0, 0, 1, 1)).astype("f8")
    angle, factor, down, right = 0.3, 1.2, 1.5, -0.75
    got, = Affine(90, 1, 9)(Fixed(angle, np.log(factor), down, right), x)
    back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / factor
    centre = np.array([7, 5])
    want = ndimage.affine_transform(x[0, 0], back, offset=centre - back @ (centre + [down, right]), order=1, mode="constant")
    np.testing.assert_allclose(got[0, 0], want, atol=1e-12)


def test_affine_bounds():
    x = np.zeros((300, 1, 41, 41), np.float32)
    x[:, 0, 20, 36] = 1  # 16 cells to the right of the centre
    i, j = np.mgrid[:41, :41]

    def centre(y):
        total = y.sum((1, 2, 3))
        return (y[:, 0] * i).sum((1, 2)) / total - 20, (y[:, 0] * j).sum((1, 2)) / total - 20

    down, right = centre(Rotate(30)(RNG(0), x)[0])
    angle = np.degrees(np.arctan2(down, right))
    assert -31 < angle.min() < -25 and 25 < angle.max() < 31 and abs(angle.mean()) < 3
    np.testing.assert_allclose(np.hypot(down, right), 16, atol=0.6)
    _, right = centre(Scale(0.2)(RNG(0), x)[0])
    assert 16 / 1.2 - 0.5 < right.min() < 14 and 18.5 < right.max() < 16 * 1.2 + 0.5
    np.testing.assert_array_equal(Affine()(RNG(0), IMAGES)[0], IMAGES)


def test_elastic_moves_by_its_strength():
    x = np.broadcast_to(np.arange(40, dtype="f8"), (40, 1, 40, 40))  # a cell's value is its column: the answer is where it came from
    for strength in (0.5, 2.0):
        moved = Elastic(strength, 3)(RNG(0), x)[0][:, 0, 10:30, 10:30] - x[:, 0, 10:30, 10:30]
        assert abs(moved.std() / strength - 1) < 0.1
    assert abs(np.corrcoef(moved[:, 0, 0], moved[:, 0, 1])[0, 1] - np.exp(-1 / 36)) < 0.05  # neighbours move together
    np.testing.assert_array_equal(Elastic(0.0)(RNG(0), IMAGES)[0], IMAGES)


def test_mix_up():
    x = np.eye(6, dtype="f4").reshape(6, 1, 1, 6)
    got, lengths, p = MixUp(6, 1.0)(RNG(0), x, LABELS + 10, LABELS)
    assert p.dtype == np.float32 and lengths[0] == 10
    np.testing.assert_array_equal(got[:, 0, 0], p)  # what is mixed is labelled so
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    shares = [MixUp(6, 0.2)(RNG(s), x, LABELS)[1].diagonal() for s in range(200)]
    share = np.array([s.min() for s in shares])
    assert (share < 0.1).mean() > 0.2 and (share > 0.9).mean() > 0.2  # Beta(0.2, 0.2): most often nearly the one or the other
    np.testing.assert_array_equal(MixUp(6, 0.0)(RNG(0), x, LABELS)[0], x)


def test_mixed_labels_join_the_loss():
    import fastdl
    import fastdl.functional as F

    scores = RNG(0).standard_normal((6, 6)).astype("f4")
    with fastdl.use_backend("reference"):
        np.testing.assert_allclose(F.cross_entropy(scores, np.eye(6, dtype="f4")), F.cross_entropy(scores, LABELS), rtol=1e-6)


def test_noise():
    got, = Noise(0.3)(RNG(0), np.zeros((40, 50, 3), np.float32))
    assert abs(got.std() - 0.3) < 0.01 and abs(got.mean()) < 0.01


def test_time_warp():
    lengths = np.array([9, 4, 1, 7, 2])
    x = SERIES.copy()
    for row, n in zip(x, lengths, strict=True):
        row[n:] = 0
    got, same, labels = TimeWarp(0.5, lengths=True)(RNG(0), x, lengths, LABELS[:5])
    assert got.shape == x.shape and got.dtype == x.dtype and same is lengths and labels is not None
    for row, old, n in zip(got, x, lengths, strict=True):
        np.testing.assert_array_equal(row[n:], 0)
        np.testing.assert_allclose(row[[0, n - 1]], old[[0, n - 1]], rtol=1e-6)  # first and last frame stay
    time = np.broadcast_to(np.arange(9, dtype="f4")[:, None], (200, 9, 1))  # the answer is where a frame came from
    source, = TimeWarp(0.5)(RNG(0), time)
    assert (np.diff(source[:, :, 0]) > 0).all() and source[:, 4].std() > 0.3  # in order, and really warped
    np.testing.assert_allclose(TimeWarp(0.0)(RNG(0), SERIES)[0], SERIES, atol=1e-6)


def test_compose_within_batches():
    batches = lambda: Batches(IMAGES, LABELS, batch_size=4, seed=2, transform=Compose(Shift(1), Affine(10), MixUp(6)))
    for (x, y), (x2, y2) in zip(batches(), batches(), strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
        assert y.shape[1:] == (6,)


@pytest.mark.parametrize("make,error,message", [
    (lambda: Shift(-1), ValueError, "Shift: most is -1"),
    (lambda: Shift(0.5), TypeError, "Shift: most must be an integer"),
    (lambda: Crop(0), ValueError, "Crop: size is 0"),
    (lambda: Crop(13)(RNG(0), IMAGES), ValueError, r"Crop: size is \(13, 13\), the images are 12 x 10 with a padding of 0"),
    (lambda: Flip(2), ValueError, "Flip: p is 2.0"),
    (lambda: Flip(axis=1), ValueError, "Flip: axis is 1; the rule is one of -1, -2"),
    (lambda: CutOut(0), ValueError, "CutOut: size is 0"),
    (lambda: Affine(rotate=200), ValueError, "Affine: rotate is 200.0"),
    (lambda: Scale(-1), ValueError, "Scale: scale is -1.0"),
    (lambda: Elastic(sigma=0), ValueError, "Elastic: sigma is 0.0"),
    (lambda: MixUp(1), ValueError, "MixUp: classes is 1"),
    (lambda: MixUp(3)(RNG(0), IMAGES, LABELS), ValueError, "MixUp: labels are from 0 to 5; the rule is 0 to 2"),
    (lambda: MixUp(6)(RNG(0), IMAGES, LABELS[:2]), ValueError, r"MixUp: labels are int64, shape \(2,\)"),
    (lambda: Noise("much"), TypeError, "Noise: std must be a number"),
    (lambda: TimeWarp(knots=1), ValueError, "TimeWarp: knots is 1"),
    (lambda: TimeWarp()(RNG(0), IMAGES), ValueError, r"TimeWarp: x has shape \(6, 3, 12, 10\); the rule is \(N, steps, channels\)"),
    (lambda: Compose(Shift(1), 3), TypeError, "Compose: transform 1 must be callable"),
    *[(lambda t=t: t(RNG(0), SERIES), ValueError, r"x is float32 of shape \(5, 9, 2\); the rule is images") for t in ON_IMAGES],
    (lambda: Shift(1)(RNG(0), [1]), ValueError, "Shift: x is list"),
])
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
