/* store/folder.c: the folders of a store, and the calls on their entries.
 *
 * A folder's descriptor is opened and checked once and then kept, which makes a hit of a large entry one openat on a
 * short name. Others may remove the folder meanwhile (a clear, rm -r), or this process may have closed all its
 * descriptors (a daemon). So what the number stands for is compared with what the path stands for before every put and
 * after every miss, and set right by dup3, which changes what the number stands for in one step: threads that use it
 * meanwhile see the old folder or the new one, never a stranger's. No lock is held, so a fork finds none taken. Only
 * FOLDERS_KEPT do so: a program with thousands of cached functions has files of its own to open.
 *
 * Small entries lie on the folder's shelf, where a get looks first; shelf.h says what that means for an entry that is
 * put here and there.
 */
#include "store/folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ATTEMPTS 8        /* how often an entry is looked for that others move meanwhile */
#define PUT_ATTEMPTS 1000 /* how often an entry is put into a folder that others remove meanwhile */

int folder_open_own(int parent, const char *name, bool create, int *out)
{
    for (int attempt = 0;; attempt++) {
        int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        int error = fd < 0 ? -errno : 0;
        if (fd >= 0) {
            struct stat status;
            error = fstat(fd, &status) != 0 ? -errno : file_check_owner(&status);
            /* Somebody's rmdir is half way: the name is still there, what it stands for is gone. */
            if (error == 0 && status.st_nlink == 0)
                error = -ENOENT;
            if (error == 0) {
                *out = fd;
                return 0;
            }
            (void)close(fd);
        }
        if (error != -ENOENT || !create || attempt == 8)
            return error == -ELOOP ? -ENOTDIR : error;
        /* Waits for an rmdir that is half way. */
        if (mkdirat(parent, name, S_IRWXU) == 0) {
            /* The umask may have taken bits that we need. */
            struct stat status;
            if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(status.st_mode) &&
                (status.st_mode & S_IRWXU) != S_IRWXU)
                (void)fchmodat(parent, name, S_IRWXU, 0);
        } else if (errno != EEXIST) {
            return -errno;
        }
    }
}

/* A name that any file system can hold and that stands for one folder only: letters, digits, '_', '-' and '.' (not
 * first) stay, other bytes become %XX. Too long a name keeps its beginning, then '~', which no other name has, and its
 * digest. */
static void encode_name(const char *name, char out[FOLDER_NAME_MOST + 1])
{
    static const char digits[] = "0123456789ABCDEF";
    size_t used = 0, tail = 1 + 2 * SHOAL_DIGEST_SIZE;
    size_t cut = 0; /* how much of `out` is kept if the name turns out too long */
    for (const char *c = name; *c != '\0'; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '_' ||
                     *c == '-' || (*c == '.' && used != 0);
        size_t need = plain ? 1 : 3;
        if (used + need > FOLDER_NAME_MOST) {
            shoal_key key;
            shoal_digest(name, strlen(name), key.bytes);
            out[cut] = '~';
            file_name(&key, out + cut + 1);
            return;
        }
        if (plain) {
            out[used] = *c;
        } else {
            out[used] = '%';
            out[used + 1] = digits[(uint8_t)*c >> 4];
            out[used + 2] = digits[(uint8_t)*c & 15];
        }
        used += need;
        if (used + tail <= FOLDER_NAME_MOST)
            cut = used;
    }
    out[used] = '\0';
}

int shoal_folder_open(shoal_store *store, const char *name, shoal_folder **out)
{
    if (name == NULL || name[0] == '\0')
        return -EINVAL;
    char encoded[FOLDER_NAME_MOST + 1];
    encode_name(name, encoded);
    shoal_folder *folder = calloc(1, sizeof *folder);
    if (folder == NULL)
        return -ENOMEM;
    if (asprintf(&folder->path, "%s/%s", store->path, encoded) < 0) {
        free(folder);
        return -ENOMEM;
    }
    folder->name = folder->path + strlen(store->path) + 1;
    folder->shelf = shelf_of(&store->shelves, encoded);
    if (folder->shelf == NULL) {
        free(folder->path);
        free(folder);
        return -ENOMEM;
    }
    shelf_hold(folder->shelf);
    folder->store = store;
    atomic_init(&folder->fd, -1);
    *out = folder;
    return 0;
}

