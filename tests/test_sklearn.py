"""The scikit-learn estimators: its own checks, and what people do with estimators."""

import pickle
import sys

import distributed
import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification, make_regression
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastdl
from fastdl import nn
from fastdl.data.augment import Shift
from fastdl.sklearn import Classifier, Regressor

X, Y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)


@pytest.fixture(autouse=True)
def reference():
    with fastdl.use_backend("reference"):
        yield


@parametrize_with_checks([Classifier(), Regressor()])
def test_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def quick(**options):
    return Classifier(**{"hidden": 16, "epochs": 15, "lr": 0.01, "random_state": 0, **options})


def test_classes_of_any_kind():
    names = np.array(["setosa", "versicolor", "virginica"])[Y]
    model = quick().fit(X, names)
    assert model.score(X, names) > 0.93 and set(model.predict(X)) == set(names) and model.classes_.tolist() == sorted(set(names))
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], model.predict(X))
    assert len(model.history_) == 15 and isinstance(model.model_, nn.Module)


def test_regression_of_one_and_more_columns():
    x, y = make_regression(120, 5, n_targets=2, random_state=0)
    x, y = StandardScaler().fit_transform(x), StandardScaler().fit_transform(y)
    options = {"hidden": (32,), "epochs": 60, "lr": 0.01, "random_state": 0}
    both, one = Regressor(**options).fit(x, y), Regressor(**options).fit(x, y[:, 0])
    assert both.predict(x).shape == (120, 2) and both.score(x, y) > 0.95
    assert one.predict(x).shape == (120,) and one.score(x, y[:, 0]) > 0.95


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_network_computes_in_the_datas_dtype(dtype):
    model = quick(epochs=1).fit(X.astype(dtype), Y)
    assert {p.dtype for p in model.model_.parameters()} == {np.dtype(dtype)} and model.predict_proba(X.astype(dtype)).dtype == dtype


def test_random_state_fixes_the_bits_whatever_ran_before():
    first = quick(dropout=0.2).fit(X, Y).predict_proba(X)
    nn.manual_seed(77)
    np.testing.assert_array_equal(clone(quick(dropout=0.2)).fit(X, Y).predict_proba(X), first)
    assert (quick(dropout=0.2, random_state=1).fit(X, Y).predict_proba(X) != first).any()
    nn.manual_seed(5)
    state = nn.get_rng_state()
    quick().fit(X, Y)
    assert nn.get_rng_state() == state  # a fit leaves the library's generator alone


def test_cross_validation_grid_search_and_pipelines():
    pipeline = make_pipeline(StandardScaler(), quick(epochs=30))
    scores = cross_val_score(pipeline, X, Y, cv=StratifiedKFold(3, shuffle=True, random_state=0))
    assert scores.shape == (3,) and scores.mean() > 0.9
    grid = GridSearchCV(pipeline, {"classifier__hidden": [(), (8, 8)], "classifier__weight_decay": [0.0, 0.1]}, cv=2).fit(X, Y)
    assert set(grid.best_params_) == {"classifier__hidden", "classifier__weight_decay"} and grid.score(X, Y) > 0.9


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_folds_in_parallel_are_the_folds_one_by_one(backend):
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    model = quick(epochs=4, dropout=0.1)
    one_by_one = cross_val_score(model, X, Y, cv=cv)
    with joblib.parallel_config(backend, n_jobs=2):
        np.testing.assert_array_equal(cross_val_score(model, X, Y, cv=cv), one_by_one)


def test_folds_on_a_dask_cluster():
    model, cv = quick(epochs=4, dropout=0.1), StratifiedKFold(3, shuffle=True, random_state=0)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster):
        with joblib.parallel_config("dask"):
            got = cross_val_score(model, X, Y, cv=cv, n_jobs=-1)
    np.testing.assert_array_equal(got, cross_val_score(model, X, Y, cv=cv))


