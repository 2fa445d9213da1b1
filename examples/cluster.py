# %% [markdown]
# # Digits sort themselves
#
# An autoencoder must draw a digit again after squeezing it through a few numbers, its code. To do so it has to find out in what
# digits differ. k-means on the codes then finds groups; labels serve only to see how pure they are.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans

import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_digits8x8
from fastdl.train import fit

EPOCHS = 40
ROWS = 1797
CODE = 8

images, labels = load_digits8x8()
images, labels = images[:ROWS], labels[:ROWS]

# %% [markdown]
# The target is the input. The last layer answers logits, and the loss joins their sigmoid with its logarithm.

# %%
nn.manual_seed(0)
encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 128, activation="relu"), nn.Linear(128, CODE))
decoder = nn.Sequential(nn.Linear(CODE, 128, activation="relu"), nn.Linear(128, 64), nn.Unflatten(1, (1, 8, 8)))
model = nn.Sequential(encoder, decoder)
history = fit(model, Batches(images, images, batch_size=50), loss=F.binary_cross_entropy_with_logits,
              optimizer=optim.Adam(model.parameters(), lr=2e-3), epochs=EPOCHS, progress="run")

# %%
codes = encoder(images)
groups = KMeans(10, n_init=10, random_state=0).fit_predict(codes)
counts = np.array([np.bincount(labels[groups == g], minlength=10) for g in range(10)])
print("digits in each group:", *counts, sep="\n")
print(f"purity: {counts.max(axis=1).sum() / len(labels):.1%} of the digits belong to their group's most frequent class")

# %% [markdown]
# Walking from one digit's code to another's, the decoder draws what lies between.

# %%
_, axes = plt.subplots(4, 11, figsize=(11, 4))
for row, (a, b) in enumerate(((0, 1), (2, 3), (4, 5), (6, 7))):
    way = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    for ax, image in zip(axes[row], F.sigmoid(decoder(codes[a] * (1 - way) + codes[b] * way)), strict=True):
        ax.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        ax.axis("off")
plt.suptitle("From one digit to another by way of the code")

plt.figure()
plt.plot(history.loss)
plt.xlabel("epoch")
plt.ylabel("loss")
plt.show()