/* Whether `fd` is the folder that this handle last had under that number. */
static bool is_still_ours(shoal_folder *folder, int fd, const struct stat *status)
{
    /* relaxed: a torn pair is taken for a stranger's, and only costs a descriptor */
    return fd >= 0 && (uint64_t)status->st_dev == atomic_load_explicit(&folder->device, memory_order_relaxed) &&
           (uint64_t)status->st_ino == atomic_load_explicit(&folder->inode, memory_order_relaxed);
}

void shoal_folder_close(shoal_folder *folder)
{
    if (folder == NULL)
        return;
    int fd = atomic_load_explicit(&folder->fd, memory_order_relaxed);
    struct stat status;
    if (fd >= 0)
        (void)atomic_fetch_sub_explicit(&folder->store->folders_kept, 1, memory_order_relaxed);
    if (fd >= 0 && fstat(fd, &status) == 0 && is_still_ours(folder, fd, &status))
        (void)close(fd);
    shelf_rest(folder->shelf, true);
    free(folder->path);
    free(folder);
}

const char *shoal_folder_path(const shoal_folder *folder)
{
    return folder->path;
}

/* Whose it is and, for a put, whether it may be written to: a record could be, where no file could be made. */
static int check_folder(int fd, const struct stat *status, bool put)
{
    int error = file_check_owner(status);
    return error == 0 && put ? file_check_writable(fd, status) : error;
}

/* What a call works with. */
struct opened {
    int fd;
    bool changed;   /* stands for another folder than before, or for one that was not looked at yet */
    bool temporary; /* this call's alone */
};

static void end_use(const struct opened *opened)
{
    if (opened->temporary)
        (void)close(opened->fd);
}

/* Have `opened`, just made, be the folder's descriptor, whose number was `fd`. */
static int keep(shoal_folder *folder, int fd, bool ours, struct opened *opened)
{
    if (ours) {
        int error = dup3(opened->fd, fd, O_CLOEXEC) < 0 ? -errno : 0;
        (void)close(opened->fd);
        opened->fd = fd;
        return error;
    }
    _Atomic uint32_t *kept = &folder->store->folders_kept;
    /* relaxed: a count, on which no memory rests; at worst some threads find the last place free at once */
    opened->temporary = fd < 0 && atomic_load_explicit(kept, memory_order_relaxed) >= FOLDERS_KEPT;
    if (opened->temporary)
        return 0;
    int before = fd;
    /* acq_rel: publishes device and inode with the number. Another thread may have been first: use its folder. */
    if (!atomic_compare_exchange_strong_explicit(&folder->fd, &before, opened->fd, memory_order_acq_rel,
                                                 memory_order_acquire)) {
        (void)close(opened->fd);
        opened->fd = before;
    } else if (fd < 0) {
        (void)atomic_fetch_add_explicit(kept, 1, memory_order_relaxed);
    }
    return 0;
}

/* Get a descriptor that stands for what the folder's path stands for, until end_use. An error: why there is no such
 * folder; then there is nothing to end. */
static int refresh(shoal_folder *folder, bool create, struct opened *out)
{
    int fd = atomic_load_explicit(&folder->fd, memory_order_acquire); /* acquire: pairs with the exchange in keep() */
    struct stat there, here;
    bool present = fstatat(AT_FDCWD, folder->path, &there, AT_SYMLINK_NOFOLLOW) == 0;
    bool ours = fd >= 0 && fstat(fd, &here) == 0 && is_still_ours(folder, fd, &here);
    *out = (struct opened){.fd = fd};
    if (present && ours && here.st_nlink != 0 && there.st_dev == here.st_dev && there.st_ino == here.st_ino)
        return check_folder(fd, &here, create);

    int root = -1;
    int error = store_open_root(folder->store, create, &root);
    if (error != 0)
        return error;
    error = folder_open_own(root, folder->name, create, &out->fd);
    (void)close(root);
    if (error != 0)
        return error;
    if (fstat(out->fd, &there) != 0) {
        error = -errno;
        (void)close(out->fd);
        return error;
    }
    atomic_store_explicit(&folder->device, (uint64_t)there.st_dev, memory_order_relaxed);
    atomic_store_explicit(&folder->inode, (uint64_t)there.st_ino, memory_order_relaxed);
    out->changed = true;
    error = keep(folder, fd, ours, out);
    if (error == 0 && (error = check_folder(out->fd, &there, create)) != 0)
        end_use(out);
    return error;
}

