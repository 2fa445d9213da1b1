# %% [markdown]
# # A feed-forward network, from its operators up
#
# Handwritten digits are read by two matrix products with a ReLU between them. First everything is written out: weights are plain
# arrays, each operator answers its value and a function that pulls a gradient back (`fastdl.vjp`), and back-propagation is
# calling those functions in reverse order. Then the same in five lines of layers.

# %%
import matplotlib.pyplot as plt
import numpy as np

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_mnist5000, train_test_split
from fastdl.train import fit

EPOCHS = 10
ROWS = 5000  # how many of the 5,000 digits to use

images, labels = load_mnist5000()
some = np.random.default_rng(0).permutation(5000)[:ROWS]
x, x_test, y, y_test = train_test_split(images[some].reshape(-1, 784), labels[some], test_size=0.2)
print(f"{len(x)} digits to learn from, {len(x_test)} to test on; a digit is {x.shape[1]} numbers from 0 to 1")

# %% [markdown]
# Weights start small and random, of a size that keeps the values that pass through of size one (He et al., 2015).

# %%
rng = np.random.default_rng(0)


def weights(outputs, inputs):
    return rng.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(np.sqrt(2 / inputs))


w1, b1 = weights(512, 784), np.zeros(512, np.float32)
w2, b2 = weights(10, 512), np.zeros(10, np.float32)


def scores(x):
    return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)


print(f"untrained: {np.mean(scores(x_test).argmax(axis=1) == y_test):.1%} of the test digits are read rightly, by chance")

# %% [markdown]
# ## A training step
#
# Forward, each operator's pullback is kept. The loss joins the softmax and its logarithm in one operator, because a logarithm of
# a softmax that underflows would be infinite. Backward, the gradient of the loss with respect to itself is 1; each
# pullback turns the gradient of its output into those of its inputs. Shapes follow by themselves: the gradient of an array has
# the array's shape.

# %%


def step(x, y, lr=0.1):
    z, first = fastdl.vjp(F.linear, x, w1, b1)
    h, relu = fastdl.vjp(F.relu, z)
    s, second = fastdl.vjp(F.linear, h, w2, b2)
    loss, cross_entropy = fastdl.vjp(F.cross_entropy, s, y)

    ds, _ = cross_entropy(1.0)
    dh, dw2, db2 = second(ds)
    (dz,) = relu(dh)
    _, dw1, db1 = first(dz, needs=(False, True, True))  # nobody needs the gradient of the digits
    assert dw1.shape == w1.shape and db2.shape == b2.shape
    for array, gradient in ((w1, dw1), (b1, db1), (w2, dw2), (b2, db2)):
        array -= lr * gradient
    return float(loss)


losses = []
for epoch in range(EPOCHS):
    losses.append(np.mean([step(*batch) for batch in Batches(x, y, batch_size=50, seed=epoch)]))
    right = np.mean(scores(x_test).argmax(axis=1) == y_test)
    print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}, {right:.1%} of the test digits read rightly")

# %% [markdown]
# Is the gradient right? Change one weight a little and see how the loss changes (in float64, where a little is enough).

# %%
w = w2.astype(np.float64)
h = F.relu(F.linear(x[:20], w1, b1)).astype(np.float64)
s, second = fastdl.vjp(F.linear, h, w, None)
loss, cross_entropy = fastdl.vjp(F.cross_entropy, s, y[:20])
_, dw, _ = second(cross_entropy(1.0)[0])
moved = w.copy()
moved[3, 7] += 1e-6
print(f"by back-propagation {dw[3, 7]:.8f}, by trying {(F.cross_entropy(F.linear(h, moved), y[:20]) - loss) / 1e-6:.8f}")

# %% [markdown]
# ## The same by layers

# %%
nn.manual_seed(0)
model = nn.Sequential(nn.Linear(784, 512, activation="relu"), nn.Linear(512, 10))
history = fit(model, Batches(x, y, batch_size=50), loss=F.cross_entropy, optimizer=optim.SGD(model.parameters(), lr=0.1), epochs=EPOCHS,
              validation=(x_test, y_test), progress="run")
print(f"by layers: {history.val_accuracy[-1]:.1%}")

# %%
plt.plot(losses, label="written out")
plt.plot(history.loss, label="by layers")
plt.xlabel("epoch")
plt.ylabel("loss")
plt.legend()

_, axes = plt.subplots(2, 8, figsize=(10, 3))
for ax, row in zip(axes.flat, w1, strict=False):
    ax.imshow(row.reshape(28, 28), cmap="coolwarm")
    ax.axis("off")
plt.suptitle("What sixteen hidden units look for")
plt.show()
