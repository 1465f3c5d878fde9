/* memory/region.c: shared memory that the kernel frees by itself: a sealed memfd, mapped.
 *
 * No name anywhere, so nothing is left behind however the last process dies. Sealed against shrinking, because a page
 * that is cut off under a reader is a SIGBUS; an attached descriptor must carry that seal. Called by every room that
 * shares.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shoal.h"

struct shoal_region {
    void *base;
    size_t size;
    int fd;
};

static size_t whole_pages(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

/* RLIMIT_FSIZE applies to a memfd, and to go over it is not only an error but a signal that ends the process: ask
 * before.
 */
static bool within_file_limit(size_t size)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || size <= limit.rlim_cur;
}

static int map(shoal_region *region)
{
    void *base = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, region->fd, 0);
    if (base == MAP_FAILED)
        return -errno;
    region->base = base;
    return 0;
}

int shoal_region_create(const char *name, size_t size, shoal_region **out)
{
    if (size == 0 || size > (size_t)INT64_MAX)
        return -EINVAL;
    shoal_region *region = calloc(1, sizeof *region);
    if (region == NULL)
        return -ENOMEM;
    int error = 0;
    region->size = whole_pages(size);
    region->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (region->fd < 0) {
        error = -errno;
        goto free_region;
    }
    if (!within_file_limit(region->size)) {
        error = -EFBIG;
        goto close_region;
    }
    if (ftruncate(region->fd, (off_t)region->size) != 0 ||
        fcntl(region->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        error = -errno;
        goto close_region;
    }
    error = map(region);
    if (error != 0)
        goto close_region;
    *out = region;
    return 0;

close_region:
    close(region->fd);
free_region:
    free(region);
    return error;
}

int shoal_region_attach(int fd, shoal_region **out)
{
    struct stat status;
    if (fstat(fd, &status) != 0)
        return -errno;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || status.st_size <= 0)
        return -EINVAL;
    if ((seals & F_SEAL_SHRINK) == 0)
        return -EPERM;
    shoal_region *region = calloc(1, sizeof *region);
    if (region == NULL)
        return -ENOMEM;
    int error = 0;
    region->size = (size_t)status.st_size;
    region->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (region->fd < 0) {
        error = -errno;
        goto free_region;
    }
    error = map(region);
    if (error != 0)
        goto close_region;
    *out = region;
    return 0;

close_region:
    close(region->fd);
free_region:
    free(region);
    return error;
}

void *shoal_region_base(const shoal_region *region)
{
    return region->base;
}

size_t shoal_region_size(const shoal_region *region)
{
    return region->size;
}

int shoal_region_fd(const shoal_region *region)
{
    return region->fd;
}

void shoal_region_close(shoal_region *region)
{
    if (region == NULL)
        return;
    munmap(region->base, region->size);
    close(region->fd);
    free(region);
}
