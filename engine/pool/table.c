/* pool/table.c: makes the table of tasks, maps it in another process, and reads and writes items as bytes.
 *
 * Whatever is read from the region is checked here once, on attach, and kept in struct table: nobody uses an offset or
 * a count from the region itself later. Called by pool.c and worker.c.
 */
#include "pool/deaths.h"
#include "pool/layout.h"

#include <errno.h>
#include <string.h>

static uint64_t align_up(uint64_t value)
{
    return (value + 127) & ~UINT64_C(127);
}

static uint64_t lay_out(struct table_header *header)
{
    uint64_t at = sizeof *header;
    header->workers_at = at;
    at = align_up(at + (uint64_t)header->workers * sizeof(struct worker_record));
    header->shares_at = at;
    at = align_up(at + (uint64_t)POOL_SHARES * sizeof(struct share_record));
    header->ready_at = at;
    at = align_up(at + (uint64_t)header->slots * 2 * sizeof(uint64_t));
    header->completions_at = at;
    at = align_up(at + (uint64_t)header->slots * header->workers * sizeof(uint32_t));
    header->slots_at = at;
    return at + (uint64_t)header->slots * sizeof(struct slot);
}

static void point_into(struct table *table, const struct table_header *checked)
{
    uint8_t *base = shoal_region_base(table->region);
    table->header = (struct table_header *)(void *)base;
    table->workers = (struct worker_record *)(void *)(base + checked->workers_at);
    table->shares = (struct share_record *)(void *)(base + checked->shares_at);
    table->ready = (_Atomic uint64_t *)(void *)(base + checked->ready_at);
    table->completions = (_Atomic uint32_t *)(void *)(base + checked->completions_at);
    table->slots = (struct slot *)(void *)(base + checked->slots_at);
    table->slot_count = checked->slots;
    table->worker_count = checked->workers;
}

int table_create(uint32_t slots, uint32_t workers, struct table *out)
{
    struct table_header header = {
        .magic = POOL_MAGIC,
        .version = POOL_VERSION,
        .slot_size = sizeof(struct slot),
        .slots = slots,
        .workers = workers,
        .cpus = shoal_cpu_count(),
    };
    header.size = lay_out(&header);
    struct table table;
    int error = shoal_region_create("shoal-pool", header.size, &table.region);
    if (error != 0)
        return error;
    memcpy(shoal_region_base(table.region), &header, offsetof(struct table_header, unused0));
    point_into(&table, &header);
    for (uint32_t i = 0; i < workers; i++)
        life_prepare(&table.workers[i]);
    *out = table;
    return 0;
}

int table_attach(int fd, struct table *out)
{
    struct table table;
    int error = shoal_region_attach(fd, &table.region);
    if (error != 0)
        return error;
    struct table_header header, expected;
    error = SHOAL_ECORRUPT;
    if (shoal_region_size(table.region) < sizeof header)
        goto close_region;
    memcpy(&header, shoal_region_base(table.region), offsetof(struct table_header, unused0));
    if (header.magic != POOL_MAGIC || header.version != POOL_VERSION || header.slot_size != sizeof(struct slot))
        goto close_region;
    if (header.slots == 0 || header.slots > POOL_SLOTS_MOST || (header.slots & (header.slots - 1)) != 0 ||
        header.workers == 0 || header.workers > SHOAL_POOL_WORKERS)
        goto close_region;
    expected = header;
    if (lay_out(&expected) != header.size || header.size > shoal_region_size(table.region) ||
        memcmp(&expected, &header, offsetof(struct table_header, unused0)) != 0)
        goto close_region;
    point_into(&table, &header);
    *out = table;
    return 0;

close_region:
    shoal_region_close(table.region);
    return error;
}

void table_close(struct table *table)
{
    shoal_region_close(table->region);
    table->region = NULL;
}
