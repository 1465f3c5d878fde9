/* store/shelf.h: the small entries of a folder, many in one file.
 *
 * Making and linking a file costs 50 us, writing some hundred bytes behind others in a file that is there 3 us. So the
 * entries of up to RECORD_ENTRY_MOST bytes lie in one file of the folder, the shelf, one record behind the other
 * (record.h). Each handle of a store keeps an index of each shelf in memory, which grows with what was appended since:
 * to look, a reader needs no lock, one fstat, and one pread of the record.
 *
 * Writers have the file's lock (flock, on a description of their own, which no other process has: inherit.h), so there
 * is one at a time, wherever it is. A put appends its record and then removes the older one. What a dead writer began
 * is cut off by the next. Then it writes the length that the file has now to its head: a file that is shorter was cut,
 * and as nobody knows which keys were in what is missing, every get of a key that is not found says so, until somebody
 * who was told puts, or `verify` is asked to remove what is damaged. The same holds where a stretch of the file was
 * overwritten, keys and all. When more than half of the file is of no use, a
 * writer copies what lives into a new file and renames it over the old one, with the lock held: whoever waited for it
 * finds that the file has no name any more, and goes to the new one, as readers do. On a full disk, where there is no
 * room for a new file, neighbouring removed records are made one, and the disk gets back what is behind its header. The
 * last entry that goes takes the shelf with it.
 *
 * A key may be here and have a file of its own, if a writer was killed between two steps. Who puts in one place removes
 * from the other afterwards; so a record counts more than a file, but for a damaged one.
 *
 * Invariant: whatever a put returned for is found by every get that begins afterwards, until it is removed.
 */
#ifndef SHOAL_STORE_SHELF_H
#define SHOAL_STORE_SHELF_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "shoal.h"
#include "store/index.h"
#include "store/record.h"

#define SHELF_NAME "shelf"
#define SHELF_NEW "shelf.new"           /* what is about to be renamed to the other; else a dead writer's, and swept */
#define SHELF_MOST ((uint64_t)64 << 20) /* bytes of the file: past that, entries have files of their own */
#define SHELF_ELSEWHERE 1               /* the entry is for a file of its own */
#define SHELF_TABLE 64u                 /* lists of a store's shelves; a power of 2 */
#define SHELF_KEPT 128u                 /* of them that stay open between calls; the others are opened for each */

/* All but `next`, `shelves`, `name` and `users` is for whoever has the guard. */
struct shelf {
    struct shelf *next;      /* in its list of its store's; never changes */
    struct shelves *shelves; /* its store's; never changes */
    _Atomic uint32_t users;  /* open folders */
    _Atomic uint32_t
        guard;      /* the generation (inherit.h) of the thread at work here; 0: none. A fork's child takes over */
    int cancelling; /* that thread's, as it was before */
    bool stuck;     /* the last wait for another's lock was in vain: it may have been stopped with it */
    bool kept;      /* counted in its store's `kept`: `fd` stays open */
    int fd;         /* for reading; -1: none. The index stays good without: the mark tells the file */
    uint64_t device, inode; /* what `fd` stands for, if nobody closed it; or did last */
    uid_t owner;            /* of it, and its mode, when that was looked at */
    mode_t mode;
    uint8_t mark[RECORD_MARK];
    uint64_t scanned; /* bytes that are in the index; 0: not even the head was read */
    uint64_t tail;    /* where the last record of those begins; 0: there is none, or it was damaged */
    uint64_t futile;  /* bytes of no use at a try to be rid of them that failed */
    bool lost;        /* the file is shorter than its head says, or that cannot be read */
    bool told; /* a get was told so, or of damage to keys that nobody knows, or that there is none that can be used: the
                  next put sets it right */
    struct index index;
    char name[]; /* of its folder */
};

struct shelves {
    _Atomic(struct shelf *) lists[SHELF_TABLE];
    _Atomic uint32_t kept;
};

/* ---- for folder.c and store.c: `folder` is the open folder that the shelf is in ---- */

