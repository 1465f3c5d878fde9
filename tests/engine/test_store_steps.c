/* test_store_steps.c: a process that is stopped, or killed, before or behind any one system call of what it does with a
 * store, while another uses the same store (steps.h).
 *
 * The other is this program. While the one is stopped nothing but what this program does changes, so it knows of each
 * key which values it may have, and of a key that it looked at or put which one it has. A value is told by its size.
 * When the one goes on, what it was at comes on top; when it was killed, that was done or it was not. Nothing else is
 * ever seen: no other value, no error, no damage, no warning of a cut, no wait for a dead process's lock, and no file
 * that stays. The random choices are repeated by the seed that is printed.
 */
#define LIMIT 60
#include "steps.h"
#include "store_model.h"

#define ENOUGH (8 * SHOAL_SECOND) /* for all scenarios, once killed and once stopped */
#define ROUNDS 4                  /* at most, of all stops of a scenario, with other random choices */

/* ---- a trial ---- */

static int get_it(struct stage *stage);

static void prepare(struct stage *stage)
{
    static const size_t others[KEYS] = {
        [SMALL_ONE] = SMALL, [SMALL_TWO] = SMALL + 1, [MIDDLE_ONE] = MIDDLE, [LARGE_ONE] = LARGE};
    const struct scenario *scenario = stage->scenario;
    remove_tree(stage->path);
    for (unsigned i = 0; i < KEYS; i++) {
        stage->may[i].count = stage->ever[i].count = stage->late[i].count = 0;
        const bool there = !scenario->alone && !(scenario->few && others[i] >= MIDDLE);
        const size_t size = i == WORKED_ON ? scenario->before : there ? others[i] : MISSING;
        set(&stage->may[i], size);
    }
    stage->serial = 0;
    open_store(stage);
    for (unsigned i = 0; i < KEYS; i++)
        if (stage->may[i].sizes[0] != MISSING && stage->may[i].sizes[0] != DAMAGED)
            CHECK(put(stage, i, stage->may[i].sizes[0]) == 0);
    if (scenario->prepare != NULL)
        scenario->prepare(stage);
    memset(stage->touched, 0, sizeof stage->touched);
    memcpy(stage->ever, stage->may, sizeof stage->ever);
}

/* What the one does comes on top: surely, or perhaps. */
static void take_effect(struct stage *stage, bool surely)
{
    const struct scenario *scenario = stage->scenario;
    for (unsigned i = 0; i < KEYS; i++) {
        if (i != WORKED_ON && scenario->takes == NONE)
            continue;
        if (scenario->before == DAMAGED && stage->touched[i] && !has(&stage->may[i], DAMAGED))
            continue; /* what was put in its place stays */
        const size_t after = i == WORKED_ON ? scenario->after : MISSING;
        if (surely && !stage->touched[i] && scenario->takes != PERHAPS)
            set(&stage->may[i], after);
        else
            add(&stage->may[i], after);
        add(&stage->ever[i], after);
    }
}

static pid_t begin(struct stage *stage, bool opens)
{
    const pid_t child = fork_child(stage->scenario->name);
    if (child == 0) {
        if (opens) {
            close_store(stage);
            open_store(stage);
        }
        step_mark(true);
        stage->outcome->result = stage->scenario->operate(stage);
        step_mark(false);
        _exit(0);
    }
    CHECK(child > 0);
    return child;
}

static int try_once(struct stage *stage, int count, bool kill)
{
    const struct scenario *scenario = stage->scenario;
    prepare(stage);
    const pid_t child = begin(stage, random_below(2) == 0);
    if (random_below(3) == 0) {
        close_store(stage);
        open_store(stage);
    }
    const int came = step_lead_calls(child, count);
    naps = 0;
    if (kill) {
        kill_and_reap(child);
        take_effect(stage, came < count);
        if (random_below(2) == 0)
            expect_all(stage);
    } else {
        take_effect(stage, came < count);
        if (random_below(2) == 0)
            expect_all(stage);
        for (uint64_t left = 1 + random_below(2) * random_below(ACTS); left != 0; left--) /* more hide one another */
            act(stage);
        step_release(child);
        naps = 0;
        const bool removed = has(&stage->ever[WORKED_ON], MISSING);
        const struct outcome *outcome = stage->outcome;
        if (!(outcome->result == 0 || (outcome->result == -ENOENT && removed)))
            fprintf(stderr, "%s: %d\n", scenario->name, outcome->result);
        CHECK(outcome->result == 0 || (outcome->result == -ENOENT && removed));
        if (scenario->operate == get_it && outcome->result == 0)
            CHECK(has(&stage->ever[WORKED_ON], (size_t)outcome->seen));
        else if (came >= count)
            take_effect(stage, true);
        for (unsigned i = 0; i < KEYS; i++)
            add_all(&stage->may[i], &stage->late[i]);
        expect_all(stage);
    }
    for (uint64_t left = random_below(ACTS); left != 0; left--)
        act(stage);
    settle(stage);
    CHECK(naps == 0);
    close_store(stage);
    return came;
}

