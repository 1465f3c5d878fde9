/* test_store_trust.c: right values or none, whatever happens to the store's files, whoever may write to them, and where
 * there is no room. */
#include "store_place.h"

#include "store/record.h"

/* ---- damage ---- */

/* `free_bytes`: at the beginning, where a change may leave the value as it was. */
static void change_each_byte(struct place *place, const char *path, size_t free_bytes)
{
    uint8_t *data;
    assert_int_equal(put_pattern(place->folder, &place->key, SMALL), 0);
    size_t size = load_file(path, &data);
    for (size_t at = 0; at < size; at++) {
        for (int change = 0; change < 3; change++) {
            uint8_t was = data[at];
            data[at] = (uint8_t)(change == 0 ? was ^ (1u << (at % 8)) : change == 1 ? ~(unsigned)was : was + 1u);
            store_file(path, data, size);
            data[at] = was;
            int error = get_pattern(place->folder, &place->key, NULL);
            if (error != SHOAL_ECORRUPT && !(error == 0 && at < free_bytes))
                fail_msg("byte %zu: the change was not seen", at);
        }
    }
    store_file(path, data, size);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    free(data);
}

static void no_changed_byte_of_a_small_entry_goes_unseen(void **state)
{
    struct place *place = *state;
    change_each_byte(place, place->shelf, sizeof(struct shelf_head)); /* of which all is there twice */
    reopen_place(place, SHOAL_STORE_NAMED_FILES);
    change_each_byte(place, place->file, 0);
}

static void a_large_entry_is_verified_again_once_its_file_changed(void **state)
{
    struct place *place = *state;
    uint8_t *data;
    struct timespec settle = {0, 60000000}; /* until its times tell one content from another */
    assert_int_equal(put_pattern(place->folder, &place->key, LARGE), 0);
    (void)nanosleep(&settle, NULL);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    size_t size = load_file(place->file, &data);
    for (size_t at = 5; at < size; at += size / 23) {
        data[at] ^= 4;
        store_file(place->file, data, size);
        data[at] ^= 4;
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), SHOAL_ECORRUPT);
        store_file(place->file, data, size);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    }
    free(data);
}

static void damage_of_any_kind_is_told_and_repaired_by_the_next_put(void **state)
{
    struct place *place = *state;
    static const char *const damages[] = {
        "truncate -s 0 $F",
        "truncate -s 60 $F",
        "truncate -s 127 $F",
        "truncate -s 128 $F",
        "truncate -s -1 $F",
        "truncate -s +1 $F",
        "head -c 4000 /dev/urandom > $F",
        "rm $F; mkdir $F",
        "rm $F; mkdir -p $F/a/b; touch $F/a/b/c $F/d",
        "rm $F; ln -s /etc/passwd $F",
        "mv $F $F.x; ln -s $F.x $F",
        "rm $F; ln -s nowhere $F",
        "rm $F; mkfifo $F",
        "printf '\\002' | dd of=$F bs=1 seek=8 conv=notrunc 2>/dev/null",                 /* another version */
        "printf '\\001\\002' | dd of=$F bs=1 seek=10 conv=notrunc 2>/dev/null",           /* another byte order */
        "printf '\\377\\377\\377\\177' | dd of=$F bs=1 seek=88 conv=notrunc 2>/dev/null", /* a giant part count */
    };
    static const size_t sizes[] = {MIDDLE, LARGE};
    for (size_t s = 0; s < 2; s++) {
        for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
            char command[900];
            assert_int_equal(put_pattern(place->folder, &place->key, sizes[s]), 0);
            assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
            (void)snprintf(command, sizeof command, "F=%s; %s", place->file, damages[i]);
            run(command);
            if (get_pattern(place->folder, &place->key, NULL) != SHOAL_ECORRUPT)
                fail_msg("not seen: %s", damages[i]);
        }
        assert_int_equal(put_pattern(place->folder, &place->key, sizes[s]), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    }
}

