/* base/error.c: what a code means, in words.
 *
 * Codes are negated errno values or SHOAL_E…. The texts here say what the code means when Shoal returns it, which the C
 * library's texts ("Bad message", "No data available") often do not; for values that Shoal has no text for, the
 * system's own is given. All texts are static: any thread may call, and nothing is freed. Called by the binding and by
 * users.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "shoal.h"

static const struct {
    int code;
    const char *text;
} texts[] = {
    {0, "success"},
    {SHOAL_EWORKERDIED, "the worker that held the item died"},
    {SHOAL_ETASKTIMEOUT, "the item ran longer than it may, and its worker was killed"},
    {SHOAL_ECANCELLED, "the item was taken back before it ran"},
    {SHOAL_ECORRUPT, "shared memory or a file holds what no sound program writes"},
    {SHOAL_EOWNERDIED, "the process that held the lock died"},
    {-EACCES, "permission denied"},
    {-EAGAIN, "no room, or too many processes, at the moment; try again"},
    {-EBADF, "not an open file descriptor"},
    {-EBADMSG, "the item was overwritten in shared memory, and was dropped"},
    {-EBUSY, "it is in use"},
    {-ECHILD, "not a child of this process, or already reaped"},
    {-EDEADLK, "the caller would wait for itself"},
    {-EEXIST, "it exists already"},
    {-EFAULT, "an address that is not the caller's"},
    {-EFBIG, "larger than a file of this process may become (RLIMIT_FSIZE applies to shared memory too)"},
    {-EINTR, "interrupted by a signal"},
    {-EINVAL, "an argument is not valid, or a reference names nothing"},
    {-EIO, "input or output failed"},
    {-EISDIR, "a directory is in its place"},
    {-ELOOP, "a symbolic link, which is not followed here"},
    {-EMFILE, "this process has too many open file descriptors (see ulimit -n)"},
    {-EMSGSIZE, "the item is larger than what it must fit into"},
    {-ENAMETOOLONG, "the name is too long"},
    {-ENFILE, "the machine has too many open files"},
    {-ENODATA, "there is no more"},
    {-ENOENT, "it does not exist"},
    {-ENOMEM, "out of memory (of the machine, the control group, the address space, or the heap's limit)"},
    {-ENOSPC, "no space is left"},
    {-ENOSYS, "this kernel lacks a system call that is needed"},
    {-ENOTDIR, "not a directory"},
    {-ENOTSUP, "not supported here"},
    {-EOVERFLOW, "a number is too large"},
    {-EOWNERDEAD, "the process that held it died"},
    {-EPERM, "not allowed: it belongs to another, or its file may still shrink"},
    {-EPIPE, "the other side is gone"},
    {-ERANGE, "a number is out of its range"},
    {-EROFS, "the file system is read-only"},
    {-ESHUTDOWN, "it is closed"},
    {-ESRCH, "no such process"},
    {-ESTALE, "it was replaced by another since"},
    {-ETIMEDOUT, "nothing happened within the given time"},
    {-EUSERS, "too many processes or threads use it at a time"},
    {-EXDEV, "it lies on another file system"},
};

const char *shoal_error_text(int error)
{
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i].code == error)
            return texts[i].text;
    const char *text = NULL;
#ifdef __GLIBC__
    if (error < 0 && error > -4096)
        text = strerrordesc_np(-error); /* static and untranslated, unlike strerror's */
#endif
    return text != NULL ? text : "an unknown error";
}
