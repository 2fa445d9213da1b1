"""How far a training run is: a bar by tqdm, lines where it is not installed, or nothing."""

from __future__ import annotations

import sys


class Progress:
    """A bar for each epoch (``wanted`` is True), one for the run ("run"), or none (False). A context manager."""

    def __init__(self, wanted, epochs, done, data):
        if wanted not in (True, False, "run"):
            raise ValueError(f'fit: progress is {wanted!r}; the rule is True, False or "run"')
        self.epochs, self.each, self.bar = epochs, wanted is True, None
        self.batches = len(data) if hasattr(data, "__len__") else None
        self.lines = self.tqdm = None
        if wanted and done < epochs:
            try:
                from tqdm import tqdm
            except ImportError:
                self.lines = sys.stderr
            else:
                self.tqdm = tqdm
                self.bar = None if self.each else tqdm(total=epochs, initial=done, unit="epoch")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def begin(self, epoch):
        self.title = f"epoch {epoch + 1}/{self.epochs}"
        if self.tqdm and self.each:
            self.bar = self.tqdm(total=self.batches, desc=self.title, unit="batch")

    def batch(self, loss, metric):
        if self.bar is not None and self.each:
            self.bar.set_postfix(_shown(loss, metric), refresh=False)
            self.bar.update()

    def end(self, loss, metric, val_loss, val_metric):
        shown = _shown(loss, metric)
        if val_loss is not None:
            shown["val_loss"] = f"{val_loss:.4f}"
        if val_metric is not None:
            shown["val_accuracy"] = f"{val_metric:.4f}"
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=self.each)
            if self.each:
                self.bar.close()
            else:
                self.bar.update()
        elif self.lines is not None:
            print(self.title, ", ".join(f"{k}={v}" for k, v in shown.items()), file=self.lines, flush=True)


def _shown(loss, metric):
    return {"loss": f"{loss:.4f}", **({} if metric is None else {"accuracy": f"{metric:.4f}"})}
