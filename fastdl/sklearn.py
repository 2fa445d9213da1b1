"""Networks as scikit-learn estimators: ``Classifier`` and ``Regressor``.

    from fastdl.sklearn import Classifier

    cross_val_score(make_pipeline(StandardScaler(), Classifier(hidden=(64, 64), epochs=30)), X, y)

They follow scikit-learn's rules (``check_estimator`` passes), so cross-validation, grid search, pipelines, cloning and joblib's
backends work as they are. Needs scikit-learn: ``pip install fastdl[demo]``.
"""

from __future__ import annotations

import math

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ModuleNotFoundError("fastdl.sklearn needs scikit-learn: pip install fastdl[demo]", name="sklearn") from error

import fastdl.functional as F

from . import check, nn, optim
from .data import Batches, train_test_split
from .train import fit

__all__ = ["Classifier", "Regressor"]


class _Network(BaseEstimator):
    """What both estimators share."""

    def __init__(self, hidden=(64,), *, activation="relu", dropout=0.0, build=None, input_shape=None, epochs=100, batch_size=32, lr=2e-3,
                 weight_decay=0.0, l1=0.0, l2=0.0, clip_norm=None, augment=None, patience=None, validation_fraction=0.1,
                 random_state=None, verbose=False):
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.build = build
        self.input_shape = input_shape
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.l1 = l1
        self.l2 = l2
        self.clip_norm = clip_norm
        self.augment = augment
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, X, target, outputs, loss, loss_options, stratify):
        name = type(self).__name__
        batch_size = check.integer(name, "batch_size", self.batch_size, 1)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with nn.seeded(seed):
            model = self._new_model(X, outputs)
            x = self._rows(X, model)
            target = target.astype(x.dtype) if target.dtype.kind == "f" else target
            validation = None
            if self.patience is not None:
                fraction = check.number(name, "validation_fraction", self.validation_fraction, 0, 1)
                x, x_held, target, target_held = train_test_split(x, target, test_size=fraction, seed=seed, stratify=stratify)
                validation = (x_held, target_held)
            one_left = len(x) > batch_size > 1 and len(x) % batch_size == 1  # batch-norm cannot train on one row
            data = Batches(x, target, batch_size=batch_size, seed=seed, transform=self.augment, drop_last=one_left)
            self.history_ = fit(
                model, data, loss=loss, loss_options=loss_options, epochs=self.epochs, patience=self.patience, validation=validation,
                optimizer=optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay), clip_norm=self.clip_norm,
                penalty=optim.Penalty(model.parameters(), l1=self.l1, l2=self.l2) if self.l1 or self.l2 else None,
                progress="run" if self.verbose else False)
        self.model_ = model
        return self

    def _new_model(self, X, outputs):
        if self.build is not None:
            model = self.build(self._shape(), outputs)
            if not isinstance(model, nn.Module):
                raise TypeError(f"{type(self).__name__}: build answered {model!r}; the rule is a fastdl.nn.Module")
            return model
        layers, features = [nn.Flatten()], X.shape[1]
        for size in (self.hidden,) if np.ndim(self.hidden) == 0 else self.hidden:
            layers.append(nn.Linear(features, size, activation=self.activation, dtype=X.dtype))
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            features = size
        return nn.Sequential(*layers, nn.Linear(features, outputs, dtype=X.dtype))

    def _shape(self):
        """One row's shape."""
        shape = (self.n_features_in_,) if self.input_shape is None else tuple(self.input_shape)
        if math.prod(shape) != self.n_features_in_:
            raise ValueError(f"{type(self).__name__}: input_shape is {shape}, X has {self.n_features_in_} features; the rule is that "
                             f"they make up the shape")
        return shape

    def _rows(self, X, model):
        """X as the model takes it: in its dtype and shape."""
        return np.ascontiguousarray(X, dtype=next(model.parameters()).dtype).reshape(len(X), *self._shape())

    def _outputs(self, X):
        check_is_fitted(self, "model_")
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        x = self._rows(X, self.model_)
        return np.concatenate([self.model_(x[i : i + 512]) for i in range(0, len(x), 512)])


