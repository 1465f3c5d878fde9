"""`multiprocessing.connection`: the standard library's own."""

import sys
from multiprocessing import connection
from multiprocessing.connection import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = connection
