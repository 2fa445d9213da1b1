"""Small networks trained on real data, ``fastdl demo NAME``; a file each, on top of frame.py and pictures.py."""

# name -> (what it is, {option: its default, as in the demo's run()}); every demo has out and resume as well
DEMOS = {
    "mlp": ("a feed-forward network that reads handwritten digits", {"seeds": 3, "epochs": 30, "batch_size": 50}),
    "cnn": ("a convolutional network that reads handwritten digits", {"seeds": 3, "epochs": 30, "batch_size": 64}),
    "rnn": ("a recurrent network that tells speakers by their voice", {"seeds": 3, "epochs": 60, "batch_size": 27}),
    "charlm": ("a recurrent network that writes like Python's manual", {"seed": 0, "epochs": 30, "batch_size": 32}),
    "regress": ("a network that forecasts next year's sunspots", {"seeds": 5, "epochs": 300, "batch_size": 32}),
    "gan": ("two networks, one of which learns to draw digits", {"seed": 0, "epochs": 6, "batch_size": 32}),
    "cluster": ("an autoencoder by whose code digits sort themselves", {"seed": 0, "epochs": 15, "batch_size": 64}),
    "overfit": ("what helps a network that has 200 digits to learn from", {"seed": 0, "epochs": 60, "batch_size": 20}),
    "select": ("structures compared by cross-validation, in parallel", {"seed": 0, "epochs": 20, "folds": 5, "jobs": -1}),
}
