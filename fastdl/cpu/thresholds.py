"""From how much work on threads share it. Measured on two virtual cores (Zen 3): with less, one thread is done as soon.

`python -m bench.threads` shows the lines of products and of elements: what both columns have in common lies below them.
"""

MULTIPLY_ADDS = 1 << 18  # of a product, a convolution, a recurrent layer
DEPTHWISE = 1 << 16  # multiply-adds of a depthwise convolution
STEP_MULTIPLY_ADDS = 1 << 15  # of one step of a recurrent layer, whose threads meet after each
TEAM_MULTIPLY_ADDS = 1 << 19  # and of one whose threads could as well go through rows of their own without meeting
GATES = 1 << 14  # of a recurrent cell
ELEMENTS = 1 << 15  # of an operator that does arithmetic on each element by itself
FUNCTIONS = 1 << 13  # and of one of a dozen instructions for each, exponentials, random bits, normalisation: an estimate, not measured
POOLED = 1 << 16  # elements of the input of a pooling layer
MOVED = 1 << 14  # elements of a convolution's weight to be rearranged
RECURRENT_MOVED = 1 << 16  # and of a recurrent layer's
