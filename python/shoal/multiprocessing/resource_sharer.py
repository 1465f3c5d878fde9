"""`multiprocessing.resource_sharer`: the standard library's own."""

import sys
from multiprocessing import resource_sharer
from multiprocessing.resource_sharer import *  # noqa: F403  (for type checkers)

sys.modules[__name__] = resource_sharer
