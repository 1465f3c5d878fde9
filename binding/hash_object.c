/* hash_object.c: the encoding of what is neither plain data nor an array (hash.h).
 *
 * Types, built-in functions and modules go by their names, methods by function name, object and type, Python functions
 * by what a Python helper says of them (name, code, what they hold). Every other object goes by its reduction, the same
 * that pickling it would use: what makes it, from what, its state, its items. No pickle is written.
 */
#include "hash.h"

#include <string.h>

static int hash_name(struct hasher *hasher, struct sink *sink, PyObject *object, const char *name_attribute)
{
    PyObject *module = PyObject_GetAttrString(object, "__module__");
    if (module == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return -1;
        PyErr_Clear();
        module = Py_NewRef(Py_None);
    }
    PyObject *name = PyObject_GetAttrString(object, name_attribute);
    int result = name == NULL || sink_tag(sink, 'g') != 0 ? -1 : hash_value(hasher, sink, module);
    if (result == 0)
        result = hash_value(hasher, sink, name);
    Py_DECREF(module);
    Py_XDECREF(name);
    return result;
}

/* The name, the object it is bound to, and that one's type: two methods are the same if these are. */
static int hash_method(struct hasher *hasher, struct sink *sink, PyObject *method, PyObject *self)
{
    PyObject *name = PyObject_GetAttrString(method, "__name__");
    int result = name == NULL || sink_tag(sink, 'o') != 0 ? -1 : hash_value(hasher, sink, name);
    if (result == 0)
        result = hash_held(hasher, sink, self);
    if (result == 0)
        result = hash_held(hasher, sink, (PyObject *)Py_TYPE(self));
    Py_XDECREF(name);
    return result;
}

static int hash_module(struct hasher *hasher, struct sink *sink, PyObject *module)
{
    PyObject *name = PyModule_GetNameObject(module);
    int result = name == NULL || sink_tag(sink, 'p') != 0 ? -1 : hash_value(hasher, sink, name);
    Py_XDECREF(name);
    return result;
}

static int hash_function(struct hasher *hasher, struct sink *sink, PyObject *function)
{
    if (hasher->state->describe_function == NULL)
        return hash_name(hasher, sink, function, "__qualname__");
    if (hasher->functions == HASH_BY_ADDRESS)
        return sink_tag(sink, 'U') != 0 ? -1 : sink_number(sink, (uint64_t)(uintptr_t)function);
    PyObject *description = PyObject_CallFunction(hasher->state->describe_function, "OO", function,
                                                  hasher->functions == HASH_BY_CONTENTS ? Py_True : Py_False);
    if (description == NULL)
        return -1;
    int result = sink_tag(sink, 'u') != 0 ? -1 : hash_value(hasher, sink, description);
    Py_DECREF(description);
    return result;
}

/* What pickling would ask for. NULL with an exception set. */
static PyObject *reduce(module_state *state, PyObject *object)
{
    if (state->reducers == NULL) {
        PyObject *copyreg = PyImport_ImportModule("copyreg");
        state->reducers = copyreg != NULL ? PyObject_GetAttrString(copyreg, "dispatch_table") : NULL;
        Py_XDECREF(copyreg);
        if (state->reducers == NULL)
            return NULL;
    }
    PyObject *reducer =
        PyDict_Check(state->reducers) ? PyDict_GetItemWithError(state->reducers, (PyObject *)Py_TYPE(object)) : NULL;
    if (reducer != NULL)
        return PyObject_CallOneArg(reducer, object);
    if (PyErr_Occurred())
        return NULL;
    return PyObject_CallMethod(object, "__reduce_ex__", "i", 4);
}

/* All that an iterator gives, as a list; None stays. */
static PyObject *drain(PyObject *iterator)
{
    return iterator == Py_None ? Py_NewRef(Py_None) : PySequence_List(iterator);
}

/* The pairs of a mapping that is not a plain dict, without regard to their order. */
static int hash_pairs(struct hasher *hasher, struct sink *sink, PyObject *pairs)
{
    Py_ssize_t count = PyList_GET_SIZE(pairs);
    uint8_t(*digests)[SHOAL_DIGEST_SIZE] = PyMem_Malloc((size_t)(count != 0 ? count : 1) * SHOAL_DIGEST_SIZE);
    if (digests == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < count; i++) {
        struct sink own;
        sink_begin(&own);
        result = hash_held(hasher, &own, PyList_GET_ITEM(pairs, i));
        if (result == 0)
            result = sink_digest(&own, digests[i]);
        sink_end(&own);
    }
    if (result == 0)
        result = hash_sorted(sink, 'k', digests, (size_t)count);
    PyMem_Free(digests);
    return result;
}

