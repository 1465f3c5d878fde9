/* process.c: the types Process and Zygote, and fork as CPython wants it.
 *
 * fork_process() is what multiprocessing's Popen stands on: the interpreter's own hooks run around the fork, and there
 * is no warning about threads, which would tell the user about ours. A process is known by its pidfd, so that no pid is
 * mistaken for another's.
 */
#include "module.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SIGNAL_SLICE (250 * SHOAL_MILLISECOND)
#define LONGEST_REST 0.1 /* s; a child rests before it begins */

typedef struct {
    PyObject_HEAD
    shoal_process *process;
    int kept;         /* a descriptor of the caller's; -1: none */
    pid_t keeper;     /* the process that is to close it: a forked one, in which it may be another's by now, is not */
    uint32_t waiting; /* threads in wait(), without the GIL; the last one closes where that is due */
    bool close_due;
} ProcessObject;

static PyObject *wrap(module_state *state, shoal_process *process)
{
    PyTypeObject *type = (PyTypeObject *)state->process_type;
    ProcessObject *self = (ProcessObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        shoal_process_close(process);
        return NULL;
    }
    self->process = process;
    self->kept = -1;
    return (PyObject *)self;
}

static void forget(ProcessObject *self)
{
    self->close_due = self->waiting > 0;
    if (self->close_due)
        return;
    shoal_process_close(self->process);
    self->process = NULL;
    if (self->kept >= 0 && self->keeper == getpid())
        close(self->kept);
    self->kept = -1;
}

static void process_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    forget((ProcessObject *)self);
    type->tp_free(self);
    Py_DECREF(type);
}

static shoal_process *process_of(PyObject *self)
{
    shoal_process *process = ((ProcessObject *)self)->close_due ? NULL : ((ProcessObject *)self)->process;
    if (process == NULL)
        PyErr_SetString(PyExc_ValueError, "process object is closed");
    return process;
}

PyObject *module_exit_code(const shoal_exit *how)
{
    return PyLong_FromLong(how->signal != 0 ? -how->signal : how->code);
}

/* shoal_process_wait without the GIL: also with no timeout it may take as long as a zygote is slow to tell. */
static int wait_for_end(ProcessObject *self, shoal_process *process, int64_t timeout, shoal_exit *how)
{
    int error;
    self->waiting++;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_process_wait(process, timeout, how);
    Py_END_ALLOW_THREADS
    if (--self->waiting == 0 && self->close_due)
        forget(self);
    return error;
}

static PyObject *process_wait(PyObject *object, PyObject *args)
{
    ProcessObject *self = (ProcessObject *)object;
    PyObject *seconds = Py_None;
    int64_t timeout;
    if (!PyArg_ParseTuple(args, "|O:wait", &seconds) || module_timeout(seconds, &timeout) != 0)
        return NULL;
    const int64_t start = shoal_clock_now();
    shoal_exit how;
    for (;;) {
        shoal_process *process = process_of(object); /* each time: a signal's handler may have closed it */
        if (process == NULL)
            return NULL;
        int64_t left = timeout == SHOAL_FOREVER ? SIGNAL_SLICE : timeout - (shoal_clock_now() - start);
        left = left < 0 ? 0 : left > SIGNAL_SLICE ? SIGNAL_SLICE : left;
        const int error = wait_for_end(self, process, left, &how);
        if (error == 0)
            return module_exit_code(&how);
        if (error != -ETIMEDOUT && error != -EINTR)
            return module_raise(error, "cannot tell how the process ended");
        if (PyErr_CheckSignals() != 0)
            return NULL;
        if (timeout != SHOAL_FOREVER && shoal_clock_now() - start >= timeout)
            Py_RETURN_NONE;
    }
}

static PyObject *process_poll(PyObject *self, PyObject *unused)
{
    shoal_process *process = process_of(self);
    if (process == NULL)
        return NULL;
    shoal_exit how;
    const int error = wait_for_end((ProcessObject *)self, process, 0, &how);
    if (error == 0)
        return module_exit_code(&how);
    if (error == -ETIMEDOUT || error == -EINTR)
        Py_RETURN_NONE;
    return module_raise(error, "cannot tell how the process ended");
}

