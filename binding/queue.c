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

static PyObject *queue_open(PyObject *object, PyObject *args)
{
    QueueObject *self = (QueueObject *)object;
    Py_ssize_t capacity = 0;
    int fds[SHOAL_QUEUE_FDS] = {-1, -1, -1};
    if (!PyArg_ParseTuple(args, "n|iii:_open", &capacity, fds, fds + 1, fds + 2))
        return NULL;
    if (self->queue != NULL) {
        PyErr_SetString(PyExc_ValueError, "the queue is open");
        return NULL;
    }
    self->state = module_find_state(object);
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

/* block and timeout, by position from `first` on or by name, to nanoseconds; before them, with `first` 1, an object of
 * this name. */
static int parse_waiting(PyObject *const *args, Py_ssize_t count, PyObject *names, Py_ssize_t first,
                         const char *object_name, int64_t *timeout, PyObject **object)
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
        } else if (first == 1 && PyUnicode_CompareWithASCIIString(name, object_name) == 0) {
            *object = args[count + i];
        } else {
            PyErr_Format(PyExc_TypeError, "got an unexpected keyword argument '%U'", name);
            return -1;
        }
    }
    if (first == 1 && *object == NULL) {
        PyErr_Format(PyExc_TypeError, "missing 1 required positional argument: '%s'", object_name);
        return -1;
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

/* Put one object. 0; 1: there was no room in time; -1: an exception. */
static int put_object(QueueObject *self, PyObject *item_object, int64_t deadline)
{
    uint32_t owner;
    int error = shoal_queue_owner(self->queue, &owner);
    if (error != 0) {
        module_raise(error, "cannot use the queue");
        return -1;
    }
    struct codec_writer writer;
    codec_writer_begin(&writer, shoal_queue_heap(self->queue), owner);
    if (codec_encode(self->state, &writer, item_object) != 0) {
        codec_writer_end(&writer, false);
        return -1;
    }
    const shoal_item item = codec_item(&writer);
    error = shoal_queue_put_item(self->queue, &item, 0);
    if (error == -ETIMEDOUT && deadline > 0) {
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
            return -1;
        }
    }
    codec_writer_end(&writer, error == 0);
    if (error == 0)
        return 0;
    if (error == -ETIMEDOUT || error == -EINTR)
        return 1;
    module_raise(error, "cannot put an item");
    return -1;
}

/* Take one object. 0; 1: none came in time; -1: an exception. */
static int get_object(QueueObject *self, int64_t deadline, PyObject **out)
{
    shoal_received received;
    int error = shoal_queue_get_item(self->queue, 0, &received);
    if (error == -ETIMEDOUT && deadline > 0) {
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
            return -1;
    }
    if (error == -ETIMEDOUT || error == -EINTR)
        return 1;
    if (error != 0) {
        module_raise(error, "cannot get an item");
        return -1;
    }
    *out = codec_decode(self->state, shoal_queue_heap(self->queue), &received.item, CODEC_VIEW);
    shoal_queue_release(self->queue, &received);
    return *out == NULL ? -1 : 0;
}

static PyObject *queue_put(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    QueueObject *self = (QueueObject *)object;
    int64_t timeout;
    PyObject *item = NULL;
    if (check_open(self) != 0 || parse_waiting(args, count, names, 1, "obj", &timeout, &item) != 0)
        return NULL;
    switch (put_object(self, item, timeout > 0 ? deadline_after(timeout) : 0)) {
    case 0:
        Py_RETURN_NONE;
    case 1:
        PyErr_SetNone(self->state->queue_full);
        return NULL;
    default:
        return NULL;
    }
}