/* The shelf of a folder, by its name on disk; made if need be. NULL: no memory. It lives as long as the store. */
struct shelf *shelf_of(struct shelves *shelves, const char *name);
void shelf_hold(struct shelf *shelf);
/* Free its index, if it has no users and does not stay open. `held`: one user is gone. */
void shelf_rest(struct shelf *shelf, bool held);
void shelves_close(struct shelves *shelves);

/* Errors as shoal_folder_get. `check`: make sure that it is this folder's. `state` becomes another with all that is put
 * on the shelf. */
int shelf_get(struct shelf *shelf, int folder, bool check, const shoal_key *key, uint64_t *state, shoal_entry **out);
/* The numbers of an entry, of which all is verified. */
int shelf_read_numbers(struct shelf *shelf, int folder, const shoal_key *key, shoal_entry_numbers *out);
/* The keys of all entries, also damaged ones, to be freed. `fresh`: from the file alone. `lost`: it was cut short. An
 * error: what is there cannot be used, or there is none (-ENOENT). */
int shelf_keys(struct shelf *shelf, int folder, bool fresh, shoal_key **out, size_t *count, bool *lost);
/* A get that found the key nowhere gave the caller the shelf's error. */
void shelf_note_told(struct shelf *shelf);
/* Whether a key was there when it was last looked at. */
bool shelf_has(struct shelf *shelf, const shoal_key *key);

/* Put the entry of `size` bytes behind the header's room in `block`, which reaches to record_span(size); then remove
 * the file called `name`, an older entry's. 0, SHELF_ELSEWHERE, or as shoal_folder_put. */
int shelf_put(struct shelf *shelf, int folder, const shoal_key *key, const char *name, uint8_t *block, uint32_t size);
/* What was cut off is of no account any more. */
int shelf_settle(struct shelf *shelf, int folder);
/* Remove an entry, and before it the file called `name`, which may be an older one's; or all there is if it cannot be
 * used. `name` NULL: only what is damaged still. 0, -ENOENT: there is none; or as shoal_folder_remove. */
int shelf_remove(struct shelf *shelf, int folder, const shoal_key *key, const char *name);
/* Remove an entry for which the file called `name` was put: not if that is gone, as then a later put removed it.
 * `durable`: it is not to come back after a loss of power. */
int shelf_give_way(struct shelf *shelf, int folder, const shoal_key *key, const char *name, bool durable);
/* Give back what removed entries take on disk: by a new file, if it is more than a sixteenth of the file; else, or
 * before that where the disk is `full`, what of it can be given back in place. */
void shelf_trim(struct shelf *shelf, int folder, bool full);
/* Remove the file, whatever is in its place. 0 also where there is none. */
int shelf_discard(int folder);

/* ---- among shelf.c, shelf_write.c and shelf_compact.c ---- */

/* The file that a writer has locked. */
struct shelf_lock {
    int fd;
    uint32_t slot; /* inherit.h */
    uint64_t size; /* of the file, with what a dead writer began */
};

void shelf_enter(struct shelf *shelf);
void shelf_leave(struct shelf *shelf);
/* Bring descriptor and index up to date; the guard is held. As shelf_get. */
int shelf_attach(struct shelf *shelf, int folder, bool check);
/* Whether what is at a place is as it was put: 0, -ENOENT (it was removed), SHOAL_ECORRUPT or an error. */
int shelf_check_place(const struct shelf *shelf, const struct index_place *place);
/* Close the file and forget what was in it. */
void shelf_forget(struct shelf *shelf);
/* The length for the head of a file that is to have `size` bytes. Where a cut was not told of yet it is more. */
uint64_t shelf_length(const struct shelf *shelf, uint64_t size);
/* Bytes that are of no use. */
uint64_t shelf_waste(const struct shelf *shelf);
/* Copy what lives into a new file, in place of the locked one. What fails changes nothing. */
int shelf_compact(struct shelf *shelf, int folder, const struct shelf_lock *lock);
/* Give the disk back what lies between those that live, where that is some pages. The index is made anew. */
void shelf_free_gaps(struct shelf *shelf, int folder, const struct shelf_lock *lock);
/* Write over the headers of what is out of date. What could not be stays listed. */
int shelf_remove_stale(struct shelf *shelf, const struct shelf_lock *lock);
int shelf_write_all(int fd, const uint8_t *data, size_t size, uint64_t offset);

#endif