/* `check`: whether the shelf's file is this folder's is to be looked at. */
static int look(shoal_folder *folder, int fd, bool check, const shoal_key *key, uint32_t copied, shoal_entry **out)
{
    char name[FILE_NAME];
    uint64_t state, before = 0;
    for (int attempt = 0;; attempt++) {
        /* From the second time on with a look at the name: a copy of links (cp -l) hides that the file lost it. */
        int error = shelf_get(folder->shelf, fd, check || attempt != 0, key, &state, out);
        if (error == 0)
            return 0;
        /* It may have come while the file went. If nothing came, it was nowhere when the file was looked for; where
         * there is no shelf, there may have been one in between. */
        if (error == -ENOENT &&
            ((attempt != 0 && state == before && (state != 0 || attempt == 2)) || attempt == ATTEMPTS))
            return error;
        before = state;
        file_name(key, name);
        int other = file_read(fd, name, key, &folder->store->verified, copied, out);
        if (other == -ENOENT && error != -ENOENT)
            shelf_note_told(folder->shelf);
        else if (other == 0)
            file_sweep_left(fd, name); /* or it stays for ever where an entry is read and never put again */
        if (other != -ENOENT || error != -ENOENT)
            return other != -ENOENT ? other : error;
    }
}

static int look_up(shoal_folder *folder, const shoal_key *key, uint32_t copied, shoal_entry **out)
{
    int fd = atomic_load_explicit(&folder->fd, memory_order_acquire); /* as in refresh() */
    int error = fd < 0 ? -ENOENT : look(folder, fd, false, key, copied, out);
    /* What is damaged, or another's, may lie in a stranger's folder that has our number by now. */
    if (error == -ENOENT || error == -EBADF || error == -ENOTDIR || error == SHOAL_ECORRUPT || error == -EPERM) {
        struct opened opened;
        int failed = refresh(folder, false, &opened);
        if (failed != 0)
            return failed;
        if (!opened.changed)
            return error == SHOAL_ECORRUPT || error == -EPERM ? error : -ENOENT;
        error = look(folder, opened.fd, true, key, copied, out);
        end_use(&opened);
    }
    return error;
}

int shoal_folder_look(shoal_folder *folder, const shoal_key *key, shoal_entry **out)
{
    return look_up(folder, key, folder->store->copied, out);
}

static int get(shoal_folder *folder, const shoal_key *key, uint32_t copied, shoal_entry **out)
{
    int error = look_up(folder, key, copied, out);
    if (error == 0)
        uses_note(store_uses(folder->store), key, false);
    return error;
}

int shoal_folder_get(shoal_folder *folder, const shoal_key *key, shoal_entry **out)
{
    return get(folder, key, folder->store->copied, out);
}

int folder_get_copy(shoal_folder *folder, const shoal_key *key, shoal_entry **out)
{
    return get(folder, key, FILE_ALL, out);
}

static int open_temporary(void *context)
{
    shoal_folder *folder = context;
    int root, fd;
    int error = store_open_root(folder->store, true, &root);
    if (error != 0)
        return error;
    error = folder_open_own(root, FOLDER_TEMPORARY, true, &fd);
    (void)close(root);
    if (error != 0)
        return error;
    /* relaxed: swept twice does no harm */
    if (!atomic_exchange_explicit(&folder->store->swept, true, memory_order_relaxed))
        file_sweep_temporary(fd);
    return fd;
}

/* Room for an entry that may be small enough for the shelf, and its record's header before it. */
struct small {
    uint8_t block[sizeof(struct record_header) + 2 * RECORD_ENTRY_MOST] __attribute__((aligned(8)));
    uint64_t size; /* of the entry; 0: it is for a file of its own */
};

static int build_small(const struct source *source, struct small *small)
{
    if ((source->flags & (SHOAL_STORE_DURABLE | SHOAL_STORE_NAMED_FILES)) != 0 ||
        source_most(source) > sizeof small->block - sizeof(struct record_header))
        return 0;
    uint64_t size;
    int error = source_build(source, small->block + sizeof(struct record_header), &size);
    if (error == 0 && size <= RECORD_ENTRY_MOST)
        small->size = size;
    return error;
}