/* What stands there is what a kill between the link and the rename leaves (test_store_steps.c makes it by one). */
static void a_file_that_a_killed_writer_left_goes_with_the_next_hit(void **state)
{
    struct place *place = *state;
    char left[sizeof place->file + 8];
    struct timespec wait = {1, 100000000}; /* until nobody alive can be about to rename it */
    static const size_t sizes[] = {MIDDLE, LARGE};
    (void)snprintf(left, sizeof left, "%s.new", place->file);
    for (size_t i = 0; i < 2; i++) {
        char command[1200];
        assert_int_equal(put_pattern(place->folder, &place->key, sizes[i]), 0);
        (void)snprintf(command, sizeof command, "cp %s %s", place->file, left);
        run(command);
        (void)nanosleep(&wait, NULL);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
        assert_int_equal(access(left, F_OK), -1);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    }
}

static void an_entry_under_another_name_is_not_taken_for_that_one(void **state)
{
    struct place *place = *state;
    char command[1200];
    assert_int_equal(put_pattern(place->folder, &place->key, MIDDLE), 0);
    (void)snprintf(command, sizeof command, "cd %s && mv * 00000000000000000000000000000000",
                   shoal_folder_path(place->folder));
    run(command);
    shoal_key other = {{0}};
    assert_int_equal(get_pattern(place->folder, &other, NULL), SHOAL_ECORRUPT);
}

/* ---- whose it is ---- */

static void refuse_what_others_could_have_written(struct place *place, const char *path, size_t size)
{
    char inner[128];
    shoal_store *store;
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(put_pattern(place->folder, &place->key, size), 0);

    assert_int_equal(chmod(path, 0620), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -EPERM);
    assert_int_equal(chmod(path, 0602), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -EPERM);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);

    shoal_folder *fresh;
    assert_int_equal(chmod(shoal_folder_path(place->folder), 0770), 0);
    assert_int_equal(shoal_folder_open(place->store, "function", &fresh), 0);
    assert_int_equal(get_pattern(fresh, &place->key, NULL), -EPERM);
    assert_int_equal(put_pattern(fresh, &place->key, size), -EPERM);
    assert_int_equal(put_pattern(place->folder, &place->key, size), -EPERM);
    shoal_folder_close(fresh);
    assert_int_equal(chmod(shoal_folder_path(place->folder), 0700), 0);

    assert_int_equal(chmod(inner, 0707), 0);
    assert_int_equal(shoal_store_open(inner, NULL, &store), -EPERM);
    assert_int_equal(chmod(inner, 0755), 0);
    assert_int_equal(shoal_store_open(inner, NULL, &store), 0);
    shoal_store_close(store);

    if (geteuid() == 0) { /* only root can make a file that is another's */
        assert_int_equal(chown(path, 12345, (gid_t)-1), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), -EPERM);
        assert_int_equal(chown(inner, 12345, (gid_t)-1), 0);
        assert_int_equal(shoal_store_open(inner, NULL, &store), -EPERM);
        assert_int_equal(chown(inner, 0, (gid_t)-1), 0);
        assert_int_equal(put_pattern(place->folder, &place->key, size), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    }
}

static void what_others_could_have_written_is_refused(void **state)
{
    struct place *place = *state;
    refuse_what_others_could_have_written(place, place->file, MIDDLE);
    assert_int_equal(shoal_folder_remove(place->folder, &place->key), 0);
    refuse_what_others_could_have_written(place, place->shelf, SMALL);
}

static void links_to_folders_are_not_followed(void **state)
{
    struct place *place = *state;
    char command[400], inner[128];
    shoal_store *store;
    shoal_folder *folder;
    (void)snprintf(command, sizeof command,
                   "cd %s && mkdir -m 700 away && ln -s away link && ln -s ../away store/linked", place->path);
    run(command);
    (void)snprintf(inner, sizeof inner, "%s/link/", place->path);
    assert_int_equal(shoal_store_open(inner, NULL, &store), -ENOTDIR);
    assert_int_equal(shoal_folder_open(place->store, "linked", &folder), 0);
    assert_int_equal(get_pattern(folder, &place->key, NULL), -ENOTDIR);
    assert_int_equal(put_pattern(folder, &place->key, 10), -ENOTDIR);
    shoal_folder_close(folder);
    (void)snprintf(inner, sizeof inner, "%s/away", place->path);
    assert_int_equal(files_below(inner), 0);
}

