/* queue.c: the type Queue: put and get of Python objects on the engine's queue, in the caller's thread.
 *
 * An object is encoded before a slot is claimed: one that cannot be pickled raises in put() and leaves no trace. Arrays
 * travel as blocks of the queue's heap and arrive as views. The rest of multiprocessing's interface is Python's
 * (shoal/multiprocessing/queues.py).
 */
#include "codec.h"

#include <errno.h>

/* A signal that arrives just before a sleep is seen after this long at the latest. */
#define SIGNAL_SLICE (250 * SHOAL_MILLISECOND)

typedef struct {
    PyObject_HEAD
    module_state *state;
    shoal_queue *queue;
    bool closed;
} QueueObject;

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    QueueObject *self = (QueueObject *)type->tp_alloc(type, 0);
    return (PyObject *)self;
}

/* The module's state: from the type that this file made, which is among the bases of a sub-class. */
static module_state *find_state(PyObject *self)
{
    PyObject *bases = Py_TYPE(self)->tp_mro;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(bases, i);
        if (!PyType_HasFeature(base, Py_TPFLAGS_HEAPTYPE))
            continue;
        PyObject *module = PyType_GetModule(base);
        if (module == NULL)
            PyErr_Clear();
        else if (PyModule_GetDef(module) == &engine_module)
            return module_get_state(module);
    }
    PyErr_SetString(PyExc_SystemError, "a queue without its module");
    return NULL;
}

static PyObject *queue_open(PyObject *object, PyObject *args)
{
    QueueObject *self = (QueueObject *)object;
    Py_ssize_t capacity = 0;
    int fds[2] = {-1, -1};
    if (!PyArg_ParseTuple(args, "n|ii:_open", &capacity, fds, fds + 1))
        return NULL;
    if (self->queue != NULL) {
        PyErr_SetString(PyExc_ValueError, "the queue is open");
        return NULL;
    }
    self->state = find_state(object);
    if (self->state == NULL)
        return NULL;
    const shoal_queue_options options = {.capacity = capacity > 0 ? (uint64_t)capacity : 0};
    int error = fds[0] >= 0 ? shoal_queue_attach(fds, &self->queue) : shoal_queue_create(&options, &self->queue);
    if (error != 0)
        return module_raise(error, "cannot make a queue");
    Py_RETURN_NONE;
}

static void queue_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_queue_close(((QueueObject *)self)->queue);
    type->tp_free(self);
    Py_DECREF(type);
}

static int check_open(QueueObject *self)
{
    if (self->queue != NULL && !self->closed)
        return 0;
    PyErr_Format(PyExc_ValueError, "Queue %R is closed", self);
    return -1;
}

/* block and timeout, by position from `first` on or by name, to nanoseconds. */
static int parse_waiting(PyObject *const *args, Py_ssize_t count, PyObject *names, Py_ssize_t first, int64_t *timeout,
                         PyObject **object)
{
    PyObject *block = Py_True, *seconds = Py_None;
    Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    if (count > first + 2) {
        PyErr_Format(PyExc_TypeError, "takes at most %zd arguments (%zd given)", first + 2, count);
        return -1;
    }
    if (first == 1 && count > 0)
        *object = args[0];
    if (count > first)
        block = args[first];
    if (count > first + 1)
        seconds = args[first + 1];
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (PyUnicode_CompareWithASCIIString(name, "block") == 0) {
            block = args[count + i];
        } else if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            seconds = args[count + i];
        } else if (first == 1 && PyUnicode_CompareWithASCIIString(name, "obj") == 0) {
            *object = args[count + i];
        } else {
            PyErr_Format(PyExc_TypeError, "got an unexpected keyword argument '%U'", name);
            return -1;
        }
    }
    int truth = PyObject_IsTrue(block);
    if (truth < 0)
        return -1;
    if (truth)
        return module_timeout(seconds, timeout);
    *timeout = 0;
    return 0;
}

static int64_t left_until(int64_t deadline)
{
    if (deadline == SHOAL_FOREVER)
        return SIGNAL_SLICE;
    int64_t left = deadline - shoal_clock_now();
    return left < 0 ? 0 : left < SIGNAL_SLICE ? left : SIGNAL_SLICE;
}

static int64_t deadline_after(int64_t timeout)
{
    int64_t now = shoal_clock_now();
    return timeout >= SHOAL_FOREVER - now ? SHOAL_FOREVER : now + timeout;
}

/* Whether to go on waiting after `error`: 1 yes, 0 the time is over, -1 a signal's exception. */
static int go_on(int error, int64_t deadline)
{
    if (PyErr_CheckSignals() != 0)
        return -1;
    if (error == -ETIMEDOUT && deadline != SHOAL_FOREVER && shoal_clock_now() >= deadline)
        return 0;
    return 1;
}

static PyObject *queue_put(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    QueueObject *self = (QueueObject *)object;
    int64_t timeout;
    PyObject *item_object = NULL;
    if (check_open(self) != 0 || parse_waiting(args, count, names, 1, &timeout, &item_object) != 0)
        return NULL;
    if (item_object == NULL) {
        PyErr_SetString(PyExc_TypeError, "put() missing 1 required positional argument: 'obj'");
        return NULL;
    }
    uint32_t owner;
    int error = shoal_queue_owner(self->queue, &owner);
    if (error != 0)
        return module_raise(error, "cannot use the queue");
    struct codec_writer writer;
    codec_writer_begin(&writer, shoal_queue_heap(self->queue), owner);
    if (codec_encode(self->state, &writer, item_object) != 0) {
        codec_writer_end(&writer, false);
        return NULL;
    }
    const shoal_item item = {writer.data, writer.size, writer.blocks, writer.block_count};
    error = shoal_queue_put_item(self->queue, &item, 0);
    if (error == -ETIMEDOUT && timeout > 0) {
        const int64_t deadline = deadline_after(timeout);
        int more = 1;
        while (more == 1 && (error == -ETIMEDOUT || error == -EINTR)) {
            int64_t left = left_until(deadline);
            Py_BEGIN_ALLOW_THREADS
            error = shoal_queue_put_item(self->queue, &item, left);
            Py_END_ALLOW_THREADS
            if (error != 0)
                more = go_on(error, deadline);
        }
        if (more < 0) {
            codec_writer_end(&writer, false);
            return NULL;
        }
    }
    codec_writer_end(&writer, error == 0);
    if (error == 0)
        Py_RETURN_NONE;
    if (error == -ETIMEDOUT || error == -EINTR) {
        PyErr_SetNone(self->state->queue_full);
        return NULL;
    }
    return module_raise(error, "cannot put an item");
}

