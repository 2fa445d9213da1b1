"""Each demo's network for a few steps: at each, the loss and every gradient are torch's for the same weights; the loss falls.

Gradients are compared in float64: in float32, an input of ReLU or max-pooling that rounds to the other side moves a gradient to
another place, and no bound on what follows would catch a fault.
"""

import numpy as np
import pytest
import torch
import torch_networks as theirs
from checker import assert_close

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.demos import charlm, cluster, cnn, gan, mlp, overfit, regress, rnn, select

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.random((6, 1, 28, 28), dtype=np.float32), np.arange(6)
SMALL = RNG.random((6, 1, 8, 8), dtype=np.float32)
SPEECH, LENGTHS = RNG.standard_normal((6, 9, 12)).astype("f4"), np.array([9, 4, 7, 1, 9, 3])
for row, length in zip(SPEECH, LENGTHS, strict=True):
    row[length:] = 0
TEXT = RNG.integers(0, 11, (4, 21))
YEARS = RNG.standard_normal((8, regress.WINDOW)).astype("f4")
CE, TORCH_CE = F.cross_entropy, torch.nn.functional.cross_entropy
MSE, TORCH_MSE = F.mse_loss, torch.nn.functional.mse_loss
BCE, TORCH_BCE = F.binary_cross_entropy_with_logits, torch.nn.functional.binary_cross_entropy_with_logits

CASES = {  # ours, torch's, inputs, target, the loss and torch's
    "mlp": (mlp.build, theirs.mlp, (IMAGES,), LABELS, CE, TORCH_CE),
    "cnn": (cnn.build, lambda: theirs.cnn(32, 64, 1024), (IMAGES,), LABELS, CE, TORCH_CE),
    "rnn": (lambda: rnn.Speaker(16), lambda: theirs.Speaker(16), (SPEECH, LENGTHS), LABELS, CE, TORCH_CE),
    "charlm": (lambda: charlm.CharacterModel(11, 8, 16), lambda: theirs.CharacterModel(11, 8, 16), (TEXT[:, :-1],), TEXT[:, 1:], CE,
               TORCH_CE),
    "regress": (regress.build, lambda: theirs.regress(regress.WINDOW), (YEARS,), YEARS[:, :1] * 2, MSE, TORCH_MSE),
    "cluster": (cluster.Autoencoder, lambda: theirs.autoencoder(cluster.CODE), (IMAGES,), IMAGES, BCE, TORCH_BCE),
    "overfit": (lambda: overfit.build(0.5), lambda: theirs.cnn(16, 32, 128), (IMAGES,), LABELS, CE, TORCH_CE),
    "select": (lambda: select.STRUCTURES["CNN 8-16"]["build"](select.SHAPE, 10), theirs.select_cnn, (SMALL,), LABELS, CE, TORCH_CE),
}


def as_torch(a):
    return torch.tensor(exact(a))


def exact(a):
    return a.astype("f8") if a.dtype.kind == "f" else a


def double(model):
    """The model in float64."""
    for p in model.parameters():
        p.__setstate__((exact(p.data), None, True))
    for module in model.modules():
        for name in module._buffers:
            setattr(module, name, exact(getattr(module, name)))
    return model


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_torchs_and_the_loss_falls(name):
    build, build_torch, inputs, target, loss, torch_loss = CASES[name]
    with nn.seeded(0):
        model = build().eval()  # dropout off: the two draw different numbers
        single = float(loss(model(*inputs), target))
    model, inputs, target = double(model), [exact(a) for a in inputs], exact(target)
    reference = build_torch()
    optimizer = optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for step in range(10):
        optimizer.zero_grad()
        y, pullback = model.vjp(*inputs)
        value, loss_pullback = fastdl.vjp(loss, y, target)
        pullback(loss_pullback(1.0)[0], needs=False)
        losses.append(float(value))
        if step < 3:
            theirs.take_weights(reference, model)
            want = torch_loss(reference(*map(as_torch, inputs)), as_torch(target))
            want.backward()
            assert_close(value, want.item(), "sum", 100)
            for (parameter, p), t in zip(model.named_parameters(), reference.parameters(), strict=True):
                assert_close(p.grad, t.grad.numpy(), "recurrent", 100, what=f"step {step}, {parameter}")
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    np.testing.assert_allclose(single, losses[0], rtol=1e-5)  # and float32 agrees


def test_padding_has_no_influence_on_the_speaker():
    with nn.seeded(0):
        model = rnn.Speaker(8).eval()
    dirty = SPEECH.copy()
    for row, length in zip(dirty, LENGTHS, strict=True):
        row[length:] = 1e3
    for x in (dirty, np.concatenate([SPEECH, np.zeros_like(SPEECH)], axis=1)):
        np.testing.assert_allclose(model(x, LENGTHS), model(SPEECH, LENGTHS), atol=1e-6)