/* ---- what the one does ---- */

static int put_it(struct stage *stage)
{
    return put(stage, WORKED_ON, stage->scenario->after);
}

static int remove_it(struct stage *stage)
{
    const shoal_key key = key_of(WORKED_ON);
    return shoal_folder_remove(stage->folder, &key);
}

static int get_it(struct stage *stage)
{
    stage->outcome->seen = look(stage, WORKED_ON);
    return 0;
}

static int open_and_put(struct stage *stage)
{
    open_store(stage);
    return put_it(stage);
}

static int clear_store(struct stage *stage)
{
    return shoal_store_clear(stage->store);
}

static int clear_folder(struct stage *stage)
{
    return shoal_folder_clear(stage->folder);
}

static int reduce_bytes(struct stage *stage)
{
    return shoal_store_reduce(stage->store, &(shoal_store_limits){.bytes = SMALL + 400, .items = UINT64_MAX}, NULL);
}

static int reduce_items(struct stage *stage)
{
    return shoal_store_reduce(stage->store, &(shoal_store_limits){.bytes = UINT64_MAX, .items = 1}, NULL);
}

static int reduce_age(struct stage *stage)
{
    const shoal_store_limits limits = {.bytes = UINT64_MAX, .items = UINT64_MAX, .age = 1};
    return shoal_store_reduce(stage->store, &limits, NULL);
}

static int verify_it(struct stage *stage)
{
    unsigned damaged = 0;
    return shoal_store_verify(stage->store, 1, count_damaged, &damaged);
}

/* ---- what is to be so before ---- */

static void file_of(const struct stage *stage, bool small, char path[256])
{
    const shoal_key key = key_of(WORKED_ON);
    char name[FILE_NAME];
    file_name(&key, name);
    (void)snprintf(path, 256, "%s/%s", stage->folder_path, small ? SHELF_NAME : name);
}

static void make_waste(struct stage *stage)
{
    for (unsigned i = 0; i < WASTE_PUTS; i++)
        CHECK(put(stage, WORKED_ON, stage->scenario->before) == 0);
}

/* Change a byte of the value that is worked on. */
static void damage(struct stage *stage)
{
    const size_t size = stage->scenario->damaged;
    char path[256];
    uint8_t *data, *place = NULL;
    CHECK(put(stage, WORKED_ON, size) == 0);
    file_of(stage, size < MIDDLE, path);
    const size_t length = load_file(path, &data);
    const shoal_key key = key_of(WORKED_ON);
    for (size_t at = 0; place == NULL; at += 64) {
        CHECK(at < length);
        if (data[at] == pattern(&key, size, 0) && data[at + 40] == pattern(&key, size, 40))
            place = data + at + 40;
    }
    *place ^= 1;
    store_file(path, data, length);
    free(data);
}

/* Have a writer's death leave an older value under the newer: on the shelf, or in a file. */
static void leave_older(struct stage *stage)
{
    char path[256], aside[256];
    uint8_t *data;
    const bool small = stage->scenario->before == SMALL + 3;
    CHECK(put(stage, WORKED_ON, small ? SMALL + 9 : MIDDLE + 9) == 0);
    file_of(stage, small, path);
    (void)snprintf(aside, sizeof aside, "%s/aside", stage->root);
    size_t length = load_file(path, &data);
    if (!small)
        CHECK(rename(path, aside) == 0);
    CHECK(put(stage, WORKED_ON, stage->scenario->before) == 0);
    if (small) {
        const int fd = open(path, O_WRONLY);
        CHECK(pwrite(fd, data + sizeof(struct shelf_head), length - sizeof(struct shelf_head),
                     sizeof(struct shelf_head)) > 0);
        (void)close(fd);
    } else {
        CHECK(rename(aside, path) == 0);
    }
    free(data);
    close_store(stage);
    open_store(stage);
}

