/* store/folder.h: a store and its folders, as store.c and folder.c share them. */
#ifndef SHOAL_STORE_FOLDER_H
#define SHOAL_STORE_FOLDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "shoal.h"
#include "store/file.h"
#include "store/shelf.h"
#include "store/uses.h"

#define FOLDER_NAME_MOST 200u /* bytes of a folder's name on disk; longer ones end in a digest */
#define FOLDERS_KEPT 128u     /* of them that keep their descriptors between calls; the others are opened for each */
#define FOLDER_TEMPORARY ".temporary" /* in the store's folder; file.h */

struct shoal_store {
    char *path;   /* absolute */
    bool passive; /* makes no folder and no table: the thread's of reduce.c */
    uint32_t flags, compression;
    uint32_t copied; /* parts of an entry that are read, and never mapped */
    int level;
    uint64_t bytes_limit;        /* 0: none */
    _Atomic(struct uses *) uses; /* mapped on first need */
    _Atomic bool uses_tried;     /* that was done, whatever came of it */
    _Atomic uint64_t unlooked;   /* bytes put since the store's size was looked at (reduce.c) */
    _Atomic bool futile; /* the disk was full, and stayed so when entries were removed, and no put succeeded since */
    _Atomic bool swept;  /* the temporary files of dead writers were removed once by this process */
    _Atomic uint32_t folders_kept;
    struct verified verified;
    struct shelves shelves;
};

struct shoal_folder {
    shoal_store *store;
    char *path;       /* store's path / name */
    const char *name; /* within path */
    struct shelf *shelf;
    _Atomic int fd; /* -1: it is not kept, or was not seen yet; else always this number (folder.c) */
    _Atomic uint64_t device, inode;
};

/* Open a folder that must be the user's own: 0 and a descriptor, or -EPERM, -ENOENT, -ENOTDIR …
 * `create`: make it, 0700, where it is missing. */
int folder_open_own(int parent, const char *name, bool create, int *out);

/* The store's own folder. */
int store_open_root(const shoal_store *store, bool create, int *out);

/* The table of uses, or NULL where there cannot be one. Tried once a handle. */
struct uses *store_uses(shoal_store *store);

/* shoal_store_visit, which also removes what dead processes left. */
int store_list(shoal_store *store, shoal_store_visitor visitor, void *context);

/* Note that `size` bytes were put, and have the store reduced if it is time. */
void reduce_after_put(shoal_store *store, uint64_t size);

/* A put of `size` bytes found the disk full: where the store has a limit, remove what was used longest ago. Whether
 * some was, so that it is worth trying again. */
bool reduce_for_room(shoal_store *store, uint64_t size);

/* As shoal_folder_get, with nothing of it mapped. */
int folder_get_copy(shoal_folder *folder, const shoal_key *key, shoal_entry **out);

/* Remove an entry of the open folder `fd`, wherever it lies in it. Errors as shoal_folder_remove. */
int folder_remove_entry(int fd, struct shelf *shelf, const shoal_key *key);

/* Remove all entries of the open folder `fd`, which the call closes. */
int folder_remove_entries(int fd);

#endif