static PyObject *process_signal(PyObject *self, PyObject *number)
{
    long signal_number = PyLong_AsLong(number);
    if (signal_number == -1 && PyErr_Occurred())
        return NULL;
    shoal_process *process = process_of(self);
    if (process == NULL)
        return NULL;
    int error = shoal_process_signal(process, (int)signal_number);
    if (error != 0)
        return module_raise(error, "cannot send a signal");
    Py_RETURN_NONE;
}

static PyObject *process_close(PyObject *self, PyObject *unused)
{
    forget((ProcessObject *)self);
    Py_RETURN_NONE;
}

static PyObject *process_keep(PyObject *object, PyObject *descriptor)
{
    ProcessObject *self = (ProcessObject *)object;
    int kept = PyObject_AsFileDescriptor(descriptor);
    if (kept < 0 || process_of(object) == NULL)
        return NULL;
    if (self->kept >= 0) {
        PyErr_SetString(PyExc_ValueError, "process object keeps a descriptor already");
        return NULL;
    }
    self->kept = kept;
    self->keeper = getpid();
    Py_RETURN_NONE;
}

static PyObject *process_get_pid(PyObject *self, void *closure)
{
    shoal_process *process = process_of(self);
    return process == NULL ? NULL : PyLong_FromLong(shoal_process_pid(process));
}

static PyObject *process_get_fd(PyObject *self, void *closure)
{
    shoal_process *process = process_of(self);
    return process == NULL ? NULL : PyLong_FromLong(shoal_process_fd(process));
}

