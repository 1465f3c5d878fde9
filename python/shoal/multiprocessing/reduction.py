"""`multiprocessing.reduction`: the standard library's own."""

import sys
from multiprocessing import reduction
from multiprocessing.reduction import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = reduction
