/* store/store.c: opening a store, and the calls on all of it.
 *
 *     PATH/                  the store, 0700
 *         NAME/              a folder, 0700; its name encoded by folder.c
 *             shelf          the small entries, one behind the other, 0600 (shelf.h)
 *             0123…ef        a larger entry: its key in hex, 32 digits, 0600
 *             shelf.new      only while a shelf is made smaller
 *             0123…ef.new    only while a larger entry is replaced
 *             0123…ef.old    only while a damaged one is removed
 *         .temporary/        only on file systems without unnamed files
 *
 * Whatever else lies there is not ours: it is neither read nor removed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/folder.h"

/* Make the folders above the store, where they are missing; an error shows itself when the store's own is made. */
static void make_parents(const char *whole)
{
    char *path = strdup(whole);
    if (path == NULL)
        return;
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        struct stat status;
        *slash = '\0';
        /* The umask may have taken bits that we need. */
        if (mkdir(path, S_IRWXU) == 0 && lstat(path, &status) == 0 && S_ISDIR(status.st_mode) &&
            (status.st_mode & S_IRWXU) != S_IRWXU)
            (void)chmod(path, S_IRWXU);
        *slash = '/';
    }
    free(path);
}

int store_open_root(const shoal_store *store, bool create, int *out)
{
    int error = folder_open_own(AT_FDCWD, store->path, create, out);
    if (error != -ENOENT || !create)
        return error;
    make_parents(store->path); /* they, too, may be removed while the store is used */
    return folder_open_own(AT_FDCWD, store->path, create, out);
}

static char *absolute(const char *path)
{
    char *result = NULL;
    char *current = path[0] == '/' ? NULL : getcwd(NULL, 0);
    if (path[0] != '/' && current == NULL)
        return NULL;
    if (asprintf(&result, "%s%s%s", current != NULL ? current : "", current != NULL ? "/" : "", path) < 0)
        result = NULL;
    free(current);
    for (size_t end = result != NULL ? strlen(result) : 0; end > 1 && result[end - 1] == '/'; end--)
        result[end - 1] = '\0'; /* "link/" would be followed, "link" is not */
    return result;
}

int shoal_store_open(const char *path, const shoal_store_options *options, shoal_store **out)
{
    if (path == NULL || path[0] == '\0' || (options != NULL && options->compression > SHOAL_COMPRESS_LZ4))
        return -EINVAL;
    shoal_store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return -ENOMEM;
    if (options != NULL) {
        store->flags = options->flags;
        store->compression = options->compression;
        store->level = options->level;
        store->bytes_limit = options->bytes_limit;
        store->copied = (options->flags & SHOAL_STORE_COPIES) != 0 ? FILE_ALL : options->copied_parts;
    }
    atomic_init(&store->unlooked, store->bytes_limit); /* the first put has a look */
    store->path = absolute(path);
    int error = store->path == NULL ? -ENOMEM : 0;
    int fd;
    if (error == 0)
        error = store_open_root(store, true, &fd);
    if (error != 0) {
        shoal_store_close(store);
        return error;
    }
    (void)close(fd);
    *out = store;
    return 0;
}

void shoal_store_close(shoal_store *store)
{
    if (store == NULL)
        return;
    uses_close(atomic_load_explicit(&store->uses, memory_order_relaxed)); /* relaxed: nobody else has the handle */
    shelves_close(&store->shelves);
    free(store->path);
    free(store);
}

struct uses *store_uses(shoal_store *store)
{
    struct uses *uses = atomic_load_explicit(&store->uses, memory_order_acquire); /* acquire: its mapping was made */
    /* relaxed: at worst two map it, and one of them takes its mapping back */
    if (uses != NULL || atomic_load_explicit(&store->uses_tried, memory_order_relaxed))
        return uses;
    int root;
    if (store_open_root(store, false, &root) != 0)
        return NULL;
    struct uses *expected = NULL;
    uses = uses_open(root, !store->passive);
    (void)close(root);
    if (uses != NULL && !atomic_compare_exchange_strong_explicit(&store->uses, &expected, uses, memory_order_acq_rel,
                                                                 memory_order_acquire)) {
        uses_close(uses);
        uses = expected;
    }
    atomic_store_explicit(&store->uses_tried, true, memory_order_relaxed);
    return uses;
}

