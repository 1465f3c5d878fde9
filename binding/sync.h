/* sync.h: what the types of the lock family share: waiting without the GIL in a way that signals can end, and raising
 * what an engine call returned.
 */
#ifndef SHOAL_BINDING_SYNC_H
#define SHOAL_BINDING_SYNC_H

#include "module.h"

/* A signal that arrives just before a sleep is seen after this long at the latest. */
#define SIGNAL_SLICE (250 * SHOAL_MILLISECOND)

/* Of the helpers below: a Python exception is set. No code of the engine's. */
#define SYNC_RAISED INT32_MIN

/* A method bound to the object that it is a part of (with.c). */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
} PartObject;

/* A lock. The condition looks into it. */
typedef struct {
    PyObject_HEAD
    module_state *state;
    shoal_lock *lock; /* NULL until _open or _attach */
    PyObject *group;  /* that it lies in, or NULL */
    bool recursive;
    bool inherited;          /* written by the holder only: the process that held it before died with it */
    PartObject enter, leave; /* __enter__, __exit__ */
} LockObject;

/* One wait: at most `timeout` nanoseconds; as the engine's calls. Runs without the GIL. */
typedef int (*sync_step)(void *handle, int64_t timeout);

/* Call `step` until it gives something else than "not yet", the time is over (-ETIMEDOUT), or a signal's handler raises
 * (SYNC_RAISED). A step that returned -EINTR took nothing. */
int sync_wait(sync_step step, void *handle, int64_t timeout);

/* After an engine's wait returned -EINTR or -ETIMEDOUT: run signal handlers. 0, or SYNC_RAISED. */
static inline int sync_check_signals(void)
{
    return PyErr_CheckSignals() == 0 ? 0 : SYNC_RAISED;
}

int64_t sync_deadline(int64_t timeout);
/* What is left until a deadline of sync_deadline, at least 0. */
int64_t sync_left(int64_t deadline);

/* (block=True, timeout=None), or with `first_is_timeout` (timeout=None), by position or name, to nanoseconds. */
int sync_parse_wait(const char *name, PyObject *const *args, Py_ssize_t count, PyObject *names, bool first_is_timeout,
                    int64_t *timeout);

/* The group that `object` is, NULL for None or NULL. -1 with TypeError. */
int group_find(module_state *state, PyObject *object, shoal_sync_group **group);

/* Raise OwnerDied for process `pid` (0: not known), which held `what`. Returns NULL. */
PyObject *sync_raise_owner_died(module_state *state, pid_t pid, const char *what);
/* Raise for an object that no __init__ opened. Returns NULL. */
PyObject *sync_raise_not_open(PyObject *self);

/* Lock: take it (True, or False when the time was over) and give it back (None), or raise. */
PyObject *lock_take(LockObject *self, int64_t timeout);
PyObject *lock_give(LockObject *self);
/* The end of a with statement; `args` are its exception's. */
PyObject *lock_exit(LockObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *lock_raise_died(LockObject *self);
/* The calling thread is about to give the lock back, once or wholly: with the last of that ends what it inherited. */
void lock_forget_inheritance(LockObject *self, bool wholly);

/* with.c: make and end the parts of a lock; give its type __enter__ and __exit__. */
void with_begin(LockObject *self);
void with_end(LockObject *self);
int with_add(PyObject *module, PyTypeObject *lock_type);

#endif
