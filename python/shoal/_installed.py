"""Importing this installs Shoal: for interpreters that can be told to import something, such as multiprocessing's
fork server."""

import shoal

shoal.install()
