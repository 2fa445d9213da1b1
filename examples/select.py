# %% [markdown]
# # Choosing a structure
#
# How many hidden layers, how large, how much dropout? Cross-validation answers: each choice is trained on four fifths of the data
# and measured on the last, five times. `fastdl.sklearn.Classifier` is a scikit-learn estimator, so its tools do the work.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from fastdl import nn
from fastdl.data import load_digits8x8
from fastdl.sklearn import Classifier

EPOCHS = 15
ROWS = 1797
FOLDS = 5
JOBS = -1  # as many at once as there are cores

images, labels = load_digits8x8()
x, y = images[:ROWS].reshape(-1, 64), labels[:ROWS]
x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)

# %% [markdown]
# One structure. `random_state` makes a fit repeatable to the bit; the pipeline learns its scaling anew in each fold, so nothing of
# the held-out part leaks into it. Each fold must know every class: `StratifiedKFold` sees to it.

# %%
model = make_pipeline(MinMaxScaler(), Classifier(hidden=(64,), epochs=EPOCHS, random_state=0))
folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
scores = cross_val_score(model, x, y, cv=folds, n_jobs=JOBS)
print(f"64 hidden units: {scores.mean():.1%}, folds from {scores.min():.1%} to {scores.max():.1%}")

# %% [markdown]
# Many of them: a grid.

# %%
grid = GridSearchCV(model, {"classifier__hidden": [(), 32, 128, (64, 64)], "classifier__dropout": [0.0, 0.3]}, cv=folds, n_jobs=JOBS)
grid.fit(x, y)
for options, mean, deviation in zip(*(grid.cv_results_[key] for key in ("params", "mean_test_score", "std_test_score")), strict=True):
    print(f"{options!s:70} {mean:.2%} +- {deviation:.2%}")
print(f"the best, on digits that no fold has seen: {grid.score(x_test, y_test):.1%}")


# %% [markdown]
# A network of one's own takes part by a function that builds it, from a row's shape and the number of outputs.


# %%
def cnn(shape, outputs):
    return nn.Sequential(
        nn.Conv2d(shape[0], 12, 3, padding=1, activation="relu"), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 16, outputs))


convolutional = Classifier(build=cnn, input_shape=(1, 8, 8), epochs=EPOCHS, random_state=0)
scores = cross_val_score(convolutional, x, y, cv=folds)  # in this process: others could not import a function of a script
print(f"a small convolutional network: {scores.mean():.1%}")

# %%
results = grid.cv_results_
plt.errorbar(results["mean_test_score"], np.arange(len(results["params"])), xerr=results["std_test_score"], fmt="o")
plt.yticks(np.arange(len(results["params"])), [" ".join(map(str, p.values())) for p in results["params"]])
plt.xlabel("share read rightly, mean and deviation over the folds")
plt.tight_layout()
plt.show()
