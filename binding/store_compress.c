/* store_compress.c: the engine's compression, for files that `dump` writes and `load` reads.
 *
 * An expander is kept in a capsule: Python only hands it back.
 */
#include "store.h"

#define EXPANDER "shoal._engine.expander"
#define EXPAND_FIRST ((size_t)64 << 10)
#define EXPAND_MOST ((size_t)1 << 20) /* bytes that one call makes */

static PyObject *compress(PyObject *module, PyObject *args)
{
    unsigned int method;
    int level;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "Iiy*:compress", &method, &level, &data))
        return NULL;
    size_t capacity = shoal_compress_bound(method, (size_t)data.len), made = 0;
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)capacity);
    if (result != NULL) {
        int error;
        char *out = PyBytes_AS_STRING(result);
        Py_BEGIN_ALLOW_THREADS
        error = shoal_compress(method, level, data.buf, (size_t)data.len, out, capacity, &made);
        Py_END_ALLOW_THREADS
        if (error != 0) {
            Py_CLEAR(result);
            module_raise(error, "compressing");
        } else {
            (void)_PyBytes_Resize(&result, (Py_ssize_t)made);
        }
    }
    PyBuffer_Release(&data);
    return result;
}

static void free_expander(PyObject *capsule)
{
    shoal_expander_close(PyCapsule_GetPointer(capsule, EXPANDER));
}

static PyObject *expander(PyObject *module, PyObject *number)
{
    shoal_expander *made;
    unsigned long method = PyLong_AsUnsignedLong(number);
    if (method == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    int error = shoal_expander_create((uint32_t)method, &made);
    if (error != 0)
        return module_raise(error, "expanding");
    PyObject *capsule = PyCapsule_New(made, EXPANDER, free_expander);
    if (capsule == NULL)
        shoal_expander_close(made);
    return capsule;
}

static PyObject *expand(PyObject *module, PyObject *args)
{
    PyObject *capsule;
    Py_buffer data;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(args, "Oy*n:expand", &capsule, &data, &start))
        return NULL;
    PyObject *result = NULL, *bytes = NULL;
    shoal_expander *own = PyCapsule_GetPointer(capsule, EXPANDER);
    if (own == NULL)
        goto done;
    if (start < 0 || start > data.len) {
        PyErr_SetString(PyExc_ValueError, "expand: a place outside of the data");
        goto done;
    }
    size_t left = (size_t)(data.len - start), used = 0, made = 0;
    size_t capacity = left < EXPAND_FIRST / 4 ? EXPAND_FIRST : EXPAND_MOST;
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)capacity);
    if (bytes == NULL)
        goto done;
    int error, ended = 0;
    char *out = PyBytes_AS_STRING(bytes);
    Py_BEGIN_ALLOW_THREADS
    error = shoal_expander_run(own, (const char *)data.buf + start, left, &used, out, capacity, &made, &ended);
    Py_END_ALLOW_THREADS
    if (error != 0)
        module_raise(error, "expanding compressed data");
    else if (_PyBytes_Resize(&bytes, (Py_ssize_t)made) == 0)
        result = Py_BuildValue("(OnO)", bytes, start + (Py_ssize_t)used, ended ? Py_True : Py_False);

done:
    Py_XDECREF(bytes);
    PyBuffer_Release(&data);
    return result;
}

static PyMethodDef functions[] = {
    {"compress", compress, METH_VARARGS, "compress(method, level, data)\n--\n\nOne frame of the method's format."},
    {"expander", expander, METH_O, "expander(method)\n--\n\nWhat expand needs to know from one piece to the next."},
    {"expand", expand, METH_VARARGS,
     "expand(expander, data, start)\n--\n\nSome of the bytes, where to go on in data, and whether a frame ended "
     "there."},
    {NULL, NULL, 0, NULL},
};

int compress_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
