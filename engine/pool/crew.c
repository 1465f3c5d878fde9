/* pool/crew.c: for C programs: forked workers that apply functions, and the thread that supervises them.
 *
 * A shared record of the pool carries the function's address and its context: the workers are forks of this process, so
 * an address means the same in all of them. Called by shoal_pool_start and _stop; map.c hands the work out.
 */
#include "pool/crew.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"

#define START_AGAIN (50 * SHOAL_MILLISECOND)
#define FRUITLESS_MOST 8u
#define KILLS_FOR_ONE 16u /* workers that were killed count as one that ended by itself */
#define START_TRIES 20    /* in vain, with no worker alive, before the pool is given up */

struct crew_place {
    shoal_pool *pool;
    shoal_process *process;
    uint32_t place, owner;
};

struct crew {
    shoal_start_options options;
    pthread_t supervisor;
    pthread_mutex_t map_lock;
    _Atomic bool stopping;
    _Atomic int broken;
    uint32_t alive;     /* the supervisor's, after start */
    uint32_t fruitless; /* workers in a row that ended before they finished a task, weighed: the supervisor's */
    struct crew_place places[];
};

/* -- the worker -- */

static int answer_item(shoal_task *task, const struct map_order *order, void *context, const shoal_item *input,
                       struct map_result *result)
{
    memset(result->output, 0, order->output_size);
    result->code = order->function(input->data, input->size, result->output, order->output_size,
                                   order->context_size > 0 ? context : NULL);
    const shoal_item answer = {.data = result, .size = sizeof *result + order->output_size};
    return shoal_task_answer(task, &answer);
}

static void do_task(shoal_worker *worker, shoal_task *task)
{
    shoal_item shared, input;
    struct map_order order;
    if (shoal_worker_shared(worker, shoal_task_shared(task), &shared) != 0 || shared.size < sizeof order)
        goto finish;
    memcpy(&order, shared.data, sizeof order);
    if (shared.size - sizeof order != order.context_size)
        goto finish;
    struct map_result *result = malloc(sizeof *result + order.output_size);
    void *context = malloc(order.context_size + 1);
    if (result != NULL && context != NULL) {
        memcpy(context, (const uint8_t *)shared.data + sizeof order, order.context_size);
        while (shoal_task_next(task, &input) == 0) {
            if (answer_item(task, &order, context, &input, result) != 0)
                break; /* no memory for the result: the owner sees an item that was not answered */
        }
    }
    free(context);
    free(result);
finish:
    shoal_task_finish(task);
}

static int pin(uint32_t cpu)
{
    cpu_set_t *set = CPU_ALLOC(cpu + 1);
    if (set == NULL)
        return -ENOMEM;
    CPU_ZERO_S(CPU_ALLOC_SIZE(cpu + 1), set);
    CPU_SET_S(cpu, CPU_ALLOC_SIZE(cpu + 1), set);
    int error = sched_setaffinity(0, CPU_ALLOC_SIZE(cpu + 1), set) == 0 ? 0 : -errno;
    CPU_FREE(set);
    return error;
}

/* How many threads the team of a worker has is said by its environment, where nobody has said so yet. */
static void share_threads(const shoal_start_options *options)
{
    char text[16];
    uint32_t each = options->threads;
    if (each == 0)
        each = shoal_cpu_count() / options->workers;
    snprintf(text, sizeof text, "%u", (unsigned)(each > 0 ? each : 1));
    (void)setenv("SHOAL_NUM_THREADS", text, options->threads != 0);
}

static bool is_above_limit(const shoal_start_options *options)
{
    uint64_t memory;
    return options->memory_limit > 0 && shoal_memory_private(&memory) == 0 && memory > options->memory_limit;
}

