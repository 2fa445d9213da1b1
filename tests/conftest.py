import torch
from hypothesis import settings

# The same examples on every run: a failure seen once is seen by everyone. A first call may compile, so there is no deadline.
settings.register_profile("fastdl", deadline=None, derandomize=True)
settings.load_profile("fastdl")

torch.set_num_threads(1)  # torch is the oracle here; its threads would spin beside the tests that run next to it


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "test_widths" not in item.nodeid)  # the longest first, so that no process ends up waiting for it
