/* module.c: shoal._engine as a module: its state, its errors, and the list of what the other files add.
 * Multi-phase initialisation and heap types only, so that nothing is global to the process.
 */
#include "module.h"

#include <errno.h>
#include <math.h>

PyObject *module_raise(int error, const char *what)
{
    if (error == -ENOMEM)
        return PyErr_Format(PyExc_MemoryError, "%s: %s", what, shoal_error_text(error));
    /* The engine's own codes have no errno value; OSError with a number makes the sub-class (FileNotFoundError, …). */
    PyObject *arguments =
        error > SHOAL_EWORKERDIED
            ? Py_BuildValue("(iN)", -error, PyUnicode_FromFormat("%s: %s", what, shoal_error_text(error)))
            : Py_BuildValue("(N)", PyUnicode_FromFormat("%s: %s", what, shoal_error_text(error)));
    if (arguments == NULL)
        return NULL;
    /* Made here, not when it is caught: CPython 3.10 would match it as an OSError, not as the sub-class that it is. */
    PyObject *exception = PyObject_CallObject(PyExc_OSError, arguments);
    Py_DECREF(arguments);
    if (exception == NULL)
        return NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_DECREF(exception);
    return NULL;
}

PyObject *module_take_raised(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL && value != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

int module_timeout(PyObject *seconds, int64_t *out)
{
    if (seconds == Py_None) {
        *out = SHOAL_FOREVER;
        return 0;
    }
    double value = PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(value)) {
        PyErr_SetString(PyExc_ValueError, "a timeout cannot be NaN");
        return -1;
    }
    if (value <= 0)
        *out = 0;
    else if (value >= 9e9)
        *out = SHOAL_FOREVER;
    else
        *out = (int64_t)(value * 1e9);
    return 0;
}

static int module_exec(PyObject *module)
{
    if (PyModule_AddStringConstant(module, "__version__", SHOAL_VERSION) != 0)
        return -1;
    static int (*const add[])(PyObject *) = {
        codec_add, pool_add,      worker_add,    queue_add, sync_add,    group_add,   wanted_lock_add,
        lock_add,  semaphore_add, condition_add, event_add, barrier_add, guarded_add, process_add,
        store_add, compute_add,   delayed_add,   files_add, tasks_add,
    };
    for (size_t i = 0; i < sizeof add / sizeof add[0]; i++) {
        if (add[i](module) != 0)
            return -1;
    }
    return 0;
}

/* Each object that the state holds. */
#define FOR_EACH_OBJECT(state, DO)                                                                                     \
    do {                                                                                                               \
        DO((state)->pickle_dumps);                                                                                     \
        DO((state)->pickle_dumps_for_foreign_main);                                                                    \
        DO((state)->pickle_loads);                                                                                     \
        DO((state)->worker_died);                                                                                      \
        DO((state)->remote_error);                                                                                     \
        DO((state)->task_timeout);                                                                                     \
        DO((state)->unsendable);                                                                                       \
        DO((state)->queue_full);                                                                                       \
        DO((state)->queue_empty);                                                                                      \
        DO((state)->owner_died);                                                                                       \
        DO((state)->barrier_broken);                                                                                   \
        DO((state)->lock_type);                                                                                        \
        DO((state)->semaphore_type);                                                                                   \
        DO((state)->condition_type);                                                                                   \
        DO((state)->event_type);                                                                                       \
        DO((state)->barrier_type);                                                                                     \
        DO((state)->lock_part_type);                                                                                   \
        DO((state)->group_type);                                                                                       \
        DO((state)->guarded_type);                                                                                     \
        DO((state)->loan_type);                                                                                        \
        DO((state)->pool_type);                                                                                        \
        DO((state)->job_type);                                                                                         \
        DO((state)->worker_type);                                                                                      \
        DO((state)->queue_type);                                                                                       \
        DO((state)->process_type);                                                                                     \
        DO((state)->zygote_type);                                                                                      \
        DO((state)->delayed_type);                                                                                     \
        DO((state)->store_type);                                                                                       \
        DO((state)->part_type);                                                                                        \
        DO((state)->memo_type);                                                                                        \
        DO((state)->describe_function);                                                                                \
        DO((state)->reducers);                                                                                         \
        DO((state)->numpy_array);                                                                                      \
        DO((state)->numpy_generic);                                                                                    \
        DO((state)->numpy_memmap);                                                                                     \
        DO((state)->numpy_dtype);                                                                                      \
    } while (0)

module_state *module_find_state(PyObject *self)
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
    PyErr_SetString(PyExc_SystemError, "an object without its module");
    return NULL;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = module_get_state(module);
    FOR_EACH_OBJECT(state, Py_VISIT);
    return 0;
}

static int module_clear(PyObject *module)
{
    module_state *state = module_get_state(module);
    FOR_EACH_OBJECT(state, Py_CLEAR);
    return 0;
}

static void module_free(void *module)
{
    (void)module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

PyModuleDef engine_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shoal._engine",
    .m_doc = "Shoal's C engine for CPython. For use by the shoal package alone.",
    .m_size = sizeof(module_state),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__engine(void);

PyMODINIT_FUNC PyInit__engine(void)
{
    return PyModuleDef_Init(&engine_module);
}
