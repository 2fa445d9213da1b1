"""Yearly counts of sunspots, and the text of Python's manual: they come with packages, nothing is downloaded."""

from __future__ import annotations

import numpy as np


def load_sunspots() -> tuple[np.ndarray, np.ndarray]:
    """(years, mean sunspot numbers), float64 (309,) each, 1700 to 2008.

    They come with statsmodels. Source: World Data Center for the Sunspot Index, Royal Observatory of Belgium (the series
    before its revision of 2015). Raises ImportError where statsmodels is not installed.
    """
    try:
        from statsmodels.datasets import sunspots
    except ImportError as error:
        message = "load_sunspots reads the numbers that come with statsmodels: pip install fastdl[demo]"
        raise ModuleNotFoundError(message, name="statsmodels") from error
    table = sunspots.load_pandas().data
    return table["YEAR"].to_numpy(np.float64), table["SUNACTIVITY"].to_numpy(np.float64)


def load_manual() -> str:
    """The chapters of the Python manual that ``help()`` shows, as one text of some 450,000 characters.

    They come with CPython (``pydoc_data.topics``), so the text is that of the Python that runs. A paragraph that stands in
    several chapters is kept once, so that no part of the text holds another's sentences, and characters that occur fewer
    than ten times are left out.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    characters, counts = np.unique(np.array(list(text)), return_counts=True)
    text = text.translate({ord(c): None for c in characters[counts < 10]})
    return "\n\n".join(dict.fromkeys(text.split("\n\n")))
