/* memo.h: what a cached function knows of itself; shared by memo.c and memo_watch.c. */
#ifndef SHOAL_BINDING_MEMO_H
#define SHOAL_BINDING_MEMO_H

#include "hash.h"
#include "store.h"

typedef struct {
    PyObject_HEAD
    PyObject *store; /* StoreObject */
    shoal_folder *folder;
    PyObject *loads; /* pickle.loads */
    /* what was described; NULL before */
    PyObject *function;                           /* a Python function to be watched, or None */
    PyObject *code, *defaults, *keyword_defaults; /* as they were; NULL where it has none */
    PyObject *cells, *contents;                   /* tuples: closure cells that count, and what was in them */
    PyObject *watch;                              /* tuple: what else must be as it was (is_as_watched) */
    PyObject *identity;                           /* bytes: part of every key */
    PyObject *names;                              /* tuple of parameters, positional ones first */
    PyObject *default_values;                     /* tuple, as long; `nothing` where there is none */
    PyObject *nothing;
    PyObject *ignored;  /* bytes, one a parameter, then one for *args and one for **kwargs: 1 is ignored */
    PyObject *leading;  /* tuple: arguments before the call's (self, partial's) */
    PyObject *keywords; /* dict: keywords below the call's (partial's) */
    PyObject *met;      /* dict: address of a class or function -> (it, digest, what to watch); NULL: not followed */
    Py_ssize_t positional_only, positional;
    bool takes_args, takes_keywords, coerce_mmap, fully, read_only;
} MemoObject;

/* memo.c: the module's state; the object's type is a sub-class, made in Python. */
module_state *memo_state(MemoObject *self);

/* memo_watch.c: whether the function is still what was described. Runs Python code where contents are hashed. */
bool memo_is_current(MemoObject *self);

/* What was met in the arguments of one call: a class with thousands of objects there is looked at once. */
struct memo_meeting {
    MemoObject *memo;
    struct {
        PyObject *object; /* held, so that its address stays its own; NULL: free */
        bool counts;
        uint8_t digest[SHOAL_DIGEST_SIZE];
    } recent[16]; /* by address */
};

/* A hash_meet for the arguments of a call; `meeting` is a struct memo_meeting. */
int memo_meet(void *meeting, PyObject *object, uint8_t digest[SHOAL_DIGEST_SIZE]);
void memo_meeting_end(struct memo_meeting *meeting);

#endif