static PyObject *queue_get(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    QueueObject *self = (QueueObject *)object;
    int64_t timeout;
    if (check_open(self) != 0 || parse_waiting(args, count, names, 0, &timeout, NULL) != 0)
        return NULL;
    shoal_received received;
    int error = shoal_queue_get_item(self->queue, 0, &received);
    if (error == -ETIMEDOUT && timeout > 0) {
        const int64_t deadline = deadline_after(timeout);
        int more = 1;
        while (more == 1 && (error == -ETIMEDOUT || error == -EINTR)) {
            int64_t left = left_until(deadline);
            Py_BEGIN_ALLOW_THREADS
            error = shoal_queue_get_item(self->queue, left, &received);
            Py_END_ALLOW_THREADS
            if (error != 0)
                more = go_on(error, deadline);
        }
        if (more < 0)
            return NULL;
    }
    if (error == -ETIMEDOUT || error == -EINTR) {
        PyErr_SetNone(self->state->queue_empty);
        return NULL;
    }
    if (error != 0)
        return module_raise(error, "cannot get an item");
    PyObject *result = codec_decode(self->state, shoal_queue_heap(self->queue), &received.item, CODEC_VIEW);
    shoal_queue_release(self->queue, &received);
    return result;
}

static PyObject *queue_size(PyObject *self, PyObject *unused)
{
    QueueObject *queue = (QueueObject *)self;
    return PyLong_FromUnsignedLongLong(queue->queue == NULL ? 0 : shoal_queue_count(queue->queue));
}

static PyObject *queue_fds(PyObject *self, PyObject *unused)
{
    QueueObject *queue = (QueueObject *)self;
    if (check_open(queue) != 0)
        return NULL;
    int fds[2];
    shoal_queue_fds(queue->queue, fds);
    return Py_BuildValue("(ii)", fds[0], fds[1]);
}

static PyObject *queue_close(PyObject *self, PyObject *unused)
{
    /* The mapping stays until the object goes: another thread may be in the middle of a call. */
    ((QueueObject *)self)->closed = true;
    Py_RETURN_NONE;
}

static PyObject *queue_get_closed(PyObject *self, void *closure)
{
    return PyBool_FromLong(((QueueObject *)self)->closed);
}

static PyMethodDef queue_methods[] = {
    {"_open", queue_open, METH_VARARGS,
     "_open(maxsize, *fds)\n--\n\nMake the queue, or map the one behind these descriptors. Once, by __init__."},
    {"_fds", queue_fds, METH_NOARGS, "_fds()\n--\n\nIts descriptors, for a process that does not inherit it."},
    {"put", (PyCFunction)(void (*)(void))queue_put, METH_FASTCALL | METH_KEYWORDS,
     "put($self, obj, block=True, timeout=None)\n--\n\nPut an object. When this returns the object is there, whatever "
     "becomes of this "
     "process.\n\nRaises queue.Full if there is no room (after `timeout` seconds, or at once if not `block`)."},
    {"get", (PyCFunction)(void (*)(void))queue_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, block=True, timeout=None)\n--\n\nTake the first object.\n\nRaises queue.Empty if there is none (after "
     "`timeout` "
     "seconds, or at once if not `block`)."},
    {"qsize", queue_size, METH_NOARGS, "qsize()\n--\n\nHow many objects are in the queue."},
    {"close", queue_close, METH_NOARGS, "close()\n--\n\nThis process uses the queue no more. What was put stays."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef queue_properties[] = {
    {"_closed", queue_get_closed, NULL, "whether close() was called here", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot queue_slots[] = {
    {Py_tp_doc, "A queue between processes, in shared memory."},
    {Py_tp_new, queue_new},
    {Py_tp_dealloc, queue_dealloc},
    {Py_tp_methods, queue_methods},
    {Py_tp_getset, queue_properties},
    {0, NULL},
};

static PyType_Spec queue_spec = {
    .name = "shoal._engine.Queue",
    .basicsize = sizeof(QueueObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = queue_slots,
};

static PyObject *configure_queue(PyObject *module, PyObject *args)
{
    module_state *state = module_get_state(module);
    PyObject *full, *empty;
    if (!PyArg_ParseTuple(args, "OO:configure_queue", &full, &empty))
        return NULL;
    Py_XSETREF(state->queue_full, Py_NewRef(full));
    Py_XSETREF(state->queue_empty, Py_NewRef(empty));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"configure_queue", configure_queue, METH_VARARGS,
     "configure_queue(full, empty)\n--\n\nThe exceptions queues raise."},
    {NULL, NULL, 0, NULL},
};

int queue_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->queue_type = PyType_FromModuleAndSpec(module, &queue_spec, NULL);
    if (state->queue_type == NULL || PyModule_AddObjectRef(module, "Queue", state->queue_type) != 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
