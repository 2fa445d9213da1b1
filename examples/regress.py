# %% [markdown]
# # Forecasting sunspots
#
# Every eleven years or so the sun has many spots, then few. From the last 22 years' counts, what is next year's? A forecast is
# worth something where it beats the naive one: next year is as this year.

# %%
import matplotlib.pyplot as plt
import numpy as np

import fastdl
import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_sunspots

EPOCHS = 150
ROWS = 250  # how many years to learn from, at most
WINDOW = 22

years, counts = load_sunspots()
plt.plot(years, counts)
plt.title("Mean number of sunspots a year")

# %% [markdown]
# The network sees square roots (large counts vary more, their roots do not) and predicts the *change* to next year: a network that
# answers 0 is then the naive forecast, and learning starts from there. Years from 1950 on are kept for the test; splitting at
# random would let the network look into the future.

# %%
roots = np.sqrt(counts / 100).astype(np.float32)
x = np.stack([roots[i : i + WINDOW] for i in range(len(roots) - WINDOW)])
y = (roots[WINDOW:] - x[:, -1])[:, None]
test = years[WINDOW:] >= 1950
learn = np.flatnonzero(~test)[-ROWS:]
truth = counts[WINDOW:][test]


def error(forecast):
    return np.sqrt(np.mean((forecast - truth) ** 2))


print(f"the naive forecast misses by {error(100 * x[test, -1] ** 2):.1f} sunspots (root mean square)")

# %%
nn.manual_seed(0)
model = nn.Sequential(nn.Linear(WINDOW, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
schedule = optim.CosineAnnealingLR(optimizer, EPOCHS)
data = Batches(x[learn], y[learn], batch_size=32)
losses = []
for _ in range(EPOCHS):
    for inputs, change in data:
        optimizer.zero_grad()
        predicted, pullback = model.vjp(inputs)
        loss, loss_pullback = fastdl.vjp(F.mse_loss, predicted, change)
        pullback(loss_pullback(1.0)[0], needs=False)
        optimizer.step()
    schedule.step()
    losses.append(float(F.mse_loss(model(x[test]), y[test])))

forecast = 100 * np.maximum(x[test, -1] + model(x[test])[:, 0], 0) ** 2
print(f"the network misses by {error(forecast):.1f}")

# %% [markdown]
# The sun is nearly linear: least squares on the same inputs does as well. A network is not always what a problem needs.

# %%
ones = lambda rows: np.column_stack([rows, np.ones(len(rows))])
linear, *_ = np.linalg.lstsq(ones(x[learn]), y[learn], rcond=None)
print(f"least squares misses by {error(100 * np.maximum(x[test, -1] + (ones(x[test]) @ linear)[:, 0], 0) ** 2):.1f}")

# %%
_, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6))
top.plot(years[WINDOW:][test], truth, "k.-", label="counted")
top.plot(years[WINDOW:][test], forecast, label="forecast a year before")
top.legend()
bottom.semilogy(losses)
bottom.set(xlabel="epoch", ylabel="squared error of the roots, test years")
plt.show()