static int worker_main(void *argument)
{
    struct crew_place *place = argument;
    const shoal_start_options *options = &place->pool->crew->options;
    shoal_worker *worker;
    /* Ctrl-C is for the program, which stops its pool; a worker goes when told, or with the program. */
    signal(SIGINT, SIG_IGN);
    share_threads(options);
    if (options->cpu_count > 0 && pin(options->cpus[place->place % options->cpu_count]) != 0)
        return 1;
    int status = options->worker_start != NULL ? options->worker_start(options->context) : 0;
    if (status != 0)
        return status;
    if (shoal_worker_open(place->pool, place->place, place->owner, &worker) != 0)
        return 1;
    while (!is_above_limit(options)) {
        shoal_task *task;
        int error = shoal_worker_claim(worker, SHOAL_FOREVER, &task);
        if (error == -ESHUTDOWN)
            break;
        if (error == 0)
            do_task(worker, task);
    }
    shoal_worker_close(worker);
    if (options->worker_exit != NULL)
        options->worker_exit(options->context);
    return 0;
}

/* -- the supervisor -- */

static int start_worker(struct crew *crew, struct crew_place *place)
{
    int error = shoal_pool_enlist(place->pool, place->place, &place->owner);
    if (error != 0)
        return error;
    const shoal_process_options options = {.main = worker_main, .context = place, .die_with_parent = 1};
    error = shoal_process_start(&options, &place->process);
    if (error != 0)
        return error;
    error = shoal_pool_watch(place->pool, place->place, shoal_process_pid(place->process),
                             shoal_process_fd(place->process));
    if (error != 0) {
        (void)shoal_process_signal(place->process, SIGKILL);
        shoal_process_close(place->process);
        place->process = NULL;
        return error;
    }
    crew->alive++;
    return 0;
}

static void bury_worker(struct crew *crew, struct crew_place *place)
{
    shoal_exit how;
    uint32_t held = 0;
    shoal_worker_numbers did = {0};
    (void)shoal_pool_worker_numbers(place->pool, place->place, &did);
    bool known = shoal_process_wait(place->process, SHOAL_SECOND, &how) == 0;
    shoal_process_close(place->process);
    place->process = NULL;
    crew->alive--;
    (void)shoal_pool_bury(place->pool, place->place, known ? &how : NULL, &held);
    /* One that was killed from outside says little about the next one. */
    const bool was_killed = known && (how.signal == SIGKILL || how.signal == SIGTERM);
    crew->fruitless += was_killed ? 1 : KILLS_FOR_ONE;
    if (held > 0 || did.tasks > 0) {
        crew->fruitless = 0;
    } else if (crew->fruitless > KILLS_FOR_ONE * (FRUITLESS_MOST + 2 * crew->options.workers)) {
        /* Starting more of them would go on for ever. */
        atomic_store_explicit(&crew->broken, SHOAL_EWORKERDIED, memory_order_relaxed);
        shoal_pool_nudge(place->pool);
    }
}

/* Start what is missing; false: something still is. */
static bool complete(struct crew *crew, shoal_pool *pool, int *tries)
{
    int error = atomic_load_explicit(&crew->broken, memory_order_relaxed);
    if (error != 0)
        return true; /* given up: nobody is missing any more */
    for (uint32_t i = 0; i < pool->table.worker_count && error == 0; i++) {
        if (crew->places[i].process == NULL)
            error = start_worker(crew, &crew->places[i]);
    }
    if (error == 0 || crew->alive > 0) {
        *tries = 0;
    } else if (++*tries == START_TRIES) {
        atomic_store_explicit(&crew->broken, error, memory_order_relaxed);
        shoal_pool_nudge(pool);
    }
    return error == 0;
}

static void *supervise(void *argument)
{
    shoal_pool *pool = argument;
    struct crew *crew = pool->crew;
    int tries = 0;
    while (!atomic_load_explicit(&crew->stopping, memory_order_relaxed) || crew->alive > 0) {
        shoal_pool_event events[16];
        uint32_t count = 0;
        bool all = atomic_load_explicit(&crew->stopping, memory_order_relaxed) || complete(crew, pool, &tries);
        if (shoal_pool_supervise(pool, all ? SHOAL_FOREVER : START_AGAIN, events, 16, &count) != 0)
            continue;
        for (uint32_t i = 0; i < count; i++) {
            if (events[i].kind == SHOAL_POOL_WORKER_ENDED)
                bury_worker(crew, &crew->places[events[i].place]);
        }
    }
    return NULL;
}

