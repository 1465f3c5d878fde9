/* compute.c: dot_product() for anything that shows its memory. */
#include "module.h"

#include <string.h>

enum element { ELEMENT_OTHER, ELEMENT_DOUBLE, ELEMENT_FLOAT };

static enum element element_of(const Py_buffer *view)
{
    const char *format = view->format == NULL ? "B" : view->format;
    if (*format == '@' || *format == '=')
        format++;
    if (strcmp(format, "d") == 0)
        return ELEMENT_DOUBLE;
    if (strcmp(format, "f") == 0)
        return ELEMENT_FLOAT;
    return ELEMENT_OTHER;
}

/* A vector of doubles made of any sequence of real numbers: new array('d'). */
static PyObject *to_doubles(PyObject *object)
{
    PyObject *module = PyImport_ImportModule("array");
    if (module == NULL)
        return NULL;
    PyObject *array = PyObject_CallMethod(module, "array", "sO", "d", object);
    Py_DECREF(module);
    if (array == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "dot_product() takes vectors of real numbers, not %.200s",
                     Py_TYPE(object)->tp_name);
    }
    return array;
}

/* A contiguous view of a one-dimensional vector of double or float. `holder` keeps what had to be made. */
static int get_vector(PyObject *object, Py_buffer *view, PyObject **holder)
{
    *holder = NULL;
    if (PyObject_CheckBuffer(object) && PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_STRIDES) == 0) {
        if (view->ndim != 1) {
            PyErr_Format(PyExc_ValueError, "dot_product() takes vectors of one dimension, not of %d", view->ndim);
            PyBuffer_Release(view);
            return -1;
        }
        if (element_of(view) != ELEMENT_OTHER && PyBuffer_IsContiguous(view, 'C'))
            return 0;
        PyBuffer_Release(view);
    } else {
        PyErr_Clear();
    }
    *holder = to_doubles(object);
    if (*holder == NULL)
        return -1;
    return PyObject_GetBuffer(*holder, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS);
}

static PyObject *dot_product(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"a", "b", "threads", NULL};
    PyObject *first, *second, *threads_object = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|O:dot_product", names, &first, &second, &threads_object))
        return NULL;
    long threads = 0;
    if (threads_object != Py_None) {
        threads = PyLong_AsLong(threads_object);
        if (threads == -1 && PyErr_Occurred())
            return NULL;
        if (threads < 1)
            return PyErr_Format(PyExc_ValueError, "threads must be at least 1, not %ld", threads);
    }
    Py_buffer a, b;
    PyObject *made_a, *made_b, *result = NULL;
    if (get_vector(first, &a, &made_a) != 0)
        return NULL;
    if (get_vector(second, &b, &made_b) != 0)
        goto release_a;
    Py_ssize_t count = a.len / a.itemsize;
    if (count != b.len / b.itemsize) {
        PyErr_Format(PyExc_ValueError, "dot_product() of vectors of different lengths: %zd and %zd", count,
                     b.len / b.itemsize);
        goto release_b;
    }
    if (element_of(&a) != element_of(&b)) {
        /* One of each: the shorter type becomes the longer. */
        PyObject **made = element_of(&a) == ELEMENT_FLOAT ? &made_a : &made_b;
        Py_buffer *view = made == &made_a ? &a : &b;
        PyObject *doubles = to_doubles(made == &made_a ? first : second);
        if (doubles == NULL)
            goto release_b;
        PyBuffer_Release(view);
        Py_XSETREF(*made, doubles);
        if (PyObject_GetBuffer(doubles, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
            /* cannot fail for an array; but then there is nothing left to release in `view` */
            if (view == &a)
                PyBuffer_Release(&b);
            else
                PyBuffer_Release(&a);
            Py_XDECREF(made_a);
            Py_XDECREF(made_b);
            return NULL;
        }
        if (view->len / view->itemsize != count) {
            PyErr_SetString(PyExc_ValueError, "dot_product() of a vector that gives fewer or more numbers than it has");
            goto release_b;
        }
    }
    double sum = 0;
    int error;
    const bool is_double = element_of(&a) == ELEMENT_DOUBLE;
    Py_BEGIN_ALLOW_THREADS
    if (is_double)
        error = shoal_dot(a.buf, b.buf, (size_t)count, (uint32_t)threads, &sum);
    else
        error = shoal_dot_float(a.buf, b.buf, (size_t)count, (uint32_t)threads, &sum);
    Py_END_ALLOW_THREADS
    result = error != 0 ? module_raise(error, "cannot compute a dot product") : PyFloat_FromDouble(sum);
release_b:
    PyBuffer_Release(&b);
    Py_XDECREF(made_b);
release_a:
    PyBuffer_Release(&a);
    Py_XDECREF(made_a);
    return result;
}

static PyMethodDef functions[] = {
    {"dot_product", (PyCFunction)(void (*)(void))dot_product, METH_VARARGS | METH_KEYWORDS,
     "dot_product($module, a, b, threads=None)\n--\n\nThe dot product of two vectors of the same length, as a "
     "float.\n\n"
     "a, b: anything of one dimension that shows its memory as float64 or float32 (NumPy arrays, array.array), which "
     "is\n"
     "read where it lies; other real numbers are converted.\n"
     "threads: how many at the most; by default one a cpu, or SHOAL_NUM_THREADS.\n\n"
     "The sum is made in float64, pairwise over blocks, and does not depend on the number of threads.\n"
     "ValueError: different lengths, or not one dimension. TypeError: not real numbers."},
    {NULL, NULL, 0, NULL},
};

int compute_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
