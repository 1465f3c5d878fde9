"""`multiprocessing.spawn`: the standard library's own."""

import sys
from multiprocessing import spawn
from multiprocessing.spawn import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = spawn
