"""Recurrent networks: whole sequences (rnn_tanh, rnn_relu, gru, lstm) and single steps (the cells)."""

from __future__ import annotations

from ...op import operator
from .arguments import draws_nothing, prepare
from .cells import gru_cell, lstm_cell, rnn_relu_cell, rnn_tanh_cell

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell"]


@operator("rnn", "rnn", "input hx params", by_form=draws_nothing)
def rnn_tanh(input, hx, params, has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False, *,
             lengths=None, batch_sizes=None, seed=None, checkpoint=None):
    """A whole sequence through layers of an Elman network with tanh. As :func:`torch.rnn_tanh` and ``torch.nn.RNN``.

    input: (steps, batch, features); (batch, steps, features) with ``batch_first``; (steps, features) unbatched; or the
        (rows, features) data of a packed batch, with ``batch_sizes``.
    hx: the first hidden states (num_layers * directions, batch, hidden), no batch axis for an unbatched input; None: zeros.
    params: a list or tuple of arrays: for each layer, and in it each direction, w_ih (hidden, features), w_hh
        (hidden, hidden) and, with ``has_biases``, b_ih and b_hh (hidden,). From the second layer on, features is
        directions * hidden.
    dropout: the rate, 0 to 1, at which each layer's outputs but the last's are dropped, the others scaled by
        1 / (1 - dropout); only where ``train``. seed: an integer that fixes what is dropped; None: a new one each call.
    bidirectional: a second set of weights reads the sequence backwards; the outputs are concatenated.
    lengths: for a padded batch: how many steps each row has, integers from 1 to steps, in any order. Outputs past a row's
        length are 0, h_n is its state after its last step, the backward direction starts at its last step, and what lies
        in the padding has no influence and a gradient of 0.
    batch_sizes: for a packed batch, as in ``torch.nn.utils.rnn.PackedSequence``: how many rows each step has, integers
        that do not increase; the rows of hx are those of the first step. ``batch_first`` has no meaning then.
    checkpoint: for the gradients of long sequences: None, or a number of steps k of at least 1. Then the states of every k-th step
        are kept instead of all gates (4 values for each unit and step for gru, 5 for lstm), and the pullback goes through k
        steps at a time again: a third more work. The reference backend keeps everything all the same.

    Returns (output, h_n): output is the input's shape with directions * hidden for features, h_n is hx's.

    Source: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
    Raises TypeError (not arrays of float32 or float64, several dtypes) or ValueError (shapes or counts that do not fit,
    no steps, a rate, length or batch size out of range).
    """
    return prepare("rnn_tanh", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
                   lengths, batch_sizes, seed, checkpoint=checkpoint)


@operator("rnn", "rnn", "input hx params", by_form=draws_nothing)
def rnn_relu(input, hx, params, has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False, *,
             lengths=None, batch_sizes=None, seed=None, checkpoint=None):
    """A whole sequence through layers of an Elman network with relu. As :func:`torch.rnn_relu`.

    Arguments, result and errors as of :func:`rnn_tanh`.
    """
    return prepare("rnn_relu", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
                   lengths, batch_sizes, seed, checkpoint=checkpoint)


@operator("rnn", "rnn", "input hx params", by_form=draws_nothing)
def gru(input, hx, params, has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False, *,
        lengths=None, batch_sizes=None, seed=None, linear_before_reset=True, checkpoint=None):
    """A whole sequence through layers of gated recurrent units. As :func:`torch.gru` and ``torch.nn.GRU``.

    A step is :func:`gru_cell`'s. With ``linear_before_reset=False`` (ONNX's default, Cho et al.'s formula) the reset gate
    applies to the state before the product: ``n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)``.

    params: as of :func:`rnn_tanh`, with 3 * hidden for hidden in the first size (blocks r, z, n: torch's order, not
    ONNX's). The other arguments, the result and errors are as of :func:`rnn_tanh`.

    Source: K. Cho et al., "Learning phrase representations using RNN encoder-decoder" (2014); cuDNN's variant by default.
    """
    return prepare("gru", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
                   lengths, batch_sizes, seed, linear_before_reset=linear_before_reset, checkpoint=checkpoint)


@operator("rnn", "rnn", "input hx params peepholes", by_form=draws_nothing)
def lstm(input, hx, params, has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False, batch_first=False,
         peepholes=None, *, lengths=None, batch_sizes=None, seed=None, checkpoint=None):
    """A whole sequence through layers of long short-term memories. As :func:`torch.lstm` and ``torch.nn.LSTM``.

    A step is :func:`lstm_cell`'s, followed by ``h' = w_hr h'`` where there are projections.

    hx: the tuple (h0, c0) of (num_layers * directions, batch, output) and (num_layers * directions, batch, hidden), no
        batch axis for an unbatched input; None: zeros. output is the projection's size, else hidden.
    params: as of :func:`rnn_tanh`, with 4 * hidden for hidden in the first size (blocks i, f, g, o) and output for it
        elsewhere. One more array for each layer and direction, w_hr (output, hidden), makes projections.
    peepholes: None, or an array (3*hidden,) for each layer, and in it each direction: p_i, p_f, p_o, by which the input
        and forget gates see the cell state before the step, ``p * c``, and the output gate the one after it, as in ONNX
        (whose order of gates is another: i, o, f). It has a gradient where it is given by position.
    The other arguments and errors are as of :func:`rnn_tanh`.

    Returns (output, h_n, c_n): output is the input's shape with directions * output for features, h_n is h0's, c_n is c0's.

    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory" (1997); F. Gers, J. Schmidhuber, "Recurrent nets that
    time and count" (2000), for peepholes; H. Sak et al., "Long short-term memory based recurrent neural network
    architectures for large vocabulary speech recognition" (2014), for projections.
    """
    return prepare("lstm", input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first,
                   lengths, batch_sizes, seed, peepholes, checkpoint=checkpoint)
