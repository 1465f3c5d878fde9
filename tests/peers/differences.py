"""Tests of CPython's that do not apply to Shoal, with the reason for each: pattern of the test's name -> reason.

A pattern is SUITE:CLASS.TEST, where `*` stands for anything. The runner reports one that is listed here and passes.
"""

_NOT_SENT = (
    "the calls hold a semaphore, which cannot be pickled: Shoal finds that out before it starts a worker for them"
)

DIFFERENCES = {
    "*:WithProcessesTestPool.test_imap_handle_iterable_exception": (
        "an iterable that raises ends imap after the results of the items before it, all of which come first; the test "
        "has them cut off where the standard library's task thread happened to be"
    ),
    "*:WithProcessesTestPoolWorkerErrors.test_unpickleable_result": (
        "the result that cannot be pickled there is a lambda; Shoal sends lambdas"
    ),
    "*:*TestQueue.test_queue_feeder_donot_stop_onexc": (
        "an object that cannot be pickled raises in put(), which the caller sees; there is no feeder thread to print it"
    ),
    "*:TestPoolNotLeakOnFailure.test_release_unused_processes": (
        "the test's process is a mock without a pid; Shoal watches its workers by theirs"
    ),
    "*:TestResourceTracker.test_resource_tracker": (
        "looks for the name of a semaphore; Shoal's have none: they lie in memory that goes with its last process"
    ),
    "*:TestResourceTracker.test_resource_tracker_sigkill": (
        "has a semaphore find out that the resource tracker died; Shoal's have nothing to tell it"
    ),
    "*:TestFlags.test_flags": (
        "the test starts a Python with -S, which finds no installed package, so not Shoal either"
    ),
    "*:TestStartMethod.test_mixed_startmethod": (
        "a queue made by the fork context may be handed to a process of any start method: it has no semaphore in it"
    ),
    "*:MiscTestCase.test_spawn_sys_executable_none_allows_import": (
        "asserts that nothing has imported multiprocessing yet; `python -m shoal` has"
    ),
    # -- concurrent.futures --
    "futures:*ProcessPoolExecutorTest.test_killed_child": (
        "a worker that is killed fails only the call it held; the executor goes on"
    ),
    "futures:*ProcessPoolExecutorTest.test_python_finalization_error": (
        "has the start of the standard library's threads fail by a mock; Shoal starts none at that point"
    ),
    # With fork all workers start at the first call.
    "futures:ProcessPoolSpawn*.test_saturation": _NOT_SENT,
    "futures:ProcessPoolForkserver*.test_saturation": _NOT_SENT,
    "futures:ProcessPoolSpawn*.test_processes_terminate": _NOT_SENT,
    "futures:ProcessPoolForkserver*.test_processes_terminate": _NOT_SENT,
    "futures:*ProcessPoolShutdownTest.test_cancel_futures": (
        "shutdown(cancel_futures=True) cancels every call that no worker has begun, which may be all"
    ),
}