/* A listing of an open folder, which is closed with it; NULL and the reason. */
static DIR *list_open(int fd, int *error)
{
    DIR *list = fdopendir(fd);
    *error = list == NULL ? -errno : 0;
    if (list == NULL)
        (void)close(fd);
    return list;
}

int folder_remove_entries(int fd)
{
    int first;
    DIR *list = list_open(fd, &first);
    if (list == NULL)
        return first;
    for (struct dirent *item; (item = readdir(list)) != NULL;) {
        if (!file_is_entry_name(item->d_name, NULL) && !file_is_passing_name(item->d_name))
            continue;
        int error = file_remove(fd, item->d_name);
        if (error != 0 && error != -ENOENT && first == 0)
            first = error;
    }
    /* The shelf last: what it has may hide an older file, which is not to come to light if we are killed. */
    int error = shelf_discard(fd);
    (void)closedir(list);
    return first != 0 ? first : error;
}

int shoal_store_clear(shoal_store *store)
{
    int root, fd;
    int first = store_open_root(store, false, &root);
    if (first != 0)
        return first == -ENOENT ? 0 : first;
    DIR *list = list_open(root, &first);
    if (list == NULL)
        return first;
    for (struct dirent *item; (item = readdir(list)) != NULL;) {
        int error;
        if (strcmp(item->d_name, FOLDER_TEMPORARY) == 0) {
            if (folder_open_own(root, item->d_name, false, &fd) == 0) {
                file_sweep_temporary(fd);
                (void)close(fd);
            }
        } else if (item->d_name[0] == '.') {
            continue;
        } else {
            error = folder_open_own(root, item->d_name, false, &fd);
            if (error == 0)
                error = folder_remove_entries(fd);
            if (error != 0 && error != -ENOENT && error != -ENOTDIR && first == 0)
                first = error;
        }
        (void)unlinkat(root, item->d_name, AT_REMOVEDIR); /* stays where something is left in it */
    }
    (void)closedir(list);
    return first;
}

/* What a visit does with each entry. */
struct visit {
    shoal_store *store;
    struct uses *uses;
    shoal_store_visitor visitor;
    void *context;
    bool verify, remove; /* read all of it; remove what is damaged */
    bool sweep;          /* remove what dead processes left */
};

/* The folder that is visited. */
struct visited {
    const char *name;
    int fd;
    struct shelf *shelf;
};

/* Tell the visitor of an entry with these numbers. `error`: why it could not be read, if so. */
static int tell(struct visit *visit, const struct visited *in, const shoal_key *key, shoal_entry_numbers *numbers,
                int error)
{
    numbers->used = numbers->created;
    int64_t last;
    if (uses_recall(visit->uses, key, &last, &numbers->hits) && last * SHOAL_SECOND > numbers->used)
        numbers->used = last * SHOAL_SECOND;
    return error != -ENOENT ? visit->visitor(in->name, key, numbers, error, visit->context) : 0;
}

static int visit_file(struct visit *visit, const struct visited *in, const char *name, const shoal_key *key)
{
    shoal_entry_numbers numbers;
    int error = file_read_numbers(in->fd, name, key, &numbers);
    if (error == 0 && visit->verify) {
        shoal_entry *entry = NULL;
        error = file_read(in->fd, name, key, &visit->store->verified, 0, &entry);
        shoal_entry_close(entry);
    }
    if (error == SHOAL_ECORRUPT && visit->verify && visit->remove)
        file_remove_damaged(in->fd, name, key);
    return tell(visit, in, key, &numbers, error);
}

static int visit_shelf(struct visit *visit, const struct visited *in)
{
    static const shoal_key none; /* stands for all of a shelf that cannot be used, and for what was cut off it */
    shoal_key *keys = NULL;
    shoal_entry_numbers numbers = {0};
    size_t count = 1;
    bool lost = false;
    int error = shelf_keys(in->shelf, in->fd, visit->verify, &keys, &count, &lost);
    if (error == -ENOENT)
        return 0;
    int result = 0;
    for (size_t i = 0; result == 0 && i < count; i++) {
        const shoal_key *key = keys != NULL ? &keys[i] : &none;
        int found = keys != NULL ? shelf_read_numbers(in->shelf, in->fd, key, &numbers) : error;
        if (found == SHOAL_ECORRUPT && visit->verify && visit->remove)
            (void)shelf_remove(in->shelf, in->fd, key, NULL);
        result = tell(visit, in, key, &numbers, found);
    }
    if (result == 0 && lost && visit->verify) {
        if (visit->remove)
            (void)shelf_settle(in->shelf, in->fd);
        numbers = (shoal_entry_numbers){0};
        result = tell(visit, in, &none, &numbers, SHOAL_ECORRUPT);
    }
    free(keys);
    return result;
}

