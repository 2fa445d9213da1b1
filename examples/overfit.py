# %% [markdown]
# # Learning by heart, and what helps against it
#
# A network with 50,000 weights and 150 examples to learn from reads every one of them rightly soon, and others badly. Each remedy
# below changes one line of the training.

# %%
import matplotlib.pyplot as plt

import fastdl.functional as F
from fastdl import nn, optim
from fastdl.data import Batches, load_digits8x8, train_test_split
from fastdl.data.augment import Affine, MixUp
from fastdl.train import accuracy, fit

EPOCHS = 60
ROWS = 150  # how many digits to learn from

images, labels = load_digits8x8()
x_test, x, y_test, y = train_test_split(images, labels, test_size=ROWS, stratify=labels)


def train(name, *, dropout=0.0, transform=None, penalty=None, weight_decay=0.0, **options):
    nn.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256, activation="relu"), nn.Dropout(dropout), nn.Linear(256, 128, activation="relu"),
                          nn.Dropout(dropout), nn.Linear(128, 10))
    history = fit(model, Batches(x, y, batch_size=25, transform=transform), loss=F.cross_entropy, epochs=EPOCHS, metric=accuracy,
                  optimizer=optim.AdamW(model.parameters(), lr=3e-3, weight_decay=weight_decay), validation=(x_test, y_test),
                  penalty=penalty and optim.Penalty(model.parameters(), **penalty), progress=False, **options)
    right = accuracy(model(x_test), y_test)
    print(f"{name:16} {accuracy(model(x), y):7.1%} of the {len(x)} learnt from, {right:.1%} of {len(x_test)} others")
    return history


histories = {
    "none": train("none"),
    # a cost for large weights: for their absolute values (many become 0), or for their squares
    "L1 penalty": train("L1 penalty", penalty={"l1": 1e-4}),
    "L2 penalty": train("L2 penalty", penalty={"l2": 1e-2}),
    # shrink weights directly, not by way of the gradient
    "weight decay": train("weight decay", weight_decay=1.0),
    # no unit may rely on another one being there
    "dropout": train("dropout", dropout=0.5),
    # stop when the loss on other data has not fallen for a while, and take the best weights
    "early stopping": train("early stopping", patience=5),
    # never be quite sure
    "label smoothing": train("label smoothing", loss_options={"label_smoothing": 0.1}),
    # never see the same digit twice, or see mixtures of two
    "augmentation": train("augmentation", transform=Affine(rotate=10, scale=0.1, shift=0.7)),
    "mix-up": train("mix-up", transform=MixUp(10, 0.4)),
}

# %% [markdown]
# The gap between the curves is what was learnt by heart. (Here the test digits also tell when to stop, so early stopping looks a
# little better than it is; `fastdl demo overfit` keeps digits of their own for that.)

# %%
_, axes = plt.subplots(3, 3, figsize=(12, 9), sharey=True)
for ax, (name, history) in zip(axes.flat, histories.items(), strict=True):
    ax.semilogy(history.loss, label="learnt from")
    ax.semilogy(history.val_loss, "--", label="others")
    ax.set(title=name, xlabel="epoch", ylabel="loss")
axes[0, 0].legend()
plt.tight_layout()
plt.show()