static const struct scenario scenarios[] = {
    {.name = "put the first", .after = SMALL + 2, .alone = true, .operate = put_it},
    {.name = "open and put", .after = SMALL + 2, .alone = true, .operate = open_and_put},
    {.name = "put small", .after = SMALL + 2, .operate = put_it},
    {.name = "put small for small", .before = SMALL + 3, .after = SMALL + 2, .operate = put_it},
    {.name = "put small for middle", .before = MIDDLE + 3, .after = SMALL + 2, .operate = put_it},
    {.name = "put small for large", .before = LARGE + 3, .after = SMALL + 2, .operate = put_it},
    {.name = "put and compact",
     .before = WASTE_SIZE,
     .after = WASTE_SIZE + 1,
     .prepare = make_waste,
     .operate = put_it},
    {.name = "put middle", .after = MIDDLE + 2, .operate = put_it},
    {.name = "put middle for small", .before = SMALL + 3, .after = MIDDLE + 2, .operate = put_it},
    {.name = "put middle for middle", .before = MIDDLE + 3, .after = MIDDLE + 2, .operate = put_it},
    {.name = "put large", .after = LARGE + 2, .operate = put_it},
    {.name = "put large for small", .before = SMALL + 3, .after = LARGE + 2, .operate = put_it},
    {.name = "put large for large", .before = LARGE + 3, .after = LARGE + 2, .operate = put_it},
    {.name = "put durably",
     .flags = SHOAL_STORE_DURABLE,
     .before = SMALL + 3,
     .after = SMALL + 2,
     .alone = true,
     .operate = put_it},
    {.name = "put by a name",
     .flags = SHOAL_STORE_NAMED_FILES,
     .before = SMALL + 3,
     .after = SMALL + 2,
     .alone = true,
     .operate = put_it},
    {.name = "get small", .before = SMALL + 3, .after = SMALL + 3, .operate = get_it},
    {.name = "get middle", .before = MIDDLE + 3, .after = MIDDLE + 3, .operate = get_it},
    {.name = "get large", .before = LARGE + 3, .after = LARGE + 3, .operate = get_it},
    {.name = "get a copy",
     .flags = SHOAL_STORE_COPIES,
     .before = LARGE + 3,
     .after = LARGE + 3,
     .alone = true,
     .operate = get_it},
    {.name = "remove small", .before = SMALL + 3, .operate = remove_it},
    {.name = "remove the last", .before = SMALL + 3, .alone = true, .operate = remove_it},
    {.name = "remove middle", .before = MIDDLE + 3, .operate = remove_it},
    {.name = "remove large", .before = LARGE + 3, .operate = remove_it},
    {.name = "clear the store", .before = SMALL + 3, .few = true, .takes = ALL, .operate = clear_store},
    {.name = "clear the folder", .before = MIDDLE + 3, .takes = ALL, .operate = clear_folder},
    {.name = "verify what is right", .before = SMALL + 3, .few = true, .after = SMALL + 3, .operate = verify_it},
    {.name = "remove one of two", .before = SMALL + 3, .few = true, .prepare = leave_older, .operate = remove_it},
    {.name = "remove with older file", .before = SMALL + 4, .few = true, .prepare = leave_older, .operate = remove_it},
    {.name = "clear with older file",
     .before = SMALL + 4,
     .few = true,
     .prepare = leave_older,
     .takes = ALL,
     .operate = clear_store},
    {.name = "verify damaged small",
     .before = DAMAGED,
     .few = true,
     .damaged = SMALL + 5,
     .prepare = damage,
     .operate = verify_it},
    {.name = "verify damaged middle",
     .few = true,
     .before = DAMAGED,
     .damaged = MIDDLE + 5,
     .prepare = damage,
     .operate = verify_it},
    {.name = "verify damaged large",
     .before = DAMAGED,
     .few = true,
     .damaged = LARGE + 5,
     .prepare = damage,
     .operate = verify_it},
    {.name = "reduce by bytes", .before = SMALL + 3, .few = true, .takes = PERHAPS, .operate = reduce_bytes},
    {.name = "reduce by items", .before = SMALL + 3, .few = true, .takes = PERHAPS, .operate = reduce_items},
    {.name = "reduce by age", .before = SMALL + 3, .few = true, .takes = ALL, .operate = reduce_age},
};

