/* pool/map.c: shoal_pool_map: a function over an array, handed out in tasks whose size follows the measured time of
 * items.
 *
 * The calling thread feeds and collects by itself. A task's tag is the number of its first item. Threads that map on
 * the same pool take turns (crew_lock), so every completion is this map's. Called by C programs only.
 */
#include "pool/crew.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PROGRESS_INTERVAL (100 * SHOAL_MILLISECOND)
#define TASKS_AHEAD 4u /* a worker: enough for the time it takes to wake the caller, who hands out more */

struct map_job {
    shoal_pool *pool;
    const uint8_t *inputs;
    uint8_t *outputs;
    size_t input_size, output_size, count;
    const shoal_map_options *options;
    uint32_t shared;
    shoal_batch *batch;
    shoal_pace pace;
    uint32_t tasks_out, tasks_most;
    size_t next, settled; /* items handed out; items that have a result or an error */
    size_t first_failed;
    int failure;      /* of that item */
    uint32_t *deaths; /* one an item, if there are retries */
    int64_t told;     /* when the progress function was called last */
    bool cancelled;
};

static void settle(struct map_job *job, size_t item, int code)
{
    if (item >= job->count)
        return;
    if (job->options->codes != NULL)
        job->options->codes[item] = code;
    if (code != 0 && (job->failure == 0 || item < job->first_failed)) {
        job->first_failed = item;
        job->failure = code;
    }
    job->settled++;
}

static int fill_batch(struct map_job *job, uint32_t count)
{
    shoal_batch_clear(job->batch, NULL);
    if (job->input_size == sizeof(uint64_t))
        return shoal_batch_add_words(job->batch, 0, job->inputs + job->next * sizeof(uint64_t), count);
    for (uint32_t i = 0; i < count; i++) {
        const shoal_item item = {.data = job->inputs + (job->next + i) * job->input_size, .size = job->input_size};
        int error = shoal_batch_add(job->batch, &item);
        if (error != 0)
            return error;
    }
    return 0;
}

static int hand_out(struct map_job *job)
{
    while (job->next < job->count && job->tasks_out < job->tasks_most) {
        size_t left = job->count - job->next;
        uint32_t count = job->options->chunk != 0 ? job->options->chunk : shoal_pace_next(&job->pace, left);
        if (count > left)
            count = (uint32_t)left;
        int error = fill_batch(job, count);
        if (error != 0)
            return error;
        const shoal_task_options options = {
            .tag = job->next,
            .group = job->shared, /* never 0, and this map's alone */
            .shared = job->shared,
            .time_limit = job->options->time_limit,
        };
        error = shoal_pool_submit(job->pool, job->batch, &options);
        if ((error == -EAGAIN || error == -ENOMEM) && job->tasks_out > 0)
            break; /* what comes back makes room */
        if (error != 0)
            return error;
        job->next += count;
        job->tasks_out++;
    }
    shoal_pool_wake(job->pool);
    return 0;
}

/* Whether the item that a worker left undone is given out again. */
static bool is_tried_again(struct map_job *job, const shoal_completion *completion)
{
    const size_t held = (size_t)completion->tag + completion->finished;
    if (completion->outcome != SHOAL_EWORKERDIED || held >= job->count)
        return false;
    return completion->blameless || (job->deaths != NULL && job->deaths[held]++ < job->options->retries);
}

/* One task came back: its results to their places; what a dead worker left goes out again or is settled as failed. */
static void take_in(struct map_job *job, shoal_completion *completion)
{
    size_t item = (size_t)completion->tag + completion->first;
    shoal_item result;
    while (shoal_completion_next(completion, &result) == 0) {
        struct map_result head = {.code = SHOAL_ECORRUPT};
        if (item < job->count && result.size == sizeof head + job->output_size) {
            memcpy(&head, result.data, sizeof head);
            if (job->output_size > 0)
                memcpy(job->outputs + item * job->output_size, (const uint8_t *)result.data + sizeof head,
                       job->output_size);
        }
        settle(job, item++, head.code);
    }
    shoal_pace_note(&job->pace, completion);

    uint32_t from = completion->finished;
    if (from < completion->items && !job->cancelled && !is_tried_again(job, completion)) {
        settle(job, (size_t)completion->tag + from, completion->outcome);
        from++;
    }
    if (from < completion->items && !job->cancelled && crew_broken(job->pool) == 0) {
        if (shoal_pool_resume(job->pool, completion, from) == 0) {
            shoal_pool_wake(job->pool);
            return;
        }
    }
    for (; from < completion->items; from++)
        settle(job, (size_t)completion->tag + from, job->cancelled ? SHOAL_ECANCELLED : SHOAL_EWORKERDIED);
    shoal_pool_release(job->pool, completion);
    job->tasks_out--;
}