pthread_mutex_t *crew_lock(shoal_pool *pool)
{
    return &pool->crew->map_lock;
}

int crew_broken(const shoal_pool *pool)
{
    return pool->crew == NULL ? -EINVAL : atomic_load_explicit(&pool->crew->broken, memory_order_relaxed);
}

static void free_crew(struct crew *crew)
{
    free((void *)(uintptr_t)crew->options.cpus);
    free(crew);
}

/* A crew with these options, its own copy of the list of cpus among them. */
static int make_crew(const shoal_start_options *options, uint32_t workers, struct crew **out)
{
    struct crew *crew = calloc(1, sizeof *crew + workers * sizeof crew->places[0]);
    if (crew == NULL)
        return -ENOMEM;
    crew->options = *options;
    crew->options.workers = workers;
    crew->options.cpus = NULL;
    if (options->cpu_count > 0) {
        uint32_t *cpus = malloc(options->cpu_count * sizeof *cpus);
        if (cpus == NULL) {
            free(crew);
            return -ENOMEM;
        }
        memcpy(cpus, options->cpus, options->cpu_count * sizeof *cpus);
        crew->options.cpus = cpus;
    }
    *out = crew;
    return 0;
}

/* Whether this process may use all of these cpus. */
static bool may_use(const uint32_t *cpus, uint32_t count)
{
    cpu_set_t allowed;
    if (count == 0)
        return true;
    if (cpus == NULL || sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return cpus != NULL; /* more cpus than the fixed set holds: the workers will tell */
    for (uint32_t i = 0; i < count; i++) {
        if (cpus[i] >= CPU_SETSIZE || !CPU_ISSET(cpus[i], &allowed))
            return false;
    }
    return true;
}

int shoal_pool_start(const shoal_start_options *start, shoal_pool **out)
{
    static const shoal_start_options defaults;
    if (start == NULL)
        start = &defaults;
    if (!may_use(start->cpus, start->cpu_count))
        return -EINVAL;
    const shoal_pool_options options = {.workers = start->workers != 0 ? start->workers : shoal_cpu_count()};
    shoal_pool *pool;
    int error = shoal_pool_create(&options, &pool);
    if (error != 0)
        return error;
    struct crew *crew;
    error = make_crew(start, options.workers, &crew);
    if (error != 0) {
        shoal_pool_close(pool);
        return error;
    }
    pool->crew = crew;
    pthread_mutex_init(&crew->map_lock, NULL);
    for (uint32_t i = 0; i < options.workers && error == 0; i++) {
        crew->places[i].pool = pool;
        crew->places[i].place = i;
        error = start_worker(crew, &crew->places[i]);
    }
    if (error == 0)
        error = thread_start(&crew->supervisor, supervise, pool, 0);
    if (error != 0) {
        for (uint32_t i = 0; i < options.workers; i++) {
            if (crew->places[i].process != NULL) {
                (void)shoal_process_signal(crew->places[i].process, SIGKILL);
                bury_worker(crew, &crew->places[i]);
            }
        }
        pool->crew = NULL;
        free_crew(crew);
        shoal_pool_close(pool);
        return error;
    }
    *out = pool;
    return 0;
}

void shoal_pool_stop(shoal_pool *pool, int kill)
{
    if (pool == NULL || !pool_is_owner(pool))
        return;
    struct crew *crew = pool->crew;
    atomic_store_explicit(&crew->stopping, true, memory_order_relaxed);
    shoal_pool_shut(pool, kill ? 2 : 1);
    if (kill) {
        /* Through the pool's own descriptors: the handles in `places` are the supervisor's. */
        pthread_mutex_lock(&pool->lock);
        for (uint32_t i = 0; i < pool->table.worker_count; i++)
            pool_kill(&pool->places[i]);
        pthread_mutex_unlock(&pool->lock);
    }
    shoal_pool_request_attention(pool, 0, 1);
    pthread_join(crew->supervisor, NULL);
    pool->crew = NULL;
    free_crew(crew);
    shoal_pool_close(pool);
}
