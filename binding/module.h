/* module.h: what the extension's files share: the state of one loaded module, and how each file adds its types. */
#ifndef SHOAL_BINDING_MODULE_H
#define SHOAL_BINDING_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#include "shoal.h"

typedef struct {
    /* what the codec calls; set by _engine.configure() from Python */
    PyObject *pickle_dumps;                  /* (object, buffer_callback) -> bytes; falls back to cloudpickle */
    PyObject *pickle_dumps_for_foreign_main; /* the same, for a reader whose __main__ is another */
    PyObject *pickle_loads;                  /* (bytes-like, buffers) -> object */
    PyObject
        *worker_died; /* (item, pid, exit code, signal) -> exception; set by configure_pool, as are the next three */
    PyObject *remote_error;             /* (exception) -> what travels in its place, with its traceback */
    PyObject *task_timeout;             /* (item, pid, seconds) -> exception */
    PyObject *unsendable;               /* (exception, result) -> exception, for a result that cannot be pickled */
    PyObject *queue_full, *queue_empty; /* exceptions; set by configure_queue */
    PyObject *owner_died;               /* (pid, what) -> exception; set by configure_sync, as is the next */
    PyObject *barrier_broken;           /* exception */
    PyObject *loan_type;                /* the exporter of a lent block's memory */
    PyObject *pool_type, *job_type, *worker_type, *queue_type, *process_type, *zygote_type, *store_type;
    PyObject *lock_type, *semaphore_type, *condition_type, *event_type, *barrier_type, *guarded_type;
    PyObject *lock_part_type;        /* of a lock's bound methods */
    PyObject *group_type;            /* of what many locks lie in */
    PyObject *delayed_type;          /* of a function whose calls are captured */
    PyObject *part_type, *memo_type; /* memory of an entry of the store; a function's calls in it */
    PyObject *describe_function;     /* (function) -> what its hash is made of; set by configure_store */
    PyObject *reducers;              /* copyreg's table, once it is needed */
    PyObject *numpy_array, *numpy_generic, *numpy_memmap, *numpy_dtype; /* NumPy's types, once it is there */
} module_state;

extern struct PyModuleDef engine_module;

static inline module_state *module_get_state(PyObject *module)
{
    return (module_state *)PyModule_GetState(module);
}

/* The state of the module that made one of the bases of `self`'s type, which may be a sub-class. NULL: SystemError. */
module_state *module_find_state(PyObject *self);

/* The state, from a heap type of this module. */
static inline module_state *module_state_of_type(PyTypeObject *type)
{
    return (module_state *)PyType_GetModuleState(type);
}

/* Raise what an engine call returned: OSError with errno and "what: reason", MemoryError for -ENOMEM. Returns NULL. */
PyObject *module_raise(int error, const char *what);
/* What was raised, as an instance with its traceback, and it is raised no more: new reference; NULL: nothing was. */
PyObject *module_take_raised(void);

/* multiprocessing's exit code: the status, or the negated signal. */
PyObject *module_exit_code(const shoal_exit *how);

/* Seconds (float, int or None for no limit) to nanoseconds; negative counts as 0. -1 with an exception set. */
int module_timeout(PyObject *seconds, int64_t *out);

/* Each file adds its types and functions: 0, or -1 with an exception set. */
int codec_add(PyObject *module);
int pool_add(PyObject *module);
int worker_add(PyObject *module);
int queue_add(PyObject *module);
int sync_add(PyObject *module);
int group_add(PyObject *module);
int wanted_lock_add(PyObject *module);
int lock_add(PyObject *module);
int semaphore_add(PyObject *module);
int condition_add(PyObject *module);
int event_add(PyObject *module);
int barrier_add(PyObject *module);
int guarded_add(PyObject *module);
int process_add(PyObject *module);
int store_add(PyObject *module);
int compute_add(PyObject *module);
int delayed_add(PyObject *module);
int files_add(PyObject *module);
int tasks_add(PyObject *module);

#endif
