/* sync/object.c: making and attaching the regions of this room's objects, and sleeping in slices. */
#include "sync/object.h"

#include <string.h>

#include "base/clock.h"

int sync_create(const char *name, struct sync_header header, shoal_region **region)
{
    int error = shoal_region_create(name, header.size, region);
    if (error != 0)
        return error;
    sync_write_header(shoal_region_base(*region), header);
    return 0;
}

void sync_write_header(void *base, struct sync_header header)
{
    header.magic = SYNC_MAGIC;
    header.version = SYNC_VERSION;
    memcpy(base, &header, sizeof header);
}

bool sync_header_is(const struct sync_header *header, enum sync_kind kind, uint64_t room)
{
    return header->magic == SYNC_MAGIC && header->version == SYNC_VERSION && header->kind == (uint32_t)kind &&
           header->size <= room;
}

int sync_attach(int fd, enum sync_kind kind, struct sync_header *header, shoal_region **region)
{
    shoal_region *mapped;
    int error = shoal_region_attach(fd, &mapped);
    if (error != 0)
        return error;
    struct sync_header found = {0};
    if (shoal_region_size(mapped) >= sizeof found)
        memcpy(&found, shoal_region_base(mapped), sizeof found);
    if (!sync_header_is(&found, kind, shoal_region_size(mapped))) {
        shoal_region_close(mapped);
        return SHOAL_ECORRUPT;
    }
    *header = found;
    *region = mapped;
    return 0;
}

int sync_sleep(struct eventcount *ec, uint32_t seen, struct slices *slices, int64_t deadline)
{
    const int64_t end = clock_deadline(slices->next);
    slices->next = slices->next < SLICE_LAST / 2 ? slices->next * 2 : SLICE_LAST;
    return eventcount_wait(ec, seen, end < deadline ? end : deadline);
}

bool sync_is_over(int64_t deadline)
{
    return deadline != SHOAL_FOREVER && shoal_clock_now() >= deadline;
}

int64_t sync_patience_ends(bool interruptible, int64_t patience)
{
    return interruptible && patience > 0 ? clock_deadline(patience) : SHOAL_FOREVER;
}