static int hash_reduction(struct hasher *hasher, struct sink *sink, PyObject *reduction)
{
    Py_ssize_t size = PyTuple_GET_SIZE(reduction);
    PyObject *parts[6] = {Py_None, Py_None, Py_None, Py_None, Py_None, Py_None};
    for (Py_ssize_t i = 0; i < size && i < 6; i++)
        parts[i] = PyTuple_GET_ITEM(reduction, i);

    /* What makes the object goes by name: how it does so is not the object's. */
    int result = PyFunction_Check(parts[0]) ? hash_name(hasher, sink, parts[0], "__qualname__")
                                            : hash_held(hasher, sink, parts[0]);
    if (result == 0)
        result = hash_held(hasher, sink, parts[1]);
    if (result == 0)
        result = hash_held(hasher, sink, parts[2]);
    if (result != 0)
        return result;
    PyObject *items = drain(parts[3]);
    PyObject *pairs = items != NULL ? drain(parts[4]) : NULL;
    result = pairs == NULL ? -1 : hash_value(hasher, sink, items);
    if (result == 0 && pairs != Py_None)
        result = hash_pairs(hasher, sink, pairs);
    if (result == 0 && parts[5] != Py_None)
        result = hash_held(hasher, sink, parts[5]);
    Py_XDECREF(items);
    Py_XDECREF(pairs);
    return result;
}

/* The value of an attribute; None where the object has none. */
static PyObject *attribute_or_none(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name);
    if (value != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError))
        return value;
    PyErr_Clear();
    return Py_NewRef(Py_None);
}

/* What reduces to the name of a global: the same name is another object in another module. A wrapper of functools has
 * the name of what it wraps, also where that is a lambda and its name says nothing. */
static int hash_global(struct hasher *hasher, struct sink *sink, PyObject *object, PyObject *name)
{
    PyObject *module = attribute_or_none(object, "__module__");
    PyObject *wrapped = module != NULL ? attribute_or_none(object, "__wrapped__") : NULL;
    int result =
        wrapped == NULL || sink_tag(sink, 'g') != 0 ? -1 : hash_held(hasher, sink, (PyObject *)Py_TYPE(object));
    if (result == 0)
        result = hash_value(hasher, sink, name);
    if (result == 0)
        result = hash_value(hasher, sink, module);
    if (result == 0)
        result = hash_held(hasher, sink, wrapped);
    Py_XDECREF(module);
    Py_XDECREF(wrapped);
    return result;
}

/* What a function or class means beyond its name, where somebody asks for that; classes built in mean nothing more. */
static int hash_met(struct hasher *hasher, struct sink *sink, PyObject *object)
{
    if (hasher->meet == NULL)
        return 0;
    PyObject *met = PyType_Check(object) || PyFunction_Check(object) ? object : (PyObject *)Py_TYPE(object);
    if (PyType_Check(met) && !PyType_HasFeature((PyTypeObject *)met, Py_TPFLAGS_HEAPTYPE))
        return 0;
    uint8_t digest[SHOAL_DIGEST_SIZE];
    Py_INCREF(met);
    int result = hasher->meet(hasher->context, met, digest);
    Py_DECREF(met);
    if (result <= 0)
        return result;
    return sink_tag(sink, 'q') != 0 ? -1 : sink_add(sink, digest, sizeof digest);
}

int hash_by_reduction(struct hasher *hasher, struct sink *sink, PyObject *object)
{
    if (hash_met(hasher, sink, object) != 0)
        return -1;
    if (PyType_Check(object))
        return hash_name(hasher, sink, object, "__qualname__");
    if (PyFunction_Check(object))
        return hash_function(hasher, sink, object);
    if (PyMethod_Check(object))
        return hash_method(hasher, sink, object, PyMethod_GET_SELF(object));
    if (PyModule_Check(object))
        return hash_module(hasher, sink, object);
    if (PyCFunction_Check(object)) {
        PyObject *self = PyCFunction_GET_SELF(object);
        return self == NULL || PyModule_Check(self) ? hash_name(hasher, sink, object, "__qualname__")
                                                    : hash_method(hasher, sink, object, self);
    }

    /* A masked array gets its fill value when that is first asked for, as by pickling it: equal ones may have it or
     * not. */
    for (PyTypeObject *type = Py_TYPE(object); type != NULL; type = type->tp_base) {
        if (strcmp(type->tp_name, "MaskedArray") == 0) {
            Py_XDECREF(PyObject_GetAttrString(object, "fill_value"));
            PyErr_Clear();
            break;
        }
    }
    PyObject *reduction = reduce(hasher->state, object);
    if (reduction == NULL)
        return -1;
    int result;
    if (PyUnicode_Check(reduction)) {
        result = hash_global(hasher, sink, object, reduction);
    } else if (PyTuple_Check(reduction) && PyTuple_GET_SIZE(reduction) >= 2 && PyTuple_GET_SIZE(reduction) <= 6) {
        result = hash_reduction(hasher, sink, reduction);
    } else {
        PyErr_Format(PyExc_TypeError,
                     "cannot hash an object of type %.200s: what it reduces to is neither a name nor a "
                     "tuple of two to six",
                     Py_TYPE(object)->tp_name);
        result = -1;
    }
    Py_DECREF(reduction);
    return result;
}
