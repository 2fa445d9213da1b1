# %% [markdown]
# # A recurrent network tells speakers by their voice
#
# Nine men say two vowels; a recording is a series of 12 numbers a frame, and no two are equally long. A recurrent network reads
# frame after frame and keeps a state; a gated recurrent unit learns what of it to keep.

# %%
import matplotlib.pyplot as plt
import numpy as np

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_japanese_vowels

EPOCHS = 30
ROWS = 270  # how many recordings to learn from

train, test = load_japanese_vowels()
print("padded with zeros to one shape:", train.x.shape, "and the true lengths:", train.lengths[:8], "...")

_, axes = plt.subplots(1, 3, figsize=(10, 3))
for ax, i in zip(axes, (0, 30, 60), strict=True):
    ax.imshow(train.x[i, : train.lengths[i]].T, cmap="coolwarm", aspect="auto")
    ax.set(title=f"speaker {train.labels[i] + 1}", xlabel="frame", ylabel="coefficient")

# %% [markdown]
# ## One step, and a sequence
#
# A cell computes the next state from an input and the last state. A layer does so for a whole sequence in one call. They are the
# same thing, and the padding of a shorter row has no part in it.

# %%
nn.manual_seed(0)
layer = nn.GRU(12, 5, batch_first=True)
y, last = layer(train.x[:2], lengths=train.lengths[:2])
h = np.zeros((1, 5), np.float32)
for frame in train.x[1, : train.lengths[1]]:
    h = F.gru_cell(frame[None], h, *[p.data for p in layer.parameters()])
print("step by step:", h.round(4), "at once:", last[0, 1].round(4))

# %% [markdown]
# ## The network
#
# It reads each recording forwards and backwards; the mean over its frames decides. A layer of one's own needs `forward` and, to be
# trained, `vjp`: the value, and a function from its gradient to its input's. Each step backward mirrors one forward: a
# mean over frames hands each frame its share of the gradient.


# %%
class Speaker(nn.Module):
    def __init__(self):
        self.gru = nn.GRU(12, 48, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 9)

    def forward(self, x, lengths):
        y, _ = self.gru(x, lengths=lengths)
        return self.head(y.sum(axis=1) / lengths[:, None].astype(x.dtype))

    def vjp(self, x, lengths):
        (y, _), gru_pullback = self.gru.vjp(x, lengths=lengths)
        n = lengths[:, None].astype(x.dtype)
        scores, head_pullback = self.head.vjp(y.sum(axis=1) / n)

        def pullback(dscores, needs=True):
            dmean = head_pullback(dscores) / n
            dy = np.repeat(dmean[:, None], y.shape[1], axis=1)
            return gru_pullback((dy, None), needs=needs)

        return scores, pullback


# %% [markdown]
# Twelve coefficients of different sizes are brought to one, by what the training part says of them.

# %%
frames = np.concatenate([row[:n] for row, n in zip(train.x, train.lengths, strict=True)])
scale = lambda part: (part.x - frames.mean(axis=0)) / frames.std(axis=0)
model = Speaker()
optimizer = optim.AdamW(model.parameters(), lr=5e-3)
some = np.random.default_rng(0).permutation(270)[:ROWS]
data = Batches(scale(train)[some], train.lengths[some], train.labels[some], batch_size=27)
accuracy = []
for _ in range(EPOCHS):
    for x, lengths, labels in data:
        optimizer.zero_grad()
        scores, pullback = model.vjp(x, lengths)
        _, loss_pullback = fastdl.vjp(F.cross_entropy, scores, labels)
        pullback(loss_pullback(1.0)[0], needs=False)
        optim.clip_grad_norm_(model.parameters(), 1.0)  # a long sequence may make a gradient explode
        optimizer.step()
    accuracy.append(np.mean(model(scale(test), test.lengths).argmax(axis=1) == test.labels))
print(f"{accuracy[-1]:.1%} of 370 new recordings are put down to the right speaker")

# %%
plt.figure()
plt.plot(accuracy)
plt.xlabel("epoch")
plt.ylabel("share of the test recordings")
plt.show()
