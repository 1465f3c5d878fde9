"""`multiprocessing.dummy`: the standard library's own."""

import sys
from multiprocessing import dummy
from multiprocessing.dummy import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = dummy
