/* hash.h: a 128-bit digest of any Python value, by what it is equal to and not by where it lies.
 *
 * The value is turned into an encoding that is hashed as it is made. A scalar's encoding is a tag and its bytes. A
 * container's, array's or object's is a tag and the digest of what it holds, so that items of sets and dicts can be put
 * in an order of their own (by digest), and what is referred to many times is gone through once.
 *
 *     None N   True T   False F   int i, I   float f   complex c   str s, S   bytes b, B   bytearray a, A
 *     tuple t   list l   dict d   set e   frozenset z   array n   memoryview m   array scalar x   dtype y
 *     type or function by name g   function u   method o   module p   by its reduction r   seen before R
 *     what hash_meet adds q
 *
 * A structure that contains itself cannot be digested so. When one is met, the whole value is gone through again in
 * numbered mode: each container gets a number when it is first met, and is named by it afterwards.
 *
 * The tags and layouts are part of the store's keys: a change of any makes all entries that were kept misses.
 */
#ifndef SHOAL_BINDING_HASH_H
#define SHOAL_BINDING_HASH_H

#include "module.h"

/* Bytes on their way into a digest. */
struct sink {
    uint8_t *data;
    size_t used, capacity;
    shoal_hash *stream; /* NULL until SINK_FLUSH bytes were there */
    uint8_t first[448];
};

struct seen; /* what was met before */

/* Told of each class and Python function that is met, and of the class of each object that is met: what they mean is
 * not in their names. 1: `digest` counts too; 0: nothing does; -1: an exception is set. May run Python code. */
typedef int (*hash_meet)(void *context, PyObject *object, uint8_t digest[SHOAL_DIGEST_SIZE]);

/* How a Python function is told from another. */
enum hash_functions {
    HASH_BY_CONTENTS, /* name, code, and what it holds, by contents */
    HASH_BY_CODE,     /* name and code: what it holds is looked at by whoever asks */
    HASH_BY_ADDRESS   /* which object it is: for digests that are compared in this process only */
};

struct hasher {
    module_state *state;
    enum hash_functions functions;
    hash_meet meet;    /* or NULL */
    void *context;     /* of meet */
    struct seen *seen; /* hash.c; by address, each holding a reference */
    size_t seen_count, seen_capacity;
    const PyObject **path; /* what we are in the midst of */
    size_t path_length, path_capacity;
    uint64_t number;
    int depth; /* values inside of values, so far */
    bool numbered, coerce_mmap;
};

void sink_begin(struct sink *sink);
void sink_end(struct sink *sink);
/* 0, or -1 with MemoryError set. */
int sink_add(struct sink *sink, const void *data, size_t size);
int sink_digest(struct sink *sink, uint8_t digest[SHOAL_DIGEST_SIZE]);

static inline int sink_tag(struct sink *sink, char tag)
{
    if (sink->used < sink->capacity) {
        sink->data[sink->used++] = (uint8_t)tag;
        return 0;
    }
    return sink_add(sink, &tag, 1);
}

static inline int sink_number(struct sink *sink, uint64_t number)
{
    return sink_add(sink, &number, sizeof number);
}

/* Bytes of any length: small ones as they are, large ones by a digest that several threads make without the GIL. */
int sink_bytes(struct sink *sink, char small_tag, char large_tag, const void *data, size_t size);

#define HASH_CYCLE 1 /* the value contains itself: start again, numbered */

/* Add a value's encoding: 0, -1 with an exception set, or HASH_CYCLE. The caller holds a reference of its own: what
 * others hold besides is how a value is known that may be met again. hash_held takes one for the time. */
int hash_value(struct hasher *hasher, struct sink *sink, PyObject *object);
int hash_held(struct hasher *hasher, struct sink *sink, PyObject *object);
/* Add pairs or items, whose digests are `digests`, in the order of these; they are sorted in place. */
int hash_sorted(struct sink *sink, char tag, uint8_t (*digests)[SHOAL_DIGEST_SIZE], size_t count);

/* hash_array.c: arrays, dtypes, array scalars, memoryviews. Says in `done` whether it was one. */
int hash_array(struct hasher *hasher, struct sink *sink, PyObject *object, bool *done);
/* hash_object.c: everything that hash.c does not know itself. */
int hash_by_reduction(struct hasher *hasher, struct sink *sink, PyObject *object);

/* The digest of one value. `coerce_mmap`: a memory-mapped array equals any other. 0, or -1 with an exception set. */
int hash_digest(module_state *state, PyObject *object, bool coerce_mmap, uint8_t digest[SHOAL_DIGEST_SIZE]);

struct hash_options {
    hash_meet meet; /* or NULL */
    void *context;  /* of meet */
    enum hash_functions functions;
    bool coerce_mmap;
};
int hash_digest_with(module_state *state, PyObject *object, const struct hash_options *options,
                     uint8_t digest[SHOAL_DIGEST_SIZE]);

#endif
