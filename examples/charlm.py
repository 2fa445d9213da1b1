# %% [markdown]
# # A network that writes
#
# It reads Python's manual character by character and learns to say which comes next. The measure is bits per character: a fair
# coin for each character of 96 would be 6.6, and knowing only how frequent each is about 4.8.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import load_manual
from fastdl.demos.charlm import CharacterModel

EPOCHS = 3
ROWS = 350_000  # how many characters to learn from
STEPS = 100  # how many the gradient flows back through

text = load_manual()
characters = sorted(set(text))
number = {c: i for i, c in enumerate(characters)}
numbers = np.array([number[c] for c in text])
learn, test = numbers[:ROWS], numbers[-20_000:]
print(f"{len(text)} characters, {len(characters)} different ones")
print(text[1000:1400])

# %% [markdown]
# A batch is 32 passages that start anywhere; what is to be predicted is the same passage, one character on.


# %%
def batch(rng):
    starts = rng.integers(0, len(learn) - STEPS - 1, 32)
    passages = learn[starts[:, None] + np.arange(STEPS + 1)]
    return passages[:, :-1], passages[:, 1:]


x, y = batch(np.random.default_rng(0))
print(repr("".join(characters[i] for i in x[0, :40])), "->", repr("".join(characters[i] for i in y[0, :40])))

# %% [markdown]
# The network is an embedding (a row of numbers for each character), a gated recurrent unit, and a linear layer that scores each
# possible next character. The mean cross-entropy over all places, divided by log 2, is bits per character.

# %%
nn.manual_seed(0)
model = CharacterModel(len(characters), embedding=48, hidden=192)
optimizer = optim.Adam(model.parameters(), lr=4e-3)
rng = np.random.default_rng(0)
bits = []
for _ in range(EPOCHS):
    bar = tqdm(range(len(learn) // (32 * STEPS)), unit="batch")
    for _ in bar:
        x, y = batch(rng)
        optimizer.zero_grad()
        scores, pullback = model.vjp(x)  # (passages, characters, steps)
        loss, loss_pullback = fastdl.vjp(F.cross_entropy, scores, y)
        pullback(loss_pullback(1.0)[0], needs=False)
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bits.append(float(loss) / math.log(2))
        bar.set_postfix(bits=f"{bits[-1]:.2f}")

# %% [markdown]
# What has it understood of text it never saw? The state is carried from one piece to the next, so nothing is forgotten between.

# %%
state, total = None, 0.0
for piece in range(0, len(test) - 1001, 1000):
    scores, state = model.advance(test[None, piece : piece + 1000], state)
    total += float(F.cross_entropy(scores, test[None, piece + 1 : piece + 1001], reduction="sum"))
print(f"{total / (piece + 1000) / math.log(2):.3f} bits per character of the manual's end")

# %% [markdown]
# To write, draw a character from the probabilities, feed it back, and so on. A low temperature plays safe, a high one dares.


# %%
def write(start, length, temperature, seed=0):
    rng, state, given = np.random.default_rng(seed), None, [number[c] for c in start]
    for _ in range(length):
        scores, state = model.advance(np.array([given]), state)
        p = F.softmax(scores[0, :, -1].astype(np.float64) / temperature, dim=0)
        given = [rng.choice(len(p), p=p / p.sum())]
        start += characters[given[0]]
    return start


for temperature in (0.3, 0.7, 1.2):
    print(f"--- temperature {temperature}\n{write('The ', 300, temperature)}")

# %%
plt.plot(np.convolve(bits, np.ones(20) / 20, mode="valid"))
plt.xlabel("step")
plt.ylabel("bits per character")
plt.show()
