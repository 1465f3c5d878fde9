"""CPython's multiprocessing tests for `forkserver`, for Pythons that came without the module of these."""

from test._test_multiprocessing import install_tests_in_module_dict

install_tests_in_module_dict(globals(), "forkserver")
