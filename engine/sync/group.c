/* sync/group.c: many small objects in one region, and where any object lies.
 *
 * The region has places of PLACE bytes; the first holds the group's own header and counts the places given out, by one
 * atomic step, as a fork's child goes on in its parent's group. A place is never used again: nobody can tell when the
 * last process has dropped what lies there. So a group is small, and a user that needs more makes another.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sync/object.h"

#define PLACE 256u
#define PLACES 128u

struct group_shared {
    struct sync_header header; /* count: places */
    uint8_t unused0[128 - 40];
    _Atomic uint32_t used; /* places given out, the header's among them; may run past `count` */
    uint8_t unused1[128 - 4];
};
static_assert(sizeof(struct group_shared) == PLACE, "it lies in the first place");

struct shoal_sync_group {
    shoal_region *region;
    struct group_shared *shared;
};

int shoal_sync_group_create(shoal_sync_group **out)
{
    shoal_sync_group *group = calloc(1, sizeof *group);
    if (group == NULL)
        return -ENOMEM;
    const struct sync_header header = {.kind = SYNC_GROUP, .size = PLACE * PLACES, .count = PLACES};
    int error = sync_create("shoal-group", header, &group->region);
    if (error != 0) {
        free(group);
        return error;
    }
    group->shared = shoal_region_base(group->region);
    atomic_store_explicit(&group->shared->used, 1, memory_order_relaxed);
    *out = group;
    return 0;
}

int shoal_sync_group_attach(int fd, shoal_sync_group **out)
{
    shoal_sync_group *group = calloc(1, sizeof *group);
    if (group == NULL)
        return -ENOMEM;
    struct sync_header header;
    int error = sync_attach(fd, SYNC_GROUP, &header, &group->region);
    if (error != 0)
        goto free_group;
    error = SHOAL_ECORRUPT;
    if (header.size != PLACE * PLACES || header.count != PLACES || header.flags != 0)
        goto close_region;
    group->shared = shoal_region_base(group->region);
    *out = group;
    return 0;

close_region:
    shoal_region_close(group->region);
free_group:
    free(group);
    return error;
}

int shoal_sync_group_fd(const shoal_sync_group *group)
{
    return shoal_region_fd(group->region);
}

void shoal_sync_group_close(shoal_sync_group *group)
{
    if (group == NULL)
        return;
    shoal_region_close(group->region);
    free(group);
}

/* ------------------------------------------------------------------ where objects lie ---- */

int sync_home_create(shoal_sync_group *group, const char *name, struct sync_header header, struct sync_home *home)
{
    *home = (struct sync_home){0};
    if (group == NULL) {
        int error = sync_create(name, header, &home->region);
        home->base = error == 0 ? shoal_region_base(home->region) : NULL;
        return error;
    }
    if (header.size > PLACE)
        return -EMSGSIZE;
    /* Looked at first, so that the count does not wrap however often a full group is asked. */
    if (atomic_load_explicit(&group->shared->used, memory_order_relaxed) >= PLACES)
        return -ENOSPC;
    const uint32_t place = atomic_fetch_add_explicit(&group->shared->used, 1, memory_order_relaxed);
    if (place >= PLACES || place == 0)
        return -ENOSPC;
    home->group = group;
    home->place = place;
    home->base = (char *)group->shared + (size_t)place * PLACE;
    sync_write_header(home->base, header);
    return 0;
}

int sync_home_attach(int fd, enum sync_kind kind, struct sync_header *header, struct sync_home *home)
{
    *home = (struct sync_home){0};
    int error = sync_attach(fd, kind, header, &home->region);
    home->base = error == 0 ? shoal_region_base(home->region) : NULL;
    return error;
}

int sync_home_find(shoal_sync_group *group, uint32_t place, enum sync_kind kind, struct sync_header *header,
                   struct sync_home *home)
{
    if (place == 0 || place >= PLACES)
        return -EINVAL;
    char *base = (char *)group->shared + (size_t)place * PLACE;
    memcpy(header, base, sizeof *header);
    if (!sync_header_is(header, kind, PLACE))
        return SHOAL_ECORRUPT;
    *home = (struct sync_home){.group = group, .place = place, .base = base};
    return 0;
}

void sync_home_close(const struct sync_home *home)
{
    shoal_region_close(home->region); /* NULL in a group, which is closed by whoever made it */
}

int sync_home_fd(const struct sync_home *home)
{
    return home->group != NULL ? shoal_sync_group_fd(home->group) : shoal_region_fd(home->region);
}
