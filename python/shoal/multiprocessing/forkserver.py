"""`multiprocessing.forkserver`: the standard library's own."""

import sys
from multiprocessing import forkserver
from multiprocessing.forkserver import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = forkserver
