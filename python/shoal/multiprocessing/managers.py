"""`multiprocessing.managers`: the standard library's own."""

import sys
from multiprocessing import managers
from multiprocessing.managers import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = managers
