"""A network forecasts the next year's sunspots from those of the years before: ``fastdl demo regress``.

309 yearly counts from 1700 on, which come with statsmodels; the network learns from targets up to 1949 and is tested on
1950 to 2008. Beside it: the naive forecast (next year is as this year) and linear autoregression on the same years.
"""

from __future__ import annotations

import numpy as np

import fastdl.functional as F

from .. import nn, optim
from ..data import Batches, load_sunspots
from ..train import fit
from . import frame, pictures

WINDOW, SPLIT = 22, 1950  # two cycles of eleven years; the first year to test on


def build() -> nn.Sequential:
    """The last years' counts (N, 22), square roots of hundreds -> the change to come (N, 1)."""
    return nn.Sequential(nn.Linear(WINDOW, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def windows(counts) -> tuple[np.ndarray, np.ndarray]:
    """What to learn from counts (years,): inputs (N, 22) and targets (N, 1), the change from the last year to the next.

    Counts vary the more the larger they are; their square roots vary evenly.
    """
    roots = np.sqrt(counts / 100).astype(np.float32)
    x = np.lib.stride_tricks.sliding_window_view(roots, WINDOW)[:-1]
    return np.ascontiguousarray(x), (roots[WINDOW:] - x[:, -1])[:, None]


def forecast(change, x) -> np.ndarray:
    """Counts (N,) from the predicted change of their roots (N, 1) and the inputs."""
    return 100 * np.square(np.maximum(change[:, 0] + x[:, -1], 0)).astype(np.float64)


def run(out=None, seeds=5, epochs=300, batch_size=32, lr=2e-3, resume=False) -> dict:
    """Train, save and show.

    out: the folder (default: out/regress) for, of each seed, weights (safetensors), history (JSON) and a checkpoint; and for
        report.json and regress.png: the forecasts beside the counts. The forecast is the mean of all seeds' networks.
    seeds: how many (from 0), or which. epochs, batch_size, lr: of the training, AdamW with a cosine schedule.
    resume: go on from the checkpoints in ``out``.

    Returns what report.json holds: the root mean square error on the years tested on, of the network and its two rivals.
    """
    output = frame.Output("regress", out, resume=resume, packages=("statsmodels",), epochs=epochs, batch_size=batch_size, lr=lr)
    seeds = frame.seed_list("regress", seeds)
    years, counts = load_sunspots()
    x, y = windows(counts)
    years, counts = years[WINDOW:], counts[WINDOW:]
    test = years >= SPLIT
    forecasts, histories = [], []
    for seed in seeds:
        with nn.seeded(seed):
            model = build()
            optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
            history = fit(model, Batches(x[~test], y[~test], batch_size=batch_size, seed=seed), loss=F.mse_loss, optimizer=optimizer,
                          epochs=epochs, validation=(x[test], y[test]), schedule=optim.CosineAnnealingLR(optimizer, epochs),
                          checkpoint=output.checkpoint(f"-seed{seed}", seed=seed), progress="run")
        output.weights(model, f"-seed{seed}")
        output.history(history, f"-seed{seed}")
        forecasts.append(forecast(model(x[test]), x[test]))
        histories.append(history)
    shown = {"network": np.mean(forecasts, axis=0), "linear autoregression": _linear(x, y, test), "naive": 100 * np.square(x[test][:, -1])}
    errors = {name: float(np.sqrt(np.mean(np.square(f - counts[test])))) for name, f in shown.items()}
    report = output.report(seeds=seeds, root_mean_square_error=errors, each_seed=[
        float(np.sqrt(np.mean(np.square(f - counts[test])))) for f in forecasts])
    for name, error in errors.items():
        print(f"{name:22} misses by {error:.1f} sunspots a year (root mean square, {test.sum()} years from {SPLIT})")
    path = output.picture(_draw(years[test], counts[test], shown, errors, histories))
    print(f"weights, histories and {path.name} are in {output.folder}")
    return report


def _linear(x, y, test):
    """Least squares on the same inputs."""
    design = lambda rows: np.column_stack([rows, np.ones(len(rows), rows.dtype)])
    weights, *_ = np.linalg.lstsq(design(x[~test]), y[~test], rcond=None)
    return forecast(design(x[test]) @ weights, x[test])


def _draw(years, counts, shown, errors, histories):
    figure = pictures.new_figure(12, 7)
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
    top.plot(years, counts, "k.-", label="counted")
    for name, values in shown.items():
        top.plot(years, values, alpha=0.8, linewidth=2 if name == "network" else 1, label=f"{name}: error {errors[name]:.1f}")
    top.set(title="Sunspots, one year ahead", ylabel="mean number")
    for i, history in enumerate(histories):
        bottom.plot(history.loss, color=f"C{i}", label="training" if not i else None)
        bottom.plot(history.val_loss, color=f"C{i}", linestyle="--", label="held out" if not i else None)
    bottom.set(xlabel="epoch", ylabel="squared error of the roots", yscale="log")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