static void open_stage(struct stage *stage, const struct scenario *scenario)
{
    *stage = (struct stage){.scenario = scenario, .outcome = shared_memory(sizeof *stage->outcome)};
    /* in memory, where there is such a place: what is seen is the same, in a third of the time */
    (void)strcpy(stage->root, "/dev/shm/shoal-test-store-XXXXXX");
    if (mkdtemp(stage->root) == NULL) {
        (void)strcpy(stage->root, "/tmp/shoal-test-store-XXXXXX");
        CHECK(mkdtemp(stage->root) != NULL);
    }
    (void)snprintf(stage->path, sizeof stage->path, "%s/store", stage->root);
    (void)snprintf(stage->folder_path, sizeof stage->folder_path, "%s/function", stage->path);
}

static void close_stage(struct stage *stage)
{
    remove_tree(stage->root);
    munmap(stage->outcome, sizeof *stage->outcome);
}

/* One scenario alone, for who looks into it; NULL: whether all are. */
static bool is_asked_for(const char *name)
{
    const char *only = getenv("SHOAL_STEPS");
    return only == NULL || (name != NULL && strcmp(only, name) == 0);
}

/* The stops of each scenario, in an order that spreads them, as far as its share of the time goes; what one leaves the
 * others have. What is seen behind a call is what is seen before the next, so every second stop is enough. */
static void go_through(bool kill)
{
    const int count = (int)(sizeof scenarios / sizeof scenarios[0]);
    const int64_t end = shoal_clock_now() + ENOUGH;
    int stops = 0, calls = 0;
    struct stage stage;
    open_stage(&stage, NULL);
    (void)seed_random();
    for (int i = 0; i < count; i++) {
        const int64_t share = shoal_clock_now() + (end - shoal_clock_now()) / (is_asked_for(NULL) ? count - i : 1);
        if (!is_asked_for(scenarios[i].name))
            continue;
        stage.scenario = &scenarios[i];
        const int length = try_once(&stage, INT32_MAX, kill) / 2 + 1, stride = length % 37 == 0 ? 41 : 37;
        int tried = 0, at = (int)random_below((uint64_t)length);
        for (; tried < (kill ? 1 : ROUNDS) * length && (tried == 0 || shoal_clock_now() < share);
             tried++, at = (at + stride) % length)
            (void)try_once(&stage, 2 * at, kill);
        printf("             %-24s %3d of %3d\n", stage.scenario->name, tried, length);
        CHECK(length > 3);
        stops += tried;
        calls += length;
    }
    printf("             %d stops of %d\n", stops, calls);
    close_stage(&stage);
}

/* ---- what is not one of those ---- */

/* The first time from a file to the shelf, the second time back: a get that looks here and then there misses neither.
 */
static void a_get_finds_what_moves_twice_meanwhile(void **state)
{
    static const struct scenario scenario = {.name = "a get", .before = MIDDLE, .alone = true, .operate = get_it};
    struct stage stage;
    (void)state;
    open_stage(&stage, &scenario);
    int trials = 0;
    for (int first = 0, came = -1; came == first - 1; first++) { /* which are few, and come in all pairs */
        for (int more = 1, further = 0; further == more - 1; more++, trials++) {
            prepare(&stage);
            const pid_t child = begin(&stage, false);
            came = step_lead_calls(child, first);
            CHECK(put(&stage, WORKED_ON, SMALL + 1) == 0);
            further = came == first ? step_on_calls(child, more) : 0;
            CHECK(put(&stage, WORKED_ON, MIDDLE + 1) == 0);
            step_release(child);
            const int64_t seen = stage.outcome->seen;
            CHECK(seen == MIDDLE || seen == SMALL + 1 || seen == MIDDLE + 1);
            close_store(&stage);
        }
    }
    printf("             %d pairs of stops\n", trials);
    CHECK(trials > 20);
    close_stage(&stage);
}