static int put(shoal_folder *folder, int fd, const struct source *source, struct small *small)
{
    char name[FILE_NAME];
    file_name(source->key, name);
    int error = SHELF_ELSEWHERE;
    if (small->size != 0)
        error = shelf_put(folder->shelf, fd, source->key, name, small->block, (uint32_t)small->size);
    if (error != SHELF_ELSEWHERE)
        return error;
    error = file_write(fd, name, source, open_temporary, folder);
    bool durable = (source->flags & SHOAL_STORE_DURABLE) != 0;
    return error != 0 ? error : shelf_give_way(folder->shelf, fd, source->key, name, durable);
}

static int put_in_folder(shoal_folder *folder, const struct source *source, struct small *small)
{
    int error = -ENOENT;
    /* The folder may be removed between any two steps. */
    for (int attempt = 0; error == -ENOENT && attempt < PUT_ATTEMPTS; attempt++) {
        struct opened opened;
        error = refresh(folder, true, &opened);
        if (error == 0) {
            error = put(folder, opened.fd, source, small);
            end_use(&opened);
        }
    }
    return error;
}

int shoal_folder_put(shoal_folder *folder, const shoal_key *key, const shoal_part *parts, uint32_t count,
                     const shoal_entry_numbers *numbers)
{
    shoal_entry_numbers filled = numbers != NULL ? *numbers : (shoal_entry_numbers){0};
    if (filled.created == 0) {
        struct timespec now;
        (void)clock_gettime(CLOCK_REALTIME, &now);
        filled.created = (int64_t)now.tv_sec * SHOAL_SECOND + now.tv_nsec;
    }
    struct source source = {.key = key,
                            .parts = parts,
                            .count = count,
                            .numbers = &filled,
                            .flags = folder->store->flags,
                            .compression = folder->store->compression,
                            .level = folder->store->level};
    struct small small;
    small.size = 0; /* the block needs no value */
    uint64_t size = entry_head_size(count);
    for (uint32_t i = 0; i < count; i++)
        size += parts[i].size;
    int error = source_pack(&source);
    if (error == 0)
        error = build_small(&source, &small);
    if (error == 0)
        error = put_in_folder(folder, &source, &small);
    if ((error == -ENOSPC || error == -EDQUOT) && reduce_for_room(folder->store, size)) {
        error = put_in_folder(folder, &source, &small);
        /* relaxed: a hint */
        atomic_store_explicit(&folder->store->futile, error == -ENOSPC || error == -EDQUOT, memory_order_relaxed);
    }
    source_unpack(&source);
    if (error == 0) {
        if (atomic_load_explicit(&folder->store->futile, memory_order_relaxed))
            atomic_store_explicit(&folder->store->futile, false, memory_order_relaxed);
        uses_note(store_uses(folder->store), key, true);
        reduce_after_put(folder->store, size);
    }
    return error;
}

int folder_remove_entry(int fd, struct shelf *shelf, const shoal_key *key)
{
    char name[FILE_NAME];
    file_name(key, name);
    int from_shelf = shelf_remove(shelf, fd, key, name);
    if (from_shelf != 0 && from_shelf != -ENOENT)
        return from_shelf; /* the file stays, too: it may be what another is about to put in the other's place */
    int error = file_remove(fd, name);
    /* Either may be an older one's, so both have to go; one is enough to have been there. */
    if (error == 0 || from_shelf == 0)
        file_sweep(fd, name);
    return error == -ENOENT ? from_shelf : error;
}

int shoal_folder_remove(shoal_folder *folder, const shoal_key *key)
{
    struct opened opened;
    int error = refresh(folder, false, &opened);
    if (error != 0)
        return error;
    error = folder_remove_entry(opened.fd, folder->shelf, key);
    end_use(&opened);
    return error;
}

int shoal_folder_clear(shoal_folder *folder)
{
    int root = -1, fd = -1;
    int error = store_open_root(folder->store, false, &root);
    if (error != 0)
        return error == -ENOENT ? 0 : error;
    error = folder_open_own(root, folder->name, false, &fd);
    if (error == 0)
        error = folder_remove_entries(fd);
    if (error == 0 && unlinkat(root, folder->name, AT_REMOVEDIR) != 0 && errno != ENOTEMPTY && errno != EEXIST)
        error = -errno;
    (void)close(root);
    return error == -ENOENT ? 0 : error;
}