def test_folds_on_ray():
    ray = pytest.importorskip("ray")  # not among the pinned packages
    from ray.util.joblib import register_ray

    model, cv = quick(epochs=4, dropout=0.1), StratifiedKFold(3, shuffle=True, random_state=0)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        register_ray()
        with joblib.parallel_config("ray"):
            got = cross_val_score(model, X, Y, cv=cv, n_jobs=2)
    finally:
        ray.shutdown()
    np.testing.assert_array_equal(got, cross_val_score(model, X, Y, cv=cv))


def test_it_can_be_pickled():
    model = quick(epochs=2).fit(X, Y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))


def small_cnn(shape, outputs):
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3, activation="relu"), nn.Flatten(), nn.Linear(4 * 2 * 2, outputs))


def test_a_network_of_ones_own():
    x, y = make_classification(80, 16, n_informative=8, random_state=0)
    model = quick(build=small_cnn, input_shape=(1, 4, 4), augment=Shift(1), epochs=2).fit(x, y)
    assert isinstance(model.model_[0], nn.Conv2d) and model.predict(x).shape == (80,)
    assert next(model.model_.parameters()).dtype == np.float32  # its own, whatever X's is
    pickle.loads(pickle.dumps(model)).predict(x)


def normalised(shape, outputs):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


def test_a_last_batch_of_one_row_is_left_out():
    quick(build=normalised, batch_size=16, epochs=2).fit(X[:97:2], Y[:97:2])  # 49 = 3 * 16 + 1


def test_early_stopping():
    model = quick(epochs=200, patience=3, lr=0.05).fit(X, Y)
    assert len(model.history_) < 200 and model.history_.best_epoch is not None and model.score(X, Y) > 0.9


def test_remedies_take_part():
    weights = lambda **options: sum(np.abs(p.data).sum() for p in quick(epochs=30, **options).fit(X, Y).model_.parameters())
    plain = weights()
    assert weights(l1=0.01) < 0.8 * plain and weights(l2=0.1) < 0.8 * plain and weights(weight_decay=1.0) < 0.8 * plain
    sure = lambda **options: quick(epochs=60, **options).fit(X, Y).predict_proba(X).max(axis=1).mean()
    assert sure(label_smoothing=0.3) < sure() - 0.05


@pytest.mark.parametrize("fit,error,message", [
    (lambda: quick().fit(np.where(X > 2, np.nan, X), Y), ValueError, "Input X contains NaN"),
    (lambda: quick().fit(X, Y * 0), ValueError, "Classifier: y holds one class"),
    (lambda: quick().fit(X, Y + 0.5), ValueError, "Unknown label type"),
    (lambda: quick().fit(X[:60], Y[:60]).score(X, Y), ValueError, "y holds class .*2.*, which was missing from what fit learnt from"),
    (lambda: quick(patience=2).fit(X[:51], Y[:51]), ValueError, "class .*1.* has one row; the rule with patience is two or more"),
    (lambda: quick(input_shape=(1, 3, 3)).fit(X, Y), ValueError, r"input_shape is \(1, 3, 3\), X has 4 features"),
    (lambda: quick(build=lambda shape, outputs: 3).fit(X, Y), TypeError, "build answered 3; the rule is a fastdl.nn.Module"),
    (lambda: quick(epochs=-1).fit(X, Y), ValueError, "epochs is -1"),
    (lambda: quick(batch_size=0).fit(X, Y), ValueError, "Classifier: batch_size is 0"),
    (lambda: Regressor().fit(X, np.where(Y > 1, np.inf, Y)), ValueError, "Input y contains infinity"),
])
def test_refusals(fit, error, message):
    with pytest.raises(error, match=message):
        fit()


def test_a_class_missing_from_a_fold_is_named():
    with pytest.raises(ValueError, match="missing from what fit learnt from"):
        cross_val_score(quick(epochs=1), X, Y, cv=KFold(3), error_score="raise")  # iris is sorted by class


def test_without_scikit_learn(monkeypatch):
    monkeypatch.delitem(sys.modules, "fastdl.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ModuleNotFoundError, match=r"fastdl.sklearn needs scikit-learn: pip install fastdl\[demo\]"):
        import fastdl.sklearn  # noqa: F401
