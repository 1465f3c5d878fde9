/* store/store.c: opening a store, and the calls on all of it.
 *
 *     PATH/                  the store, 0700
 *         NAME/              a folder, 0700; its name encoded by folder.c
 *             0123…ef        an entry: its key in hex, 32 digits, 0600
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

int store_open_root(const shoal_store *store, bool create, int *out)
{
    return folder_open_own(AT_FDCWD, store->path, create, out);
}

/* Make the folders above the store, where they are missing; an error shows itself when the store's own is made. */
static void make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, S_IRWXU);
        *slash = '/';
    }
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
    if (path == NULL || path[0] == '\0')
        return -EINVAL;
    shoal_store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return -ENOMEM;
    store->flags = options != NULL ? options->flags : 0;
    store->path = absolute(path);
    int error = store->path == NULL ? -ENOMEM : 0;
    int fd;
    if (error == 0) {
        error = store_open_root(store, false, &fd);
        if (error == -ENOENT) {
            make_parents(store->path);
            error = store_open_root(store, true, &fd);
        }
    }
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
    free(store->path);
    free(store);
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
        if (!file_is_entry_name(item->d_name, NULL))
            continue;
        int error = file_remove(fd, item->d_name);
        if (error != 0 && error != -ENOENT && first == 0)
            first = error;
    }
    (void)closedir(list);
    return first;
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

static int visit_folder(int fd, const char *folder, shoal_store_visitor visitor, void *context)
{
    int result;
    DIR *list = list_open(fd, &result);
    if (list == NULL)
        return result;
    for (struct dirent *item; result == 0 && (item = readdir(list)) != NULL;) {
        shoal_key key;
        shoal_entry_numbers numbers;
        if (!file_is_entry_name(item->d_name, &key))
            continue;
        int error = file_read_numbers(fd, item->d_name, &key, &numbers);
        if (error != -ENOENT)
            result = visitor(folder, &key, &numbers, error, context);
    }
    (void)closedir(list);
    return result;
}

int shoal_store_visit(shoal_store *store, shoal_store_visitor visitor, void *context)
{
    int root, fd;
    int result = store_open_root(store, false, &root);
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
            result = visit_folder(fd, item->d_name, visitor, context);
        else if (error != -ENOENT && error != -ENOTDIR)
            result = error;
    }
    (void)closedir(list);
    return result;
}
