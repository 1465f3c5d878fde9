/* store/file.h: an entry in a file of its own, read into memory, or written so that it appears whole. */
#ifndef SHOAL_STORE_FILE_H
#define SHOAL_STORE_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "shoal.h"
#include "store/source.h"

#define FILE_NAME 33u             /* a key in hex, and the end */
#define FILE_READ_LIMIT 65536     /* entries up to this size are read, larger ones mapped: a mapping costs 5 us more */
#define FILE_VERIFIED_SLOTS 1024u /* a power of 2 */
#define FILE_ALL UINT32_MAX

/* Which files this process has verified. A slot holds a hash of what identifies a file's contents (device, inode, size,
 * times), so a lookup is one load, and no lock is needed, which a fork could leave taken. */
struct verified {
    _Atomic uint64_t slots[FILE_VERIFIED_SLOTS];
};

struct shoal_entry {
    void *data; /* the file's bytes, aligned to 64 */
    size_t size;
    size_t file_size; /* what it takes on disk, where that is not `size`: it was expanded, or lies on a shelf; else 0 */
    bool mapped; /* from the system, its pages in part the file's; else the memory follows this struct, or is `separate`
                  */
    void *separate;
};

/* Whether a file or folder is the user's own: 0, or -EPERM (another's, or others may write to it). */
struct stat;
int file_check_owner(const struct stat *status);

/* Nanoseconds since it was changed, or got or lost a name, by the clock of the day. */
int64_t file_age(const struct stat *status);

/* Whether files can be made in a folder that is the user's own: 0, or -EACCES. */
int file_check_writable(int folder, const struct stat *status);

void file_name(const shoal_key *key, char name[FILE_NAME]);
/* Whether a name is one that file_name makes; if so, and `key` is not NULL, which key it stands for. */
bool file_is_entry_name(const char *name, shoal_key *key);

/* Open without waiting (a FIFO may be in the file's place) and without following a link. `access`: O_RDONLY or O_RDWR.
 * Returns the descriptor, or errors as shoal_folder_get. */
int file_open_any(int folder, const char *name, int access);
/* Whose it is, and that it is a file. */
int file_check(const struct stat *status);
/* The one and the other, of a file for reading. */
int file_open(int folder, const char *name, struct stat *status, int *out);
/* `size` bytes from `offset` on: 0, or SHOAL_ECORRUPT when there are fewer, or the error. */
int file_read_at(int fd, void *data, size_t size, off_t offset);

/* Memory for an entry of `size` bytes, and `headroom` (a multiple of 64) before its data. */
shoal_entry *file_new_entry(size_t headroom, size_t size);
/* Put an entry with all parts expanded in place of one with compressed parts. It is laid out as one that was never
 * compressed, so that what comes after need not know. On an error the entry is closed. */
int file_expand(shoal_entry **inout);

/* Errors as shoal_folder_get. `copied`: so many parts, the first ones, are read and never mapped; FILE_ALL: all. */
int file_read(int folder, const char *name, const shoal_key *key, struct verified *verified, uint32_t copied,
              shoal_entry **out);
/* The header alone, unverified, for a listing. `size` is set whenever the file could be opened. */
int file_read_numbers(int folder, const char *name, const shoal_key *key, shoal_entry_numbers *out);
/* What the header says of an entry of `size` bytes. SHOAL_ECORRUPT: it is not that. */
int file_check_numbers(const struct entry_header *header, uint64_t size, const shoal_key *key,
                       shoal_entry_numbers *out);

/* Whether RLIMIT_FSIZE lets a file be so large. Going over it ends a program that does not handle SIGXFSZ: better not
 * to try. */
bool file_size_allowed(uint64_t size);
uint64_t file_size_most(void);

/* A file without a name in `folder`, to be written and then linked in whole. `unsupported` is set where the error means
 * that this cannot be done here; -ENOENT: the folder is gone. file_link_unnamed: also -EEXIST. */
int file_open_unnamed(int folder, bool *unsupported, int *out);
int file_link_unnamed(int fd, int folder, const char *name, bool *unsupported);

/* Put the entry at folder/name. `temporary`: opens the folder for named temporary files, made if it is missing, when
 * the file system lacks unnamed ones; returns the descriptor or a negative code. -ENOENT: the folder is gone. */
int file_write(int folder, const char *name, const struct source *source, int (*temporary)(void *context),
               void *context);

/* Remove what is at folder/name: file, link, or folder with all that is in it. */
int file_remove(int folder, const char *name);
/* The same of an entry that was found to be damaged: not if another put a sound one there meanwhile. */
void file_remove_damaged(int folder, const char *name, const shoal_key *key);

/* Whether a name is one that an entry's file has for an instant only, while it is replaced, or removed as damaged. Else
 * it is a dead process's; who is alive does without, so that anybody may remove it. */
bool file_is_passing_name(const char *name);
/* Remove what has such a name, of the entry called `name`. */
void file_sweep(int folder, const char *name);
/* The same where its age says that nobody is about to rename it: for readers, who come often. */
void file_sweep_left(int folder, const char *name);

/* Remove temporary files whose writers are gone. */
void file_sweep_temporary(int folder);

#endif
