"""`multiprocessing.shared_memory`: the standard library's own."""

import sys
from multiprocessing import shared_memory
from multiprocessing.shared_memory import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = shared_memory