# ------------------------------------------------------------------------------------------------ the GAN
class Recorder(optim.SGD):
    """Keeps the gradients that a step met."""

    def step(self):
        self.met = [None if p.grad is None else p.grad.copy() for group in self.param_groups for p in group["params"]]
        super().step()


def test_both_halves_of_the_gan_are_trained_with_torchs_gradients():
    with nn.seeded(0):
        g, d = double(gan.build_generator()), double(gan.build_discriminator())
    g_optimizer, d_optimizer = Recorder(g.parameters(), lr=0.01), Recorder(d.parameters(), lr=0.01)
    rng = np.random.default_rng(1)
    real = exact(gan.enlarge(IMAGES[:4]))
    for _ in range(2):
        noise = rng.standard_normal((4, gan.NOISE))
        tg, td = theirs.take_weights(theirs.generator(gan.NOISE), g), theirs.take_weights(theirs.discriminator(), d)
        fake = tg(as_torch(noise))
        d_loss = TORCH_BCE(td(as_torch(real)), torch.full((4, 1), 0.9, dtype=torch.float64))
        d_loss = d_loss + TORCH_BCE(td(fake.detach()), torch.zeros(4, 1).double())
        d_loss.backward()
        with torch.no_grad():
            d_gradients = [p.grad.numpy().copy() for p in td.parameters()]
            for p in td.parameters():
                p -= 0.01 * p.grad
        g_loss = TORCH_BCE(td(fake), torch.ones(4, 1).double())  # by the discriminator as it is after its own step
        g_loss.backward()
        got = gan.step(g, d, g_optimizer, d_optimizer, real, noise)
        assert_close(np.array(got), [g_loss.item(), d_loss.item()], "sum", 100, what="losses")
        for (name, _), p, want in zip(d.named_parameters(), d_optimizer.met, d_gradients, strict=True):
            assert_close(p, want, "recurrent", 10000, what=f"discriminator {name}")
        for (name, _), p, want in zip(g.named_parameters(), g_optimizer.met, tg.parameters(), strict=True):
            assert_close(p, want.grad.numpy(), "recurrent", 10000, what=f"generator {name}")
    assert all(p.requires_grad for p in d.parameters())


def test_the_gan_is_trained_in_turn():
    with nn.seeded(0):
        g, d = (nn.Sequential(nn.Linear(gan.NOISE, 9), nn.Sigmoid()), nn.Linear(9, 1))
    order = []

    class Spy(Recorder):
        def step(self):
            super().step()
            order.append("d" if self is d_optimizer else "g")

    g_optimizer, d_optimizer = Spy(g.parameters(), lr=0.1), Spy(d.parameters(), lr=0.1)
    noise, real = RNG.standard_normal((5, gan.NOISE)).astype("f4"), RNG.random((5, 9), dtype=np.float32)
    losses = []
    for _ in range(3):
        losses.append(gan.step(g, d, g_optimizer, d_optimizer, real, noise))
        for p, met in zip(d.parameters(), d_optimizer.met, strict=True):
            np.testing.assert_array_equal(p.grad, met)  # the generator's step added nothing to the discriminator's gradients
    assert order == ["d", "g"] * 3 and losses[-1][1] < losses[0][1]


def test_the_judge_sees_collapse():
    class Reader(nn.Module):
        """Reads the class off an image's brightness, with the confidence that its first cell says."""

        def forward(self, x):
            return 20 * x[:, 0, 0, :1] * np.eye(10, dtype="f4")[np.rint(x[:, 0, 1, 1] * 9).astype(int)]

    images = np.ones((100, 1, 4, 4), np.float32)
    images[:, :, 2:, 2:] = np.repeat(np.arange(10), 10)[:, None, None, None] / 9
    assert gan.judge(Reader(), images) == (1.0, pytest.approx(np.log2(10)))
    images[:, :, 2:, 2:] = 1
    assert gan.judge(Reader(), images) == (1.0, 0.0)
    images[:25, :, 0, 0] = images[:25, :, 1, 1] = -1
    images[:25, :, :2, :2] = 0
    assert gan.judge(Reader(), images)[0] == 0.75


def test_enlarged_digits_shrink_to_what_they_were():
    flat = np.full((1, 1, 28, 28), 0.5, np.float32)
    np.testing.assert_allclose(gan.enlarge(flat), 0.5)
    big = gan.enlarge(IMAGES)
    assert big.shape == (6, 1, 56, 56) and big.dtype == np.float32
    np.testing.assert_allclose(big.mean((2, 3)), IMAGES.mean((2, 3)), atol=0.01)
