"""What all Triton kernels stand on; it knows no operator.

    dispatch.py   an operator called with CUDA tensors: checks, which kernel, autograd, falling through to torch
    tensors.py    a tensor as the checks see it
    device.py     which device a tensor is on, and whether kernels can run there
    launch.py     the one place that launches, and records launches instead
    configs.py    block sizes from data: configs/*.json
    ahead.py      compile recorded launches without a GPU and read what they need
    math.py       exp, tanh, erf and activations in kernels

Importing this package imports neither torch nor triton.
"""