static PyObject *queue_put_many(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    QueueObject *self = (QueueObject *)object;
    int64_t timeout;
    PyObject *items = NULL, *item;
    if (check_open(self) != 0 || parse_waiting(args, count, names, 1, "objs", &timeout, &items) != 0)
        return NULL;
    PyObject *iterator = PyObject_GetIter(items);
    if (iterator == NULL)
        return NULL;
    const int64_t deadline = timeout > 0 ? deadline_after(timeout) : 0;
    Py_ssize_t put = 0;
    int result = 0;
    while (result == 0 && (item = PyIter_Next(iterator)) != NULL) {
        result = check_open(self) != 0 ? -1 : put_object(self, item, deadline); /* the iterator may have closed it */
        put += result == 0;
        Py_DECREF(item);
    }
    Py_DECREF(iterator);
    if (result < 0 || PyErr_Occurred())
        return NULL;
    if (result > 0) {
        /* The caller learns from the exception where to go on. */
        PyObject *number = PyLong_FromSsize_t(put);
        if (number != NULL)
            PyErr_SetObject(self->state->queue_full, number);
        Py_XDECREF(number);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *queue_get(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    QueueObject *self = (QueueObject *)object;
    int64_t timeout;
    PyObject *result = NULL;
    if (check_open(self) != 0 || parse_waiting(args, count, names, 0, NULL, &timeout, NULL) != 0)
        return NULL;
    if (get_object(self, timeout > 0 ? deadline_after(timeout) : 0, &result) == 1)
        PyErr_SetNone(self->state->queue_empty);
    return result;
}

static PyObject *queue_get_many(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    QueueObject *self = (QueueObject *)object;
    int64_t timeout;
    PyObject *limit = NULL, *item = NULL;
    if (check_open(self) != 0 || parse_waiting(args, count, names, 1, "most", &timeout, &limit) != 0)
        return NULL;
    const Py_ssize_t most = PyNumber_AsSsize_t(limit, PyExc_OverflowError);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (most < 1) {
        PyErr_SetString(PyExc_ValueError, "get_many() takes at least 1 object");
        return NULL;
    }
    PyObject *items = PyList_New(0);
    if (items == NULL)
        return NULL;
    int64_t deadline = timeout > 0 ? deadline_after(timeout) : 0;
    int result;
    while ((result = get_object(self, deadline, &item)) == 0) {
        int error = PyList_Append(items, item);
        Py_DECREF(item);
        if (error != 0)
            goto fail;
        if (PyList_GET_SIZE(items) >= most)
            break;
        deadline = 0; /* it waits for the first only */
    }
    if (result < 0)
        goto fail;
    if (PyList_GET_SIZE(items) > 0)
        return items;
    PyErr_SetNone(self->state->queue_empty);
fail:
    Py_DECREF(items);
    return NULL;
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
    int fds[SHOAL_QUEUE_FDS];
    shoal_queue_fds(queue->queue, fds);
    return Py_BuildValue("(iii)", fds[0], fds[1], fds[2]);
}

static PyObject *queue_watch(PyObject *self, PyObject *unused)
{
    QueueObject *queue = (QueueObject *)self;
    if (check_open(queue) != 0)
        return NULL;
    return PyLong_FromLong(shoal_queue_watch(queue->queue));
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
    {"_fds", queue_fds, METH_NOARGS, "_fds($self)\n--\n\nIts descriptors, for a process that does not inherit it."},
    {"_watch", queue_watch, METH_NOARGS,
     "_watch($self)\n--\n\nA descriptor, the queue's own, that is readable while something is in the queue."},
    {"put", (PyCFunction)(void (*)(void))queue_put, METH_FASTCALL | METH_KEYWORDS,
     "put($self, obj, block=True, timeout=None)\n--\n\nPut an object. When this returns the object is there, whatever "
     "becomes of this "
     "process.\n\nRaises queue.Full if there is no room (after `timeout` seconds, or at once if not `block`)."},
    {"get", (PyCFunction)(void (*)(void))queue_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, block=True, timeout=None)\n--\n\nTake the first object.\n\nRaises queue.Empty if there is none (after "
     "`timeout` "
     "seconds, or at once if not `block`)."},
    {"put_many", (PyCFunction)(void (*)(void))queue_put_many, METH_FASTCALL | METH_KEYWORDS,
     "put_many($self, objs, block=True, timeout=None)\n--\n\nPut each of these objects, in their order.\n\nWaits "
     "for room as put() does, `timeout` seconds in all. Raises queue.Full if there is no room; the exception's "
     "argument says how many were put. What pickling one of them raises ends it likewise: those before it were put."},
    {"get_many", (PyCFunction)(void (*)(void))queue_get_many, METH_FASTCALL | METH_KEYWORDS,
     "get_many($self, most, block=True, timeout=None)\n--\n\nTake the first object as get() does, and what is there "
     "behind it, up to `most` in all: a list.\n\nRaises queue.Empty if there is none (after `timeout` seconds, or at "
     "once if not `block`). Where one of them cannot be unpickled that is raised, and those "
     "before it are lost. ValueError: `most` is not at least 1."},
    {"qsize", queue_size, METH_NOARGS, "qsize($self)\n--\n\nHow many objects are in the queue."},
    {"close", queue_close, METH_NOARGS, "close($self)\n--\n\nThis process uses the queue no more. What was put stays."},
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
