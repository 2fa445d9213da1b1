# %% [markdown]
# # Two networks in turn
#
# A generator turns noise into images. A discriminator says whether an image is real. Each step trains the discriminator on real
# and made images, and then the generator, through the discriminator, to make images that pass for real.
#
# Three things go wrong in many a textbook: both are trained on one loss at once (then neither learns its part); the gradient that
# flows through the discriminator to the generator changes the discriminator, too; the discriminator ends in a sigmoid, whose
# logarithm is minus infinity for an image it is sure of (here it answers logits).

# %%
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_digits8x8

EPOCHS = 60
ROWS = 1797  # how many of the 8 x 8 digits to learn from
NOISE = 20

images, _ = load_digits8x8()
images = images[:ROWS]

# %% [markdown]
# Small digits of 8 x 8 do with small networks (`fastdl demo gan` draws larger ones by convolutions). Batch-norm keeps what
# the noise says alive through the generator; without it all samples soon look alike.

# %%
nn.manual_seed(0)
generator = nn.Sequential(
    nn.Linear(NOISE, 128), nn.BatchNorm1d(128), nn.LeakyReLU(0.2),
    nn.Linear(128, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
    nn.Linear(256, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)),
)
discriminator = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(256, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3),
    nn.Linear(128, 1),
)
g_optimizer = optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.999))
d_optimizer = optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
loss_of = F.binary_cross_entropy_with_logits


# %% [markdown]
# A step. The made images are used twice: for the discriminator as data, and for the generator with the pullback that was kept.


# %%
def step(real, noise):
    fake, g_pullback = generator.vjp(noise)
    one, zero = np.ones((len(real), 1), np.float32), np.zeros((len(real), 1), np.float32)

    # 1. the discriminator: real is 1 (or 0.9, so that it never gets too sure), made is 0
    d_optimizer.zero_grad()
    d_loss = 0.0
    for batch, truth in ((real, 0.9 * one), (fake, zero)):
        logits, pullback = discriminator.vjp(batch)
        loss, loss_pullback = fastdl.vjp(loss_of, logits, truth)
        pullback(loss_pullback(1.0)[0], needs=False)
        d_loss += float(loss)
    d_optimizer.step()

    # 2. the generator: made should be taken for 1. The gradient flows back through the discriminator into the image,
    # and from there into the generator; what it leaves in the discriminator is forgotten at its next zero_grad
    g_optimizer.zero_grad()
    logits, pullback = discriminator.vjp(fake)
    loss, loss_pullback = fastdl.vjp(loss_of, logits, one)
    g_pullback(pullback(loss_pullback(1.0)[0]), needs=False)
    g_optimizer.step()
    return float(loss), d_loss


# %%
rng = np.random.default_rng(0)
shown = rng.standard_normal((40, NOISE), dtype=np.float32)  # the same noise after each epoch
losses, films = [], []
for _ in tqdm(range(EPOCHS), unit="epoch"):
    epoch = [step(real, rng.standard_normal((len(real), NOISE), dtype=np.float32))
             for (real,) in Batches(images, batch_size=50, drop_last=len(images) > 50, seed=len(losses))]
    losses.append(np.mean(epoch, axis=0))
    films.append(generator.eval()(shown))
    generator.train()
print(f"at the end: generator's loss {losses[-1][0]:.2f}, discriminator's {losses[-1][1]:.2f} (1.39 would be guessing)")

# %%
_, axes = plt.subplots(5, 20, figsize=(14, 4))
stages = [(f"epoch {i + 1}", films[i]) for i in (0, EPOCHS // 8, EPOCHS // 3, EPOCHS - 1)]
for row, (title, batch) in enumerate([("real", images), *stages]):
    for ax, image in zip(axes[row], batch, strict=False):
        ax.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(title)

plt.figure()
plt.plot(losses, label=["generator", "discriminator"])
plt.xlabel("epoch")
plt.legend()
plt.show()
