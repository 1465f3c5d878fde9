/* memo_watch.c: whether what a cached function's results rest on is as it was when it was described.
 *
 * It is looked at in each call. An item to be watched is a tuple:
 *
 *     (dict or class, name, object)                   a global, or what is in a class by that name, is still that
 *                                                     object; `nothing`: not there
 *     (cell, object)                                  a closure's variable, likewise
 *     (function, code, defaults, keyword defaults)    a function that is called
 *     (object, digest)                                the contents of a list, an array ...; the same functions in it
 *
 * Classes and functions among a call's arguments are described by _meet(object) -> (digest or None, items to be
 * watched), once, and again when one of the items changed.
 */
#include "memo.h"

#include <string.h>

static const struct hash_options contents = {.functions = HASH_BY_ADDRESS};

#define MET_MOST 256 /* beyond it all are forgotten: functions that are made for each call would pile up */

/* What is in a class itself by a name, before a descriptor makes something else of it: a new reference, or NULL, with
 * or without an exception set. */
static PyObject *own_attribute(PyTypeObject *type, PyObject *name)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *dict = PyType_GetDict(type);
#else
    PyObject *dict = Py_XNewRef(type->tp_dict);
#endif
    PyObject *value = dict != NULL ? Py_XNewRef(PyDict_GetItemWithError(dict, name)) : NULL;
    Py_XDECREF(dict);
    return value;
}

static bool is_as_watched(MemoObject *self, PyObject *item)
{
    switch (PyTuple_Check(item) ? PyTuple_GET_SIZE(item) : 0) {
    case 3: {
        PyObject *holder = PyTuple_GET_ITEM(item, 0), *name = PyTuple_GET_ITEM(item, 1), *now = NULL;
        if (PyDict_Check(holder))
            now = Py_XNewRef(PyDict_GetItemWithError(holder, name));
        else if (PyType_Check(holder))
            now = own_attribute((PyTypeObject *)holder, name);
        if (now == NULL)
            PyErr_Clear();
        bool same = (now != NULL ? now : self->nothing) == PyTuple_GET_ITEM(item, 2);
        Py_XDECREF(now);
        return same;
    }
    case 4: {
        PyObject *function = PyTuple_GET_ITEM(item, 0);
        if (!PyFunction_Check(function))
            return false;
        PyObject *defaults = PyFunction_GET_DEFAULTS(function),
                 *keyword_defaults = PyFunction_GET_KW_DEFAULTS(function);
        return PyFunction_GET_CODE(function) == PyTuple_GET_ITEM(item, 1) &&
               (defaults != NULL ? defaults : Py_None) == PyTuple_GET_ITEM(item, 2) &&
               (keyword_defaults != NULL ? keyword_defaults : Py_None) == PyTuple_GET_ITEM(item, 3);
    }
    case 2: {
        if (PyCell_Check(PyTuple_GET_ITEM(item, 0))) {
            PyObject *content = PyCell_GET(PyTuple_GET_ITEM(item, 0));
            return (content != NULL ? content : self->nothing) == PyTuple_GET_ITEM(item, 1);
        }
        uint8_t digest[SHOAL_DIGEST_SIZE];
        PyObject *bytes = PyTuple_GET_ITEM(item, 1);
        if (!PyBytes_Check(bytes) || PyBytes_GET_SIZE(bytes) != sizeof digest)
            return false;
        if (hash_digest_with(memo_state(self), PyTuple_GET_ITEM(item, 0), &contents, digest) != 0) {
            PyErr_Clear(); /* it holds something new that cannot be hashed: the function is looked at again */
            return false;
        }
        return memcmp(digest, PyBytes_AS_STRING(bytes), sizeof digest) == 0;
    }
    default:
        return false;
    }
}

static bool are_as_watched(MemoObject *self, PyObject *watch)
{
    bool same = true;
    Py_INCREF(watch); /* hashing may run Python code, which may describe us anew */
    for (Py_ssize_t i = 0; same && i < PyTuple_GET_SIZE(watch); i++)
        same = is_as_watched(self, PyTuple_GET_ITEM(watch, i));
    Py_DECREF(watch);
    return same;
}

bool memo_is_current(MemoObject *self)
{
    if (self->identity == NULL)
        return false;
    PyObject *function = self->function;
    if (self->code != NULL &&
        (PyFunction_GET_CODE(function) != self->code || PyFunction_GET_DEFAULTS(function) != self->defaults ||
         PyFunction_GET_KW_DEFAULTS(function) != self->keyword_defaults))
        return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->cells); i++) {
        PyObject *content = PyCell_GET(PyTuple_GET_ITEM(self->cells, i));
        if ((content != NULL ? content : self->nothing) != PyTuple_GET_ITEM(self->contents, i))
            return false;
    }
    return are_as_watched(self, self->watch);
}

/* The tuple of a class or function that was met: a reference of the caller's, or NULL with an exception set. */
static PyObject *describe_met(MemoObject *self, PyObject *object)
{
    PyObject *key = PyLong_FromVoidPtr(object), *known = NULL, *met = Py_XNewRef(self->met);
    if (key == NULL || met == NULL)
        goto done;
    known = Py_XNewRef(PyDict_GetItemWithError(met, key));
    if (known != NULL && are_as_watched(self, PyTuple_GET_ITEM(known, 2)))
        goto done;
    Py_CLEAR(known);
    if (PyErr_Occurred())
        goto done;
    PyObject *digest, *watch, *found = PyObject_CallMethod((PyObject *)self, "_meet", "O", object);
    if (found != NULL && PyArg_ParseTuple(found, "OO!:_meet", &digest, &PyTuple_Type, &watch))
        known = PyTuple_Pack(3, object, digest, watch); /* holds the object: its address stands for it */
    Py_XDECREF(found);
    if (PyDict_GET_SIZE(met) >= MET_MOST)
        PyDict_Clear(met);
    if (known != NULL && PyDict_SetItem(met, key, known) != 0)
        Py_CLEAR(known);

done:
    Py_XDECREF(key);
    Py_XDECREF(met);
    return known;
}

int memo_meet(void *context, PyObject *object, uint8_t digest[SHOAL_DIGEST_SIZE])
{
    struct memo_meeting *meeting = context;
    size_t place = ((uintptr_t)object >> 5) % (sizeof meeting->recent / sizeof meeting->recent[0]);
    if (meeting->recent[place].object != object) {
        PyObject *known = describe_met(meeting->memo, object);
        if (known == NULL)
            return PyErr_Occurred() ? -1 : 0;
        PyObject *bytes = PyTuple_GET_ITEM(known, 1);
        bool counts = PyBytes_Check(bytes) && PyBytes_GET_SIZE(bytes) == SHOAL_DIGEST_SIZE;
        if (counts)
            memcpy(meeting->recent[place].digest, PyBytes_AS_STRING(bytes), SHOAL_DIGEST_SIZE);
        meeting->recent[place].counts = counts;
        Py_DECREF(known);
        Py_XSETREF(meeting->recent[place].object, Py_NewRef(object));
    }
    if (meeting->recent[place].counts)
        memcpy(digest, meeting->recent[place].digest, SHOAL_DIGEST_SIZE);
    return meeting->recent[place].counts;
}

void memo_meeting_end(struct memo_meeting *meeting)
{
    for (size_t i = 0; i < sizeof meeting->recent / sizeof meeting->recent[0]; i++)
        Py_CLEAR(meeting->recent[i].object);
}