static int visit_folder(struct visit *visit, int fd, const char *folder)
{
    int result;
    struct visited in = {.name = folder, .fd = fd, .shelf = shelf_of(&visit->store->shelves, folder)};
    DIR *list = list_open(fd, &result);
    if (list == NULL)
        return result;
    result = in.shelf == NULL ? -ENOMEM : visit_shelf(visit, &in);
    for (struct dirent *item; result == 0 && (item = readdir(list)) != NULL;) {
        shoal_key key;
        if (file_is_entry_name(item->d_name, &key) && !shelf_has(in.shelf, &key))
            result = visit_file(visit, &in, item->d_name, &key);
        else if (visit->sweep && file_is_passing_name(item->d_name))
            (void)file_remove(in.fd, item->d_name);
    }
    (void)closedir(list);
    if (in.shelf != NULL)
        shelf_rest(in.shelf, false);
    return result;
}

static int visit_all(struct visit *visit)
{
    int root, fd;
    int result = store_open_root(visit->store, false, &root);
    if (result != 0)
        return result == -ENOENT ? 0 : result;
    DIR *list = list_open(root, &result);
    if (list == NULL)
        return result;
    for (struct dirent *item; result == 0 && (item = readdir(list)) != NULL;) {
        if (item->d_name[0] == '.')
            continue;
        int error = folder_open_own(root, item->d_name, false, &fd);
        if (error == 0)
            result = visit_folder(visit, fd, item->d_name);
        else if (error != -ENOENT && error != -ENOTDIR)
            result = error;
    }
    (void)closedir(list);
    return result;
}

int shoal_store_visit(shoal_store *store, shoal_store_visitor visitor, void *context)
{
    struct visit visit = {.store = store, .uses = store_uses(store), .visitor = visitor, .context = context};
    return visit_all(&visit);
}

int store_list(shoal_store *store, shoal_store_visitor visitor, void *context)
{
    struct visit visit = {
        .store = store, .uses = store_uses(store), .visitor = visitor, .context = context, .sweep = true};
    return visit_all(&visit);
}

int shoal_store_verify(shoal_store *store, int remove_damaged, shoal_store_visitor visitor, void *context)
{
    struct visit visit = {.store = store,
                          .uses = store_uses(store),
                          .visitor = visitor,
                          .context = context,
                          .verify = true,
                          .remove = remove_damaged != 0,
                          .sweep = remove_damaged != 0};
    /* What this handle verified before may have been damaged in a way that keeps a file's times. */
    for (uint32_t i = 0; i < FILE_VERIFIED_SLOTS; i++)
        atomic_store_explicit(&store->verified.slots[i], 0, memory_order_relaxed);
    return visit_all(&visit);
}

int shoal_store_remove(shoal_store *store, const char *folder, const shoal_key *key)
{
    int root, fd;
    if (folder == NULL || folder[0] == '.' || folder[0] == '\0' || strchr(folder, '/') != NULL)
        return -EINVAL;
    int error = store_open_root(store, false, &root);
    if (error != 0)
        return error;
    error = folder_open_own(root, folder, false, &fd);
    if (error == 0 && key == NULL) {
        error = folder_remove_entries(fd);
    } else if (error == 0) {
        struct shelf *shelf = shelf_of(&store->shelves, folder);
        error = shelf != NULL ? folder_remove_entry(fd, shelf, key) : -ENOMEM;
        if (shelf != NULL)
            shelf_rest(shelf, false);
        (void)close(fd);
    }
    if (error == 0)
        (void)unlinkat(root, folder, AT_REMOVEDIR); /* stays where something is left in it */
    (void)close(root);
    return error;
}
