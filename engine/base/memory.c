/* base/memory.c: how much memory this process has for itself.
 *
 * Read from /proc/self/statm: resident pages less those that are shared (files, regions), so that arrays which lie in a
 * pool's heap do not count as the worker's. The file is opened for each reading: a descriptor that was kept would show
 * the parent's numbers in a child of fork. Called by workers that have a limit.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "shoal.h"

int shoal_memory_private(uint64_t *bytes)
{
    char text[128];
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t size = read(fd, text, sizeof text - 1);
    int error = size < 0 ? -errno : 0;
    close(fd);
    if (error != 0)
        return error;
    text[size] = '\0';
    unsigned long long total, resident, shared;
    if (sscanf(text, "%llu %llu %llu", &total, &resident, &shared) != 3 || shared > resident)
        return -EIO;
    *bytes = (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
    return 0;
}
