"""`multiprocessing.util`: the standard library's own."""

import sys
from multiprocessing import util
from multiprocessing.util import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = util