static void modes_do_not_depend_on_the_umask(void **state)
{
    struct place *place = *state;
    static const mode_t masks[] = {0, 022, 077, 0777};
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        for (uint32_t flags = 0; flags <= SHOAL_STORE_NAMED_FILES; flags += SHOAL_STORE_NAMED_FILES) {
            char inner[128];
            shoal_store *store;
            shoal_folder *folder;
            shoal_store_options options = {.flags = flags};
            (void)snprintf(inner, sizeof inner, "%s/umask-%zu-%u/store", place->path, i, flags);
            mode_t before = umask(masks[i]);
            assert_int_equal(shoal_store_open(inner, &options, &store), 0);
            assert_int_equal(shoal_folder_open(store, "f", &folder), 0);
            assert_int_equal(put_pattern(folder, &place->key, MIDDLE), 0);
            shoal_key other = {{1}};
            assert_int_equal(put_pattern(folder, &other, SMALL), 0);
            (void)umask(before);
            char file[600];
            assert_only_entry_is_kept_private(inner, S_IFDIR, 0700);
            *strrchr(inner, '/') = '\0';
            assert_only_entry_is_kept_private(inner, S_IFDIR, 0700);
            assert_only_entry_is_kept_private(shoal_folder_path(folder), S_IFDIR, 0700);
            (void)snprintf(file, sizeof file, "%s/%s", shoal_folder_path(folder), strrchr(place->file, '/') + 1);
            assert_only_entry_is_kept_private(file, S_IFREG, 0600);
            if (flags == 0) {
                (void)snprintf(file, sizeof file, "%s/shelf", shoal_folder_path(folder));
                assert_only_entry_is_kept_private(file, S_IFREG, 0600);
            }
            shoal_folder_close(folder);
            shoal_store_close(store);
        }
    }
}

/* ---- no room, no right ---- */

static void a_limit_on_file_size_is_an_error_and_leaves_nothing(void **state)
{
    struct place *place = *state;
    for (uint32_t flags = 0; flags <= SHOAL_STORE_NAMED_FILES; flags += SHOAL_STORE_NAMED_FILES) {
        reopen_place(place, flags);
        pid_t child = fork();
        if (child == 0) { /* SIGXFSZ has its default action here */
            struct rlimit limit = {1000, 1000};
            (void)setrlimit(RLIMIT_FSIZE, &limit);
            _exit(put_pattern(place->folder, &place->key, 2000) == -EFBIG &&
                          put_pattern(place->folder, &place->key, LARGE) == -EFBIG &&
                          put_pattern(place->folder, &place->key, 10) == 0
                      ? 0
                      : 1);
        }
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
        assert_int_equal(files_below(place->path), 1);
    }
}

static void a_full_disk_is_an_error_and_leaves_nothing(void **state)
{
    struct place *place = *state;
    char command[300];
    (void)snprintf(command, sizeof command, "mount -t tmpfs -o size=200k,mode=700 none %s/store 2>/dev/null",
                   place->path);
    if (geteuid() != 0 || system(command) != 0) {
        print_message("cannot mount here: the limit on file size stands for it\n");
        a_limit_on_file_size_is_an_error_and_leaves_nothing(state);
        return;
    }
    int first = put_pattern(place->folder, &place->key, 100);
    int second = put_pattern(place->folder, &place->key, LARGE);
    int third = get_pattern(place->folder, &place->key, NULL);
    size_t files = files_below(place->path);
    (void)snprintf(command, sizeof command, "umount -l %s/store", place->path);
    run(command);
    assert_int_equal(first, 0);
    assert_int_equal(second, -ENOSPC);
    assert_int_equal(third, 0);
    assert_int_equal(files, 1);
}