/* Tell how far the map is, some ten times a second and at the end, and cancel it if that is the answer. */
static void tell_progress(struct map_job *job)
{
    if (job->options->progress == NULL || job->cancelled)
        return;
    const int64_t now = shoal_clock_now();
    if (job->settled < job->count && now - job->told < PROGRESS_INTERVAL)
        return;
    job->told = now;
    if (job->options->progress(job->settled, job->count, job->options->progress_context) == 0)
        return;
    job->cancelled = true;
    (void)shoal_pool_cancel(job->pool, job->shared, 0);
    while (job->next < job->count)
        settle(job, job->next++, SHOAL_ECANCELLED);
}

static int run(struct map_job *job)
{
    const int64_t started = shoal_clock_now();
    int error = 0;
    while (job->settled < job->count) {
        uint64_t nudges = shoal_pool_nudges(job->pool);
        tell_progress(job);
        if (error == 0)
            error = crew_broken(job->pool);
        if (error == 0)
            error = hand_out(job);
        if (error != 0 && job->tasks_out == 0)
            return error;
        shoal_completion completion;
        bool any = false;
        while (shoal_pool_collect(job->pool, &completion) == 0) {
            take_in(job, &completion);
            any = true;
        }
        if (any)
            continue;
        if (crew_broken(job->pool) != 0)
            return crew_broken(job->pool); /* nobody is left to do what is out */
        uint32_t mark = job->next < job->count ? job->tasks_most / 2 : 1;
        (void)shoal_pool_wait(job->pool, mark, nudges, shoal_clock_now() - started,
                              job->options->progress != NULL ? PROGRESS_INTERVAL : SHOAL_FOREVER);
    }
    tell_progress(job);
    return job->failure;
}

int shoal_pool_map(shoal_pool *pool, shoal_map_function function, const void *inputs, size_t input_size, void *outputs,
                   size_t output_size, size_t count, const shoal_map_options *options)
{
    static const shoal_map_options defaults;
    if (function == NULL || pool->crew == NULL || !pool_is_owner(pool) ||
        (count > 0 && inputs == NULL && input_size > 0))
        return -EINVAL;
    if (count == 0)
        return 0;
    if (options == NULL)
        options = &defaults;
    struct map_job job = {
        .pool = pool,
        .inputs = inputs,
        .outputs = outputs,
        .input_size = input_size,
        .output_size = output_size,
        .count = count,
        .options = options,
        .pace = {.workers = pool->table.worker_count},
        .tasks_most = options->chunk != 0 ? pool->table.slot_count / 2 : pool->table.worker_count * TASKS_AHEAD,
    };
    size_t order_size = sizeof(struct map_order) + options->context_size;
    struct map_order *order = malloc(order_size);
    if (order == NULL)
        return -ENOMEM;
    *order = (struct map_order){function, output_size, options->context_size};
    if (options->context_size > 0)
        memcpy(order + 1, options->context, options->context_size);
    int error = shoal_batch_create(&job.batch);
    if (error != 0)
        goto free_order;
    if (options->retries > 0) {
        job.deaths = calloc(count, sizeof *job.deaths);
        error = -ENOMEM;
        if (job.deaths == NULL)
            goto close_batch;
    }
    for (size_t i = 0; i < count && options->codes != NULL; i++)
        options->codes[i] = SHOAL_ECANCELLED; /* until it has its own: there may be nobody left to do it */
    pthread_mutex_lock(crew_lock(pool));
    const shoal_item shared = {.data = order, .size = order_size};
    error = shoal_pool_share(pool, &shared, &job.shared);
    if (error == 0) {
        error = run(&job);
        shoal_pool_unshare(pool, job.shared);
    }
    pthread_mutex_unlock(crew_lock(pool));
    free(job.deaths);
close_batch:
    shoal_batch_close(job.batch);
free_order:
    free(order);
    return error;
}
