"""The same name for a run without Shoal: NumPy's dot product. Put this folder on PYTHONPATH to choose it."""

from __future__ import annotations

import numpy as np


def dot_product(a: np.ndarray, b: np.ndarray) -> float:
    """The dot product of two vectors."""
    return float(np.dot(a, b))
