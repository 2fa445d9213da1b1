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


def classifier(readings, classes, show, noun):
    """A figure of several seeds' readings: learning curves, the confusion matrix, and what was misread.

    classes: their names. show(axes, *inputs) draws one input. noun: what the inputs are, in the plural.
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
    _misread(bottom, wrong, classes, show, noun)
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


def gray(axes, image) -> None:
    """A digit, (1, side, side), black on white."""
    axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)


def image_grid(images, columns: int) -> np.ndarray:
    """Images (N, 1, side, side) in 0..1 side by side, as one uint8 array (rows * side, columns * side), black on white."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, height, width), images.dtype)
    sheet[:n] = images[:, 0]
    sheet = sheet.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return np.rint(255 * (1 - np.clip(sheet, 0, 1))).astype(np.uint8)


def _misread(figure, wrong, classes, show, noun, rows=4, columns=20):
    figure.suptitle(f"Misread {noun}: what it is \N{RIGHTWARDS ARROW} what the network read" if wrong else f"No {noun} were misread")
    for axes, entry in zip(figure.subplots(rows, columns).flat, wrong + [None] * (rows * columns), strict=False):
        axes.axis("off")
        if entry is not None:
            inputs, true, got = entry
            show(axes, *inputs)
            axes.set_title(f"{classes[true]} \N{RIGHTWARDS ARROW} {classes[got]}", fontsize=8, pad=2)