class Classifier(ClassifierMixin, _Network):
    """A network that tells classes apart, trained by AdamW on cross-entropy.

    hidden: the sizes of the hidden layers (an integer or a sequence; empty: none). activation: theirs, as ``nn.Linear``
        takes it. dropout: the rate after each.
    build: None, or a function ``build(shape, outputs)`` that answers the model, an ``nn.Module``, in place of these; shape is
        one row's. input_shape: a row of X as the model sees it, such as (1, 28, 28); None: (features,).
    epochs, batch_size, lr, clip_norm: of the training. weight_decay: decoupled. l1, l2: penalties on weights.
    label_smoothing: how much of each target, 0 to 1, is spread over the classes.
    augment: a transform of batches (``fastdl.data.augment``).
    patience: stop after so many epochs without a lower loss on the share ``validation_fraction`` of the rows, which are then
        not learnt from, and keep the best weights. None: train for all epochs.
    random_state: None, an integer or a numpy RandomState; an integer makes a fit repeatable to the bit.
    verbose: show a progress bar.

    The network computes in X's dtype, float32 or float64; one that ``build`` made, in its own. Attributes after ``fit``:
    ``classes_``, ``model_``, ``history_`` (:class:`fastdl.train.History`), ``n_features_in_``.

    Raises ValueError for NaN or infinity in X, for one class only, and in ``score`` for a class that ``fit`` never saw.
    """

    def __init__(self, hidden=(64,), *, activation="relu", dropout=0.0, build=None, input_shape=None, epochs=100, batch_size=32, lr=2e-3,
                 weight_decay=0.0, l1=0.0, l2=0.0, label_smoothing=0.0, clip_norm=None, augment=None, patience=None,
                 validation_fraction=0.1, random_state=None, verbose=False):
        super().__init__(hidden, activation=activation, dropout=dropout, build=build, input_shape=input_shape, epochs=epochs,
                         batch_size=batch_size, lr=lr, weight_decay=weight_decay, l1=l1, l2=l2, clip_norm=clip_norm, augment=augment,
                         patience=patience, validation_fraction=validation_fraction, random_state=random_state, verbose=verbose)
        self.label_smoothing = label_smoothing

    def fit(self, X, y):
        """Train on X (rows, features) and labels y (rows,) of any kind; the estimator itself."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, target, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier: y holds one class, {self.classes_[0]!r}; the rule is two or more")
        if self.patience is not None and counts.min() < 2:
            raise ValueError(f"Classifier: class {self.classes_[counts.argmin()]!r} has one row; the rule with patience is two or more, to "
                             "learn from and to validate")
        return self._fit(X, target, len(self.classes_), F.cross_entropy, {"label_smoothing": self.label_smoothing}, target)

    def predict_proba(self, X):
        """Probabilities (rows, classes), in the order of ``classes_``."""
        return F.softmax(self._outputs(X), dim=1)

    def predict(self, X):
        """The most probable class of each row."""
        chosen = self._outputs(X).argmax(axis=1)
        return self.classes_[chosen]

    def score(self, X, y, sample_weight=None):
        """The share of rows whose class is predicted."""
        check_is_fitted(self, "model_")
        if len(unseen := np.setdiff1d(y, self.classes_)):
            raise ValueError(f"Classifier: y holds class {unseen[0]!r}, which was missing from what fit learnt from "
                             f"({len(self.classes_)} classes); split with StratifiedKFold, or merge rare classes")
        return super().score(X, y, sample_weight)


class Regressor(RegressorMixin, _Network):
    """A network that predicts numbers, trained by AdamW on the mean square error.

    Parameters as of :class:`Classifier`, without ``label_smoothing``. y may have several columns. Targets are taken as they
    are: where their scale is far from 1, put the estimator into scikit-learn's ``TransformedTargetRegressor``.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X, y):
        """Train on X (rows, features) and numbers y, (rows,) or (rows, outputs); the estimator itself."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True)
        self._one_column = y.ndim == 1
        y = y.astype(np.float64).reshape(len(X), -1)
        return self._fit(X, y, y.shape[1], F.mse_loss, {}, None)

    def predict(self, X):
        """The predicted numbers, of the form of fit's y."""
        y = self._outputs(X)
        return y[:, 0] if self._one_column else y