static void on_a_full_disk_a_store_with_a_limit_keeps_what_was_put_last(void **state)
{
    struct place *place = *state;
    static const size_t sizes[] = {SMALL, 9000, 1000, 50000, 3000};
    enum { COUNT = 400, KINDS = sizeof sizes / sizeof *sizes };
    char inner[128], command[400];
    shoal_store *store;
    shoal_folder *folder;
    shoal_store_options options = {.bytes_limit = 2 << 20};
    (void)snprintf(inner, sizeof inner, "%s/full", place->path);
    (void)snprintf(command, sizeof command,
                   "mkdir -m 700 %s && mount -t tmpfs -o size=1200k,mode=700 none %s 2>/dev/null", inner, inner);
    bool mounted = geteuid() == 0 && system(command) == 0;
    if (!mounted)
        print_message("cannot mount here: test_store_shelf has a disk that only says that it is full\n");
    assert_int_equal(shoal_store_open(inner, &options, &store), 0);
    assert_int_equal(shoal_folder_open(store, "function", &folder), 0);
    unsigned kept = 0, last = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        size_t got;
        shoal_key key = {{(uint8_t)i, (uint8_t)(i >> 8), 1}};
        kept += put_pattern(folder, &key, sizes[i % KINDS]) == 0;
        last += get_pattern(folder, &key, &got) == 0 && got == sizes[i % KINDS];
    }
    struct seen seen = {0};
    int error = shoal_store_verify(store, 0, count_entry, &seen);
    shoal_folder_close(folder);
    shoal_store_close(store);
    (void)snprintf(command, sizeof command, "umount -l %s", inner);
    if (mounted)
        run(command);
    assert_int_equal(error, 0);
    assert_int_equal(kept, COUNT);
    assert_int_equal(last, COUNT);
    assert_int_equal(seen.damaged, 0);
    assert_true(seen.entries >= KINDS);
}

/* Runs `body` as a user without privileges, whose the place is. */
static int as_plain_user(struct place *place, int (*body)(struct place *place))
{
    char command[300];
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0) {
            (void)snprintf(command, sizeof command, "chown -R 12345 %s", place->path);
            if (system(command) != 0 || setgid(12345) != 0 || setuid(12345) != 0)
                _exit(99);
        }
        _exit(body(place));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (geteuid() == 0) {
        (void)snprintf(command, sizeof command, "chown -R 0 %s", place->path);
        run(command);
    }
    return status;
}

static int use_read_only(struct place *place)
{
    shoal_store *store;
    char inner[128];
    if (put_pattern(place->folder, &place->key, 100) != 0)
        return 1;
    shoal_key other = place->key;
    other.bytes[3] ^= 1;
    if (chmod(shoal_folder_path(place->folder), 0500) != 0)
        return 2;
    if (put_pattern(place->folder, &other, 100) != -EACCES)
        return 3;
    if (get_pattern(place->folder, &place->key, NULL) != 0)
        return 4;
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    if (chmod(inner, 0500) != 0 || shoal_store_open(inner, NULL, &store) != 0)
        return 5;
    if (chmod(place->path, 0500) != 0)
        return 6;
    (void)snprintf(inner, sizeof inner, "%s/another/deep", place->path);
    return shoal_store_open(inner, NULL, &store) == -ENOENT || shoal_store_open(inner, NULL, &store) == -EACCES ? 0 : 7;
}

static void a_read_only_folder_can_be_read_and_says_why_not_more(void **state)
{
    assert_int_equal(as_plain_user(*state, use_read_only), 0);
}

/* ---- files that somebody cuts while they are used ---- */

static void an_open_entry_whose_file_is_cut_can_be_asked_about_and_closed(void **state)
{
    struct place *place = *state;
    shoal_entry *entry;
    shoal_entry_numbers numbers;
    shoal_part part;
    size_t size;
    assert_int_equal(put_pattern(place->folder, &place->key, LARGE), 0);
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    assert_int_equal(truncate(place->file, 0), 0);
    shoal_entry_about(entry, &numbers);
    assert_int_equal(numbers.cost, 42);
    assert_int_equal(numbers.parts, 2);
    assert_int_equal(shoal_entry_part(entry, 0, &part), 0); /* a small part is a copy */
    memcpy(&size, part.data, sizeof size);
    assert_int_equal(size, LARGE);
    assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
    assert_int_equal(part.size, LARGE);
    assert_int_equal(((const uint8_t *)part.data)[LARGE - 1], pattern(&place->key, LARGE, LARGE - 1)); /* not a page */
    shoal_entry_close(entry);
}

