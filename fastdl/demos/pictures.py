"""What the demos' pictures share: learning curves, confusion matrices, what was misread."""

from __future__ import annotations

import numpy as np


def new_figure(width, height):
    """An empty figure of so many inches, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def classifier(readings, classes, noun, image=lambda x: x[0], **colors):
    """A figure of several seeds' readings: learning curves, the confusion matrix, and what was misread.

    classes: their names. noun: what the inputs are, in the plural. image(*inputs) is one input as a matrix, drawn in
    ``colors`` (imshow's cmap, vmin, vmax; by default black on white from 0 to 1).
    """
    figure = new_figure(14, 9)
    top, bottom = figure.subfigures(2, 1, height_ratios=(5, 4))
    loss, share, counts = top.subplots(1, 3)
    for i, reading in enumerate(readings):
        learning_curves(loss, share, reading.history, f"seed {reading.seed}", f"C{i}")
    loss.legend(fontsize=8)
    share.set_title(f"{noun.capitalize()} read rightly")
    confusion(counts, np.concatenate([r.labels for r in readings]), np.concatenate([r.read for r in readings]), classes)
    wrong = [(inputs, true, got) for r in readings for *inputs, true, got in zip(*r.inputs, r.labels, r.read, strict=True) if true != got]
    _misread(bottom.subplots(), wrong, classes, noun, image, {"cmap": "gray_r", "vmin": 0, "vmax": 1} | colors)
    return figure


def learning_curves(loss, share, history, label, color) -> None:
    """One run's losses and accuracies into two axes, the held-out data's dashed."""
    epochs = np.arange(1, len(history) + 1)
    loss.plot(epochs, history.loss, color=color, label=f"{label}, training")
    loss.plot(epochs, history.val_loss, color=color, linestyle="--", label=f"{label}, held out")
    share.plot(epochs, np.array(history.accuracy) * 100, color=color, label=f"{label}, training")
    share.plot(epochs, np.array(history.val_accuracy) * 100, color=color, linestyle="--", label=f"{label}, held out")
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    share.set(xlabel="epoch", ylabel="%")
    for axes in (loss, share):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)


def confusion(axes, labels, read, classes) -> None:
    """How often each class was read as each."""
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, read), 1)
    off = counts - np.diag(np.diag(counts))
    axes.imshow(off, cmap="Oranges", vmin=0, vmax=max(off.max(), 1) * 1.5)  # the diagonal would drown the mistakes
    for (i, j), n in np.ndenumerate(counts):
        if n:
            axes.text(j, i, n, ha="center", va="center", fontsize=8, color="0.55" if i == j else "black")
    ticks = range(len(classes))
    axes.set(title=f"{off.sum()} of {len(labels)} misread", xlabel="read as", ylabel="it is", xticks=ticks, yticks=ticks)
    axes.set_xticklabels(classes)
    axes.set_yticklabels(classes)


def image_grid(images, columns: int) -> np.ndarray:
    """Images (N, 1, side, side) in 0..1 side by side, as one uint8 array (rows * side, columns * side), black on white."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, height, width), images.dtype)
    sheet[:n] = images[:, 0]
    sheet = sheet.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return np.rint(255 * (1 - np.clip(sheet, 0, 1))).astype(np.uint8)


def _misread(axes, wrong, classes, noun, image, colors, rows=4, columns=20):
    axes.set_title(f"Misread {noun}: what it is \N{RIGHTWARDS ARROW} what the network read" if wrong else f"No {noun} were misread")
    for i, (inputs, true, got) in enumerate(wrong[: rows * columns]):
        top, left = divmod(i, columns)
        axes.imshow(image(*inputs), extent=(left + 0.05, left + 0.95, -1.3 * top - 1, -1.3 * top), aspect="auto", **colors)
        axes.text(left + 0.5, -1.3 * top + 0.04, f"{classes[true]} \N{RIGHTWARDS ARROW} {classes[got]}", ha="center", fontsize=8)
    axes.set(xlim=(0, columns), ylim=(-1.3 * rows, 0.3))
    axes.axis("off")
