/* interrupt_at.c: Ctrl-C in the middle of any instruction of Python's, for interrupted.py.
 *
 * A signal's handler runs where the interpreter looks for signals, which is between some instructions only. A trace
 * function in Python would run it in itself; this one, in C, only sends the signal when its turn has come, and the
 * interpreter takes it where it would have taken one from outside. As raise() sends it to this thread, a mask holds it
 * off as it should.
 *
 * Compiled into a library that interrupted.py loads; not part of the project's own build.
 */
#include <Python.h>

#include <frameobject.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static long count, place;
static pid_t owner;
static char own_file[4096]; /* whose instructions do not count: the program that is interrupted is not the test's */

static int trace(PyObject *unused, PyFrameObject *frame, int what, PyObject *argument)
{
    if (getpid() != owner) { /* a child of fork has it, too */
        PyEval_SetTrace(NULL, NULL);
        return 0;
    }
    if (what == PyTrace_CALL) {
        if (PyObject_SetAttrString((PyObject *)frame, "f_trace_opcodes", Py_True) != 0 ||
            PyObject_SetAttrString((PyObject *)frame, "f_trace_lines", Py_False) != 0)
            return -1;
    } else if (what == PyTrace_OPCODE) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        const char *file = PyUnicode_AsUTF8(code->co_filename);
        const int counts = file != NULL && strcmp(file, own_file) != 0 && strstr(file, "importlib") == NULL;
        Py_DECREF(code);
        if (counts && count++ == place)
            (void)raise(SIGINT);
    }
    return 0;
}

/* From now on count this thread's instructions but for those of `file`, and send SIGINT in the one that is number
 * `where`; -1: in none. */
void interrupt_at(long where, const char *file)
{
    owner = getpid();
    place = where;
    count = 0;
    (void)strncpy(own_file, file, sizeof own_file - 1);
    /* CPython 3.12 tells a trace function of instructions if some frame wanted them before it was set. */
    if (PyObject_SetAttrString((PyObject *)PyEval_GetFrame(), "f_trace_opcodes", Py_True) != 0)
        PyErr_Clear(); /* then there are no places, and the program says so */
    PyEval_SetTrace(trace, NULL);
}

/* How many there were. */
long interrupt_end(void)
{
    PyEval_SetTrace(NULL, NULL);
    return count;
}