/* The entry's large part, 1, is whole after its file was cut. */
static void check_is_copied(struct place *place)
{
    shoal_entry *entry;
    shoal_part part;
    assert_int_equal(put_pattern(place->folder, &place->key, LARGE), 0);
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    assert_int_equal(truncate(place->file, 0), 0);
    assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
    for (size_t i = 0; i < LARGE; i++)
        if (((const uint8_t *)part.data)[i] != pattern(&place->key, LARGE, i))
            fail_msg("byte %zu is wrong", i);
    shoal_entry_close(entry);
}

static void what_a_store_was_told_to_copy_outlives_its_file(void **state)
{
    struct place *place = *state;
    shoal_store_options options = {.copied_parts = 2};
    char inner[128];
    reopen_place(place, SHOAL_STORE_COPIES);
    check_is_copied(place);
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(shoal_store_open(inner, &options, &place->store), 0);
    assert_int_equal(shoal_folder_open(place->store, "function", &place->folder), 0);
    check_is_copied(place);
}

static void a_cut_table_of_uses_costs_what_it_said_and_no_crash(void **state)
{
    struct place *place = *state;
    struct seen seen = {0};
    char table[128];
    (void)snprintf(table, sizeof table, "%s/store/.uses", place->path);
    assert_int_equal(put_pattern(place->folder, &place->key, SMALL), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    assert_int_equal(truncate(table, 0), 0);
    assert_int_equal(put_pattern(place->folder, &place->key, SMALL), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    assert_int_equal(shoal_store_visit(place->store, count_entry, &seen), 0);
    assert_int_equal(seen.entries, 1);
    reopen_place(place, 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    struct stat status;
    assert_int_equal(stat(table, &status), 0);
    assert_int_not_equal(status.st_size, 0); /* the next to come made another */
}

/* Cut the file short and make it whole again, in place, for ever. */
static void cut_and_mend(const char *path, const uint8_t *data, size_t size)
{
    for (unsigned turn = 0;; turn++) {
        int fd = open(path, O_RDWR);
        if (fd < 0 || ftruncate(fd, (off_t)(size * (turn % 7) / 7)) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
            _exit(1);
        (void)close(fd);
        (void)usleep(turn % 5 * 100);
    }
}

static int make_pattern(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input_size;
    (void)context;
    for (size_t i = 0; i < output_size; i++)
        ((uint8_t *)output)[i] = pattern(input, output_size, i);
    return 0;
}

static void use_while_cut(struct place *place, const shoal_store_options *options, bool memo, unsigned turns)
{
    uint8_t *data, *output = malloc(LARGE);
    char inner[128], path[700];
    unsigned good = 0, damaged = 0;
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    (void)snprintf(path, sizeof path, "%s", place->file);
    if (memo) {
        assert_int_equal(shoal_memo_call(place->store, "memo", make_pattern, NULL, &place->key, sizeof place->key,
                                         output, LARGE, NULL),
                         0);
        char command[400];
        (void)snprintf(command, sizeof command, "find %s/memo -type f -size +64k", inner);
        FILE *pipe = popen(command, "r");
        assert_non_null(fgets(path, sizeof path, pipe));
        path[strcspn(path, "\n")] = '\0';
        (void)pclose(pipe);
    } else {
        uint32_t noise = 1;
        for (size_t i = 0; i < LARGE; i++) /* half of it can be compressed */
            output[i] = i % 2 == 0 ? 0 : (uint8_t)((noise = noise * 1664525 + 1013904223) >> 24);
        shoal_part parts[2] = {{"small", 5, 0}, {output, LARGE, 0}};
        assert_int_equal(shoal_folder_put(place->folder, &place->key, parts, 2, NULL), 0);
    }
    size_t size = load_file(path, &data);
    assert_true(size > 65536); /* else it is read anyway */
    pid_t child = fork();
    if (child == 0)
        cut_and_mend(path, data, size);
    for (unsigned turn = 0; turn < turns; turn++) {
        shoal_store *store; /* which has verified nothing yet */
        shoal_folder *folder;
        int error = 0, hit = 1;
        assert_int_equal(shoal_store_open(inner, options, &store), 0);
        if (memo) {
            memset(output, 0, LARGE);
            assert_int_equal(shoal_folder_open(store, "memo", &folder), 0);
            assert_int_equal(
                shoal_memo_call(store, "memo", make_pattern, NULL, &place->key, sizeof place->key, output, LARGE, &hit),
                0);
            for (size_t i = 0; i < LARGE; i++)
                if (output[i] != pattern(&place->key, LARGE, i))
                    fail_msg("byte %zu is wrong", i);
        } else {
            shoal_entry *entry;
            shoal_entry_numbers numbers;
            assert_int_equal(shoal_folder_open(store, "function", &folder), 0);
            error = shoal_folder_look(folder, &place->key, &entry);
            if (error == 0) {
                shoal_entry_about(entry, &numbers);
                assert_int_equal(numbers.parts, 2);
                shoal_entry_close(entry);
            } else {
                assert_int_equal(error, SHOAL_ECORRUPT);
            }
        }
        good += error == 0 && hit == 1;
        damaged += error != 0 || hit != 1;
        shoal_folder_close(folder);
        shoal_store_close(store);
        if (memo && turn % 16 == 0) { /* what was computed again has another inode */
            (void)kill(child, SIGKILL);
            (void)waitpid(child, NULL, 0);
            child = fork();
            if (child == 0)
                cut_and_mend(path, data, size);
        }
    }
    (void)kill(child, SIGKILL);
    (void)waitpid(child, NULL, 0);
    assert_int_equal(good + damaged, turns);
    assert_true(good != 0 && damaged != 0);
    free(data);
    free(output);
}

static void a_file_that_is_cut_while_it_is_read_is_damaged_and_no_crash(void **state)
{
    static const shoal_store_options mapped = {0}, copied = {.flags = SHOAL_STORE_COPIES};
    use_while_cut(*state, &mapped, false, 3000);
    use_while_cut(*state, &copied, false, 300);
}

static void a_memo_s_file_that_is_cut_while_it_is_copied_is_computed_again(void **state)
{
    static const shoal_store_options options = {0};
    use_while_cut(*state, &options, true, 1000);
}

static void a_compressed_entry_s_file_may_be_cut_while_it_is_expanded(void **state)
{
    struct place *place = *state;
    static const shoal_store_options options = {.compression = SHOAL_COMPRESS_ZSTD};
    char inner[128];
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(shoal_store_open(inner, &options, &place->store), 0);
    assert_int_equal(shoal_folder_open(place->store, "function", &place->folder), 0);
    use_while_cut(place, &options, false, 1500);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(no_changed_byte_of_a_small_entry_goes_unseen),
        TEST(a_large_entry_is_verified_again_once_its_file_changed),
        TEST(damage_of_any_kind_is_told_and_repaired_by_the_next_put),
        TEST(a_file_that_a_killed_writer_left_goes_with_the_next_hit),
        TEST(an_entry_under_another_name_is_not_taken_for_that_one),
        TEST(what_others_could_have_written_is_refused),
        TEST(links_to_folders_are_not_followed),
        TEST(modes_do_not_depend_on_the_umask),
        TEST(a_limit_on_file_size_is_an_error_and_leaves_nothing),
        TEST(a_full_disk_is_an_error_and_leaves_nothing),
        TEST(on_a_full_disk_a_store_with_a_limit_keeps_what_was_put_last),
        TEST(a_read_only_folder_can_be_read_and_says_why_not_more),
        TEST(an_open_entry_whose_file_is_cut_can_be_asked_about_and_closed),
        TEST(a_cut_table_of_uses_costs_what_it_said_and_no_crash),
        TEST(what_a_store_was_told_to_copy_outlives_its_file),
        TEST(a_file_that_is_cut_while_it_is_read_is_damaged_and_no_crash),
        TEST(a_memo_s_file_that_is_cut_while_it_is_copied_is_computed_again),
        TEST(a_compressed_entry_s_file_may_be_cut_while_it_is_expanded),
    };
    return cmocka_run_group_tests_name("store_trust", tests, NULL, NULL);
}
