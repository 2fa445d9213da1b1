"""What all Triton kernels stand on; it knows no operator.

    dispatch.py   an operator called with CUDA tensors: checks, which kernel, autograd
    fallback.py   torch's operator, where there is no kernel
    tensors.py    a tensor as the checks see it
    memory.py     how a tensor lies in memory
    device.py     which device a tensor is on, and whether kernels can run there
    launch.py     the one place that launches, and records launches instead
    configs.py    block sizes from data: configs/*.json
    tune.py       measures them (``fastdl tune``)
    ahead.py      compile recorded launches without a GPU and read what they need; which: main_calls.py
    math.py       exp, tanh, erf and activations in kernels

Importing this package imports neither torch nor triton.
"""
