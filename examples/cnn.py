# %% [markdown]
# # A convolutional network reads digits
#
# A convolution looks for the same small pattern everywhere, max-pooling keeps the strongest find of a neighbourhood. The training
# loop is written by hand: a step is forward, backward, update. Then the digits are shifted and turned a little each time
# they are seen, and the network reads new ones better.

# %%
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_mnist5000, train_test_split
from fastdl.data.augment import Affine

EPOCHS = 4
ROWS = 5000

images, labels = load_mnist5000()
some = np.random.default_rng(0).permutation(5000)[:ROWS]
x, x_test, y, y_test = train_test_split(images[some], labels[some], test_size=0.2)
print("images are (rows, channels, height, width):", x.shape)

# %% [markdown]
# An eighth of the demo's weights. Each convolution keeps the size (`padding=2` for a window of 5), each pooling halves it: 28, 14, 7.


# %%
def build():
    nn.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10),
    )


print(build())
print(sum(p.size for p in build().parameters()), "weights")


# %% [markdown]
# The loop. `model.train()` switches dropout on, `model.eval()` off. A pullback adds into each parameter's `grad`, so gradients are
# forgotten before each step. `needs=False`: nobody needs the gradient of the images.


# %%
def train(data, epochs):
    model = build()
    optimizer = optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in tqdm(range(epochs), unit="epoch"):
        model.train()
        for images, labels in data:
            optimizer.zero_grad()
            scores, pullback = model.vjp(images)
            loss, loss_pullback = fastdl.vjp(F.cross_entropy, scores, labels)
            pullback(loss_pullback(1.0)[0], needs=False)
            optimizer.step()
            losses.append(float(loss))
    return model.eval(), losses


def read(model, images):
    return np.concatenate([model(part).argmax(axis=1) for (part,) in Batches(images, batch_size=250, shuffle=False)])


plain, plain_losses = train(Batches(x, y, batch_size=50), EPOCHS)
print(f"as they are: {np.mean(read(plain, x_test) == y_test):.1%} of the test digits are read rightly")

# %% [markdown]
# The same with digits that are turned by up to 10 degrees, scaled by up to a tenth and shifted by up to two cells. The loss on
# what it trains on is higher, for it never sees a digit twice.

# %%
augment = Affine(rotate=10, scale=0.1, shift=2)
model, losses = train(Batches(x, y, batch_size=50, transform=augment), EPOCHS)
print(f"with augmentation: {np.mean(read(model, x_test) == y_test):.1%}")

# %%
_, axes = plt.subplots(3, 10, figsize=(10, 3.3))
for column in range(10):
    for row in range(3):
        digit = x[column : column + 1] if row == 0 else augment(np.random.default_rng(row), x[column : column + 1])[0]
        axes[row, column].imshow(digit[0, 0], cmap="gray_r")
        axes[row, column].axis("off")
plt.suptitle("A digit, and twice as the network may see it")

plt.figure()
smooth = lambda values: np.convolve(values, np.ones(20) / 20, mode="valid")
plt.semilogy(smooth(plain_losses), label="as they are")
plt.semilogy(smooth(losses), label="with augmentation")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()

# %% [markdown]
# The first layer's patterns, and what one of them finds in a digit: the layer by itself is a model, too.

# %%
found = model[:2](x_test[:1])
_, axes = plt.subplots(2, 16, figsize=(14, 2.2))
for channel in range(16):
    axes[0, channel].imshow(model[0].weight.data[channel, 0], cmap="coolwarm")
    axes[1, channel].imshow(found[0, channel], cmap="gray_r")
for ax in axes.flat:
    ax.axis("off")
plt.show()