/* Who finds that the shelf's file cannot be used removes that, and not what another made in its place. */
static void a_shelf_that_cannot_be_used_goes_and_no_other(void **state)
{
    static const struct scenario scenario = {
        .name = "a put on no shelf", .before = SMALL, .after = SMALL + 2, .alone = true, .operate = put_it};
    struct stage stage;
    char path[256];
    int count = 0;
    (void)state;
    open_stage(&stage, &scenario);
    for (int came = -2; came == count - 2; count += 2) {
        prepare(&stage);
        file_of(&stage, true, path);
        const int fd = open(path, O_WRONLY | O_TRUNC);
        CHECK(pwrite(fd, "no shelf", 8, 400) == 8);
        (void)close(fd);
        (void)snprintf(path, sizeof path, "%s/strange", stage.folder_path);
        CHECK(mkdir(path, S_IRWXU) == 0); /* so that a clear leaves the folder */
        const pid_t child = begin(&stage, count % 4 == 0);
        came = step_lead_calls(child, count);
        const int error = shoal_folder_clear(stage.folder);
        CHECK(error == 0 || error == -ETIMEDOUT);
        CHECK(put(&stage, SPARE, SMALL + 1) == 0);
        CHECK(look(&stage, SPARE) == SMALL + 1);
        step_release(child);
        CHECK(stage.outcome->result == 0);
        CHECK(look(&stage, SPARE) == SMALL + 1);
        const int64_t seen = look(&stage, WORKED_ON);
        CHECK(seen == SMALL + 2 || (seen == MISSING && (error == 0 || came < count)));
        close_store(&stage);
    }
    printf("             %d calls\n", count / 2);
    CHECK(count > 30);
    close_stage(&stage);
}

static int compute(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    CHECK(input_size == 8 && output_size == 64);
    memset(output, *(const uint8_t *)input, output_size);
    atomic_fetch_add((_Atomic int64_t *)context, 1);
    return 0;
}

/* Calls the same function on the same input: by one who is led, or who is not. */
static int call_it(struct stage *stage)
{
    const uint64_t input = 7;
    uint8_t output[64];
    int hit = -1;
    const int error = shoal_memo_call(stage->store, "function", compute, &stage->outcome->seen, &input, sizeof input,
                                      output, 64, &hit);
    CHECK(error != 0 || (output[0] == 7 && output[63] == 7 && hit >= 0));
    return error;
}

/* Of two who call the same one computes, also where he is stopped in between; if he is killed the other does, at once.
 */
static void who_makes_an_entry_may_be_killed_or_stopped_at_any_system_call(void **state)
{
    static const struct scenario scenario = {.name = "a call", .alone = true, .operate = call_it};
    struct stage stage;
    int count = 0;
    (void)state;
    open_stage(&stage, &scenario);
    sleeps = true;
    for (int came = -2; came == count - 2; count += 2) {
        for (int killed = 0; killed < 2; killed++) {
            prepare(&stage);
            stage.outcome->seen = 0;
            const pid_t one = begin(&stage, false);
            came = step_lead_calls(one, count);
            naps = 0;
            if (killed) {
                kill_and_reap(one);
                CHECK(call_it(&stage) == 0 && stage.outcome->seen <= 2 && naps == 0);
            } else {
                const pid_t other = fork_child("the other call");
                if (other == 0)
                    _exit(call_it(&stage));
                sleep_for(300000);
                step_release(one);
                child_ends_well(other);
                CHECK(stage.outcome->result == 0 && stage.outcome->seen == 1);
            }
            close_store(&stage);
        }
    }
    sleeps = false;
    printf("             %d calls\n", count / 2);
    CHECK(count > 30);
    close_stage(&stage);
}

static void who_uses_a_store_may_be_killed_at_any_system_call(void **state)
{
    (void)state;
    go_through(true);
}

static void who_uses_a_store_may_be_stopped_at_any_system_call(void **state)
{
    (void)state;
    go_through(false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(who_uses_a_store_may_be_killed_at_any_system_call, start_clock),
        cmocka_unit_test_setup(who_uses_a_store_may_be_stopped_at_any_system_call, start_clock),
        cmocka_unit_test_setup(a_get_finds_what_moves_twice_meanwhile, start_clock),
        cmocka_unit_test_setup(a_shelf_that_cannot_be_used_goes_and_no_other, start_clock),
        cmocka_unit_test_setup(who_makes_an_entry_may_be_killed_or_stopped_at_any_system_call, start_clock),
    };
    return cmocka_run_group_tests_name("store, call by call", tests, NULL, NULL);
}
