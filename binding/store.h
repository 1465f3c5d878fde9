/* store.h: what the store's binding files share: the store's type, and entries as Python memory. */
#ifndef SHOAL_BINDING_STORE_H
#define SHOAL_BINDING_STORE_H

#include "module.h"

typedef struct {
    PyObject_HEAD
    shoal_store *store;
    PyObject *path; /* bytes, for messages */
} StoreObject;

/* An entry that Python memory refers to; freed with the last part. Counted under the GIL. */
struct held_entry {
    shoal_entry *entry;
    size_t references;
};

/* A tuple of the entry's parts, each an object with the buffer protocol, from part `first` on. `read_only`: for the
 * looks of it only, the memory is private. The entry is taken over,
 * also on error. */
PyObject *store_entry_parts(module_state *state, shoal_entry *entry, uint32_t first, bool read_only);

/* The buffers of Python objects as an entry's parts. */
struct part_list {
    Py_buffer *views;
    shoal_part *parts;
    Py_ssize_t count;
};
int part_list_begin(struct part_list *list, Py_ssize_t capacity);
/* Add one object's bytes, which must lie together. */
int part_list_add(struct part_list *list, PyObject *object);
void part_list_end(struct part_list *list);

/* A key from 16 bytes. */
int store_key(PyObject *bytes, shoal_key *key);

/* As module_raise; -EPERM says what to do. */
PyObject *store_raise(int error, const char *path);

int part_add(PyObject *module);     /* store_part.c */
int memo_add(PyObject *module);     /* memo.c */
int compress_add(PyObject *module); /* store_compress.c */

#endif