static PyMethodDef process_methods[] = {
    {"wait", process_wait, METH_VARARGS,
     "wait(timeout=None)\n--\n\nWait for its end: the exit code, negative for a signal; None after `timeout` "
     "seconds.\n\n"
     "ChildProcessError: it has ended, and how is not known."},
    {"poll", process_poll, METH_NOARGS, "poll()\n--\n\nThe exit code, or None while it runs."},
    {"signal", process_signal, METH_O, "signal(number)\n--\n\nSend a signal; ProcessLookupError: it has ended."},
    {"keep", process_keep, METH_O,
     "keep(fd)\n--\n\nOwn a descriptor: it is closed with this object, and not in a process that was forked."},
    {"close", process_close, METH_NOARGS,
     "close()\n--\n\nForget the process, which goes on. An object that is collected is closed."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef process_properties[] = {
    {"pid", process_get_pid, NULL, "its number", NULL},
    {"fd", process_get_fd, NULL, "its pidfd: readable once it has ended", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot process_slots[] = {
    {Py_tp_doc, "A process that was started through the engine."},
    {Py_tp_dealloc, process_dealloc},
    {Py_tp_methods, process_methods},
    {Py_tp_getset, process_properties},
    {0, NULL},
};

static PyType_Spec process_spec = {
    .name = "shoal._engine.Process",
    .basicsize = sizeof(ProcessObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = process_slots,
};

/* ------------------------------------------------------------------------ fork ---- */

struct fork_order {
    PyObject *callable;
    int64_t rest; /* ns that the child sleeps before it touches anything */
};

/* fork() with the interpreter's hooks. The GIL is held, as os.fork() does. */
static pid_t fork_interpreter(void *context)
{
    PyOS_BeforeFork();
    pid_t pid = fork();
    int error = errno;
    if (pid == 0) {
        const struct fork_order *order = context;
        const struct timespec rest = {.tv_nsec = (long)order->rest};
        if (order->rest > 0)
            (void)nanosleep(&rest, NULL); /* a signal may end it: it is no duty */
        PyOS_AfterFork_Child();
    } else {
        PyOS_AfterFork_Parent();
    }
    errno = error;
    return pid;
}

/* An exit status from what a process's function returned: what is no int of C's is a failure, whatever its low bits. */
static int status_of(PyObject *number)
{
    const long status = PyLong_AsLong(number);
    const bool fits = !PyErr_Occurred() && status >= INT_MIN && status <= INT_MAX;
    PyErr_Clear();
    return fits ? (int)status : 1;
}

/* What a child of fork does: call, and turn what comes into an exit status. */
static int call_in_child(void *context)
{
    const struct fork_order *order = context;
    PyObject *result = PyObject_CallNoArgs(order->callable);
    int status = 1;
    if (result != NULL && PyLong_Check(result)) {
        status = status_of(result);
    } else if (result == Py_None) {
        status = 0;
    } else if (result == NULL) {
        PyErr_Print();
    }
    return status & 0xff;
}

static PyObject *fork_process(PyObject *module, PyObject *args)
{
    struct fork_order order;
    double rest = 0;
    int die_with_parent = 0;
    if (!PyArg_ParseTuple(args, "O|pd:fork_process", &order.callable, &die_with_parent, &rest))
        return NULL;
    if (!(rest >= 0 && rest <= LONGEST_REST)) {
        PyErr_SetString(PyExc_ValueError, "a process rests for a tenth of a second at the most before it begins");
        return NULL;
    }
    order.rest = (int64_t)(rest * SHOAL_SECOND);
    const shoal_process_options options = {
        .main = call_in_child,
        .context = &order,
        .die_with_parent = die_with_parent,
        .fork = fork_interpreter,
    };
    shoal_process *process;
    int error = shoal_process_start(&options, &process);
    if (error != 0)
        return module_raise(error, "cannot start a process");
    return wrap(module_get_state(module), process);
}

static PyObject *adopt_process(PyObject *module, PyObject *args)
{
    int pid;
    if (!PyArg_ParseTuple(args, "i:adopt_process", &pid))
        return NULL;
    shoal_process *process;
    int error = shoal_process_adopt((pid_t)pid, &process);
    if (error != 0)
        return module_raise(error, "cannot watch a process");
    return wrap(module_get_state(module), process);
}

static PyObject *die_with(PyObject *module, PyObject *args)
{
    int pid;
    if (!PyArg_ParseTuple(args, "i:die_with", &pid))
        return NULL;
    int error = shoal_process_die_with((pid_t)pid);
    if (error != 0)
        return module_raise(error, "cannot bind this process to another");
    Py_RETURN_NONE;
}

/* ---------------------------------------------------------------------- zygote ---- */

typedef struct {
    PyObject_HEAD
    module_state *state;
    shoal_zygote *zygote;
    uint32_t users; /* threads in start(); the last one closes where that is due */
    bool close_due;
} ZygoteObject;

static PyObject *zygote_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    int socket, pid;
    if (!PyArg_ParseTuple(args, "ii:Zygote", &socket, &pid))
        return NULL;
    PyObject *module = PyType_GetModule(type);
    ZygoteObject *self = module == NULL ? NULL : (ZygoteObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = module_get_state(module);
    int error = shoal_zygote_attach(socket, (pid_t)pid, &self->zygote);
    if (error != 0) {
        Py_DECREF(self);
        return module_raise(error, "cannot reach the zygote");
    }
    return (PyObject *)self;
}

static PyObject *zygote_close(PyObject *object, PyObject *unused)
{
    ZygoteObject *self = (ZygoteObject *)object;
    if (self->users > 0) {
        self->close_due = true;
    } else {
        shoal_zygote_close(self->zygote);
        self->zygote = NULL;
    }
    Py_RETURN_NONE;
}

static void zygote_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_zygote_close(((ZygoteObject *)self)->zygote);
    type->tp_free(self);
    Py_DECREF(type);
}

struct asked {
    PyObject *wanted;
    PyThreadState *thread; /* while it waits */
};

/* Called without the GIL, while a start waits. What is raised is for the thread that waits, which is this one. */
static int is_wanted(void *context)
{
    struct asked *asked = context;
    PyEval_RestoreThread(asked->thread);
    bool yes = PyErr_CheckSignals() == 0;
    if (yes && asked->wanted != Py_None) {
        PyObject *answer = PyObject_CallNoArgs(asked->wanted);
        yes = answer != NULL && PyObject_IsTrue(answer) == 1;
        Py_XDECREF(answer);
    }
    asked->thread = PyEval_SaveThread();
    return yes;
}

static PyObject *zygote_start(PyObject *object, PyObject *args)
{
    ZygoteObject *self = (ZygoteObject *)object;
    Py_buffer request;
    PyObject *descriptors, *wanted = Py_None, *result = NULL;
    int outlives = 0;
    if (!PyArg_ParseTuple(args, "y*O|pO:start", &request, &descriptors, &outlives, &wanted))
        return NULL;
    int fds[SHOAL_ZYGOTE_FDS];
    PyObject *list = PySequence_Tuple(descriptors); /* ours: a fileno() may change a list, or close the zygote */
    if (list == NULL)
        goto release;
    Py_ssize_t count = PyTuple_GET_SIZE(list);
    if (count > (Py_ssize_t)SHOAL_ZYGOTE_FDS) {
        PyErr_SetString(PyExc_ValueError, "too many descriptors");
        goto release;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        fds[i] = PyObject_AsFileDescriptor(PyTuple_GET_ITEM(list, i));
        if (fds[i] < 0)
            goto release;
    }
    if (self->zygote == NULL || self->close_due) {
        module_raise(-EPIPE, "the zygote is closed");
        goto release;
    }
    shoal_process *process;
    int error;
    self->users++;
    struct asked asked = {wanted, PyEval_SaveThread()};
    error = shoal_zygote_start_process_while(self->zygote, request.buf, (size_t)request.len, fds, (uint32_t)count,
                                             outlives ? SHOAL_ZYGOTE_OUTLIVES : 0, is_wanted, &asked, &process);
    PyEval_RestoreThread(asked.thread);
    self->users--;
    if (error == 0)
        result = wrap(self->state, process);
    else if (!PyErr_Occurred())
        result = module_raise(error, "cannot have a process forked");
    if (self->close_due && self->users == 0) {
        shoal_zygote_close(self->zygote);
        self->zygote = NULL;
    }
release:
    Py_XDECREF(list);
    PyBuffer_Release(&request);
    return result;
}

/* In a child of the zygote: call(request, fds). */
static int serve_child(void *context, const void *request, size_t size, const int *fds, uint32_t fd_count)
{
    PyObject *numbers = PyTuple_New((Py_ssize_t)fd_count);
    for (uint32_t i = 0; numbers != NULL && i < fd_count; i++)
        PyTuple_SET_ITEM(numbers, (Py_ssize_t)i, PyLong_FromLong(fds[i]));
    PyObject *bytes = PyBytes_FromStringAndSize(request, (Py_ssize_t)size);
    PyObject *result = NULL;
    if (numbers != NULL && bytes != NULL)
        result = PyObject_CallFunctionObjArgs(context, bytes, numbers, NULL);
    int status = 1;
    if (result == NULL)
        PyErr_Print();
    else if (PyLong_Check(result))
        status = status_of(result);
    else if (result == Py_None)
        status = 0;
    return status & 0xff;
}

static PyObject *serve_zygote(PyObject *module, PyObject *args)
{
    int socket;
    PyObject *callable;
    if (!PyArg_ParseTuple(args, "iO:serve_zygote", &socket, &callable))
        return NULL;
    const shoal_zygote_service service = {.main = serve_child, .context = callable, .fork = fork_interpreter};
    /* The GIL stays: there is one thread, and the children need it. */
    int error = shoal_zygote_serve(socket, &service);
    if (error != 0)
        return module_raise(error, "the zygote cannot go on");
    Py_RETURN_NONE;
}

static PyObject *zygote_is_stopped(PyObject *object, PyObject *unused)
{
    const ZygoteObject *self = (ZygoteObject *)object;
    return PyBool_FromLong(self->zygote != NULL && shoal_zygote_is_stopped(self->zygote));
}

/* What the asker needs for a zygote, and the standard library has in modules that take a millisecond to load, which is
 * spent while the first zygote of a program has not even begun to start. */

static PyObject *zygote_sockets(PyObject *module, PyObject *unused)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *pair = Py_BuildValue("(ii)", ends[0], ends[1]);
    if (pair == NULL) {
        close(ends[0]);
        close(ends[1]);
    }
    return pair;
}

static PyObject *resource_limits(PyObject *module, PyObject *unused)
{
    struct rlimit limits[RLIM_NLIMITS];
    for (int i = 0; i < (int)RLIM_NLIMITS; i++) {
        if (getrlimit((__rlimit_resource_t)i, &limits[i]) != 0)
            return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyBytes_FromStringAndSize((const char *)limits, sizeof limits);
}

static PyMethodDef zygote_methods[] = {
    {"start", zygote_start, METH_VARARGS,
     "start(request, fds, outlives=False, wanted=None)\n--\n\nHave a process forked; it is killed with this one, "
     "unless "
     "it\noutlives it. wanted() is asked now and then while the zygote does not answer. BrokenPipeError: the zygote "
     "is\n"
     "gone. OSError (ECANCELED): not wanted any more; it never runs."},
    {"is_stopped", zygote_is_stopped, METH_NOARGS,
     "is_stopped()\n--\n\nWhether a signal or a debugger has stopped it."},
    {"close", zygote_close, METH_NOARGS, "close()\n--\n\nEnd the zygote and what it forked."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot zygote_slots[] = {
    {Py_tp_doc,
     "Zygote(socket, pid)\n--\n\nThe asker's side of a clean process that forks clean processes. Owns the socket."},
    {Py_tp_new, zygote_new},
    {Py_tp_dealloc, zygote_dealloc},
    {Py_tp_methods, zygote_methods},
    {0, NULL},
};

static PyType_Spec zygote_spec = {
    .name = "shoal._engine.Zygote",
    .basicsize = sizeof(ZygoteObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = zygote_slots,
};

static PyMethodDef functions[] = {
    {"fork_process", fork_process, METH_VARARGS,
     "fork_process(callable, die_with_parent=False, rest=0.0)\n--\n\nFork; the child calls, and exits with what that "
     "returns. With die_with_parent the kernel kills it as soon as this process is gone. rest: seconds, a tenth at the "
     "most, that it sleeps before it begins."},
    {"adopt_process", adopt_process, METH_VARARGS,
     "adopt_process(pid)\n--\n\nA Process for one that somebody else started."},
    {"die_with", die_with, METH_VARARGS,
     "die_with(pid)\n--\n\nHave this process killed as soon as that one, its parent or grandparent, is gone."},
    {"zygote_sockets", zygote_sockets, METH_NOARGS,
     "zygote_sockets()\n--\n\nTwo descriptors that are connected: the asker's and the zygote's."},
    {"resource_limits", resource_limits, METH_NOARGS,
     "resource_limits()\n--\n\nThis process's resource limits, all of them, as bytes to compare."},
    {"serve_zygote", serve_zygote, METH_VARARGS,
     "serve_zygote(socket, call)\n--\n\nBe a zygote until the asker is gone: call(request, fds) runs in each child."},
    {NULL, NULL, 0, NULL},
};

int process_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->process_type = PyType_FromModuleAndSpec(module, &process_spec, NULL);
    if (state->process_type == NULL || PyModule_AddObjectRef(module, "Process", state->process_type) != 0)
        return -1;
    state->zygote_type = PyType_FromModuleAndSpec(module, &zygote_spec, NULL);
    if (state->zygote_type == NULL || PyModule_AddObjectRef(module, "Zygote", state->zygote_type) != 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
