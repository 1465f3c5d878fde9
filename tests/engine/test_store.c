/* test_store.c: the store as its users see it: right values or none, whatever happens to the files or the writers.
 * Each test works in a folder of its own; names are the sentences they prove. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "shoal.h"
#include "store/entry.h"
#include "store/hash.h"

#define LARGE ((size_t)300000) /* bytes: an entry of this size is mapped */

struct place {
    char path[64];
    shoal_store *store;
    shoal_folder *folder;
    shoal_key key;
    char file[512]; /* where the entry of `key` lies */
};

static void run(const char *command)
{
    int status = system(command);
    assert_int_equal(status, 0);
}

static void open_place(struct place *place, uint32_t flags)
{
    shoal_store_options options = {.flags = flags};
    char inner[128];
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(shoal_store_open(inner, &options, &place->store), 0);
    assert_int_equal(shoal_folder_open(place->store, "function", &place->folder), 0);
}

static int set_up(void **state)
{
    struct place *place = calloc(1, sizeof *place);
    (void)alarm(100);
    (void)strcpy(place->path, "/tmp/shoal-test-store-XXXXXX");
    assert_non_null(mkdtemp(place->path));
    open_place(place, 0);
    for (size_t i = 0; i < sizeof place->key.bytes; i++)
        place->key.bytes[i] = (uint8_t)(i * 17 + 3);
    int used = snprintf(place->file, sizeof place->file, "%s/", shoal_folder_path(place->folder));
    for (size_t i = 0; i < sizeof place->key.bytes; i++)
        used += snprintf(place->file + used, sizeof place->file - (size_t)used, "%02x", place->key.bytes[i]);
    *state = place;
    return 0;
}

static int tear_down(void **state)
{
    struct place *place = *state;
    char command[300];
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    (void)snprintf(command, sizeof command, "chmod -R u+rwX %s; rm -rf %s", place->path, place->path);
    run(command);
    free(place);
    (void)alarm(0);
    return 0;
}

/* A value that tells its key and size: `size` bytes, each made from both. */
static uint8_t pattern(const shoal_key *key, size_t size, size_t at)
{
    return (uint8_t)(key->bytes[at % 16] + at * 31 + (at >> 8) * 7 + size * 13);
}

static int put_pattern(shoal_folder *folder, const shoal_key *key, size_t size)
{
    uint8_t *data = malloc(size + 1);
    for (size_t i = 0; i < size; i++)
        data[i] = pattern(key, size, i);
    shoal_part parts[2] = {{&size, sizeof size, 1}, {data, size, 2}};
    shoal_entry_numbers numbers = {.cost = 42, .tag = {9, 8, 7}};
    int error = shoal_folder_put(folder, key, parts, 2, &numbers);
    free(data);
    return error;
}

/* What get says; a value that it returns must be one that put_pattern put. */
static int get_pattern(shoal_folder *folder, const shoal_key *key, size_t *size_out)
{
    shoal_entry *entry;
    int error = shoal_folder_get(folder, key, &entry);
    if (error != 0)
        return error;
    shoal_part part;
    size_t size;
    assert_int_equal(shoal_entry_part(entry, 0, &part), 0);
    assert_int_equal(part.size, sizeof size);
    assert_int_equal(part.kind, 1);
    memcpy(&size, part.data, sizeof size);
    assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
    assert_int_equal(part.size, size);
    assert_int_equal(part.kind, 2);
    assert_int_equal((uintptr_t)part.data % 64, 0);
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)part.data)[i] != pattern(key, size, i))
            fail_msg("byte %zu of %zu is wrong", i, size);
    assert_int_equal(shoal_entry_part(entry, 2, &part), -EINVAL);
    shoal_entry_close(entry);
    if (size_out != NULL)
        *size_out = size;
    return 0;
}

static size_t files_below(const char *path)
{
    char command[400];
    size_t count = 0;
    (void)snprintf(command, sizeof command, "find %s ! -type d ! -name .uses ! -name .claims | wc -l", path);
    FILE *pipe = popen(command, "r");
    assert_int_equal(fscanf(pipe, "%zu", &count), 1);
    (void)pclose(pipe);
    return count;
}

static void assert_only_entry_is_kept_private(const char *path, mode_t type, mode_t mode)
{
    struct stat status;
    assert_int_equal(lstat(path, &status), 0);
    assert_int_equal(status.st_mode & S_IFMT, type);
    assert_int_equal(status.st_mode & 07777, mode);
}

/* ---- hashing ---- */

static void a_digest_does_not_depend_on_how_the_bytes_are_cut(void **state)
{
    (void)state;
    size_t size = (size_t)40 << 20; /* several threads, and a last chunk that is not full */
    size -= 12345;
    uint8_t *data = malloc(size), whole[16], pieces[16];
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    shoal_digest(data, size, whole);
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    srand(seed);
    for (int turn = 0; turn < 3; turn++) {
        struct iovec cut[200];
        size_t count = 0, at = 0;
        while (at < size) {
            size_t here = count == 199 ? size - at : (size_t)rand() % 500000;
            here = here < size - at ? here : size - at;
            cut[count++] = (struct iovec){data + at, here};
            at += here;
        }
        hash_pieces(cut, count, pieces);
        assert_memory_equal(whole, pieces, 16);
    }
    data[size / 2] ^= 1;
    shoal_digest(data, size, pieces);
    assert_memory_not_equal(whole, pieces, 16);
    free(data);
}

static void a_stream_and_a_digest_of_few_bytes_agree_and_equal_the_published_value(void **state)
{
    (void)state;
    /* XXH3-128 of no bytes, canonical, as xxh128sum prints it */
    static const uint8_t nothing[16] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                        0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};
    uint8_t one[16], two[16];
    shoal_digest(NULL, 0, one);
    assert_memory_equal(one, nothing, 16);
    shoal_hash *hash;
    assert_int_equal(shoal_hash_create(&hash), 0);
    shoal_hash_digest(hash, one);
    assert_memory_equal(one, nothing, 16);
    shoal_hash_update(hash, "one fish", 8);
    shoal_hash_update(hash, " two fish", 9);
    shoal_hash_digest(hash, one);
    shoal_digest("one fish two fish", 17, two);
    assert_memory_equal(one, two, 16);
    shoal_hash_reset(hash);
    shoal_hash_digest(hash, one);
    assert_memory_equal(one, nothing, 16);
    shoal_hash_close(hash);
}

/* ---- plain use ---- */

static void what_is_put_is_what_is_got(void **state)
{
    struct place *place = *state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 3000, 65000, 65300, 65536, 70000, LARGE, 5000001, 0};
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -ENOENT);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t size;
        assert_int_equal(put_pattern(place->folder, &place->key, sizes[i]), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, &size), 0);
        assert_int_equal(size, sizes[i]);
    }
    assert_int_equal(files_below(place->path), 1);
    assert_int_equal(shoal_folder_remove(place->folder, &place->key), 0);
    assert_int_equal(shoal_folder_remove(place->folder, &place->key), -ENOENT);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -ENOENT);
}

static void an_entry_says_when_it_was_made_and_at_what_cost(void **state)
{
    struct place *place = *state;
    shoal_entry *entry;
    shoal_entry_numbers numbers;
    assert_int_equal(put_pattern(place->folder, &place->key, 10), 0);
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    shoal_entry_about(entry, &numbers);
    shoal_entry_close(entry);
    assert_int_equal(numbers.cost, 42);
    assert_int_equal(numbers.parts, 2);
    assert_int_equal(numbers.tag[2], 7);
    int64_t age = (int64_t)time(NULL) - numbers.created / SHOAL_SECOND;
    assert_in_range((uint64_t)(age + 2), 0, 60);
}

static void many_parts_come_back_in_order_small_ones_aligned_and_large_ones_on_pages(void **state)
{
    struct place *place = *state;
    enum { PARTS = 500 };
    shoal_part parts[PARTS], part;
    static uint8_t data[200000];
    for (uint32_t i = 0; i < PARTS; i++)
        parts[i] = (shoal_part){data, i % 97 == 0 ? 100000 : i % 5, i};
    assert_int_equal(shoal_folder_put(place->folder, &place->key, parts, PARTS, NULL), 0);
    shoal_entry *entry;
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    for (uint32_t i = 0; i < PARTS; i++) {
        assert_int_equal(shoal_entry_part(entry, i, &part), 0);
        assert_int_equal(part.kind, i);
        assert_int_equal(part.size, parts[i].size);
        assert_int_equal((uintptr_t)part.data % (part.size >= 65536 ? 4096 : 64), 0);
    }
    shoal_entry_close(entry);
}

static void writing_to_what_was_got_changes_nothing_on_disk(void **state)
{
    struct place *place = *state;
    static const size_t sizes[] = {100, LARGE};
    for (size_t i = 0; i < 2; i++) {
        shoal_entry *entry;
        shoal_part part;
        assert_int_equal(put_pattern(place->folder, &place->key, sizes[i]), 0);
        assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
        assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
        memset((void *)(uintptr_t)part.data, 0xee, part.size);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
        shoal_entry_close(entry);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    }
}

static void a_value_that_was_got_outlives_its_file_and_its_store(void **state)
{
    struct place *place = *state;
    shoal_entry *entry;
    shoal_part part;
    assert_int_equal(put_pattern(place->folder, &place->key, LARGE), 0);
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    assert_int_equal(shoal_store_clear(place->store), 0);
    assert_int_equal(files_below(place->path), 0);
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
    for (size_t i = 0; i < part.size; i++)
        assert_int_equal(((const uint8_t *)part.data)[i], pattern(&place->key, LARGE, i));
    shoal_entry_close(entry);
    open_place(place, 0);
}

static void any_name_has_a_folder_of_its_own(void **state)
{
    struct place *place = *state;
    char longest[700], longer[701];
    memset(longest, 'x', sizeof longest);
    longest[699] = '\0';
    memcpy(longer, longest, 699);
    (void)strcpy(longer + 699, "y");
    const char *names[] = {"a.b",   "a/b",         "../../escape", ".",    "..",       ".hidden",
                           "a%2Fb", "caf\xc3\xa9", longest,        longer, "tab\there"};
    size_t count = sizeof names / sizeof *names;
    for (size_t i = 0; i < count; i++) {
        shoal_folder *folder;
        assert_int_equal(shoal_folder_open(place->store, names[i], &folder), 0);
        assert_int_equal(get_pattern(folder, &place->key, NULL), -ENOENT);
        assert_int_equal(put_pattern(folder, &place->key, i), 0);
        shoal_folder_close(folder);
    }
    for (size_t i = 0; i < count; i++) {
        shoal_folder *folder;
        size_t size;
        assert_int_equal(shoal_folder_open(place->store, names[i], &folder), 0);
        assert_int_equal(get_pattern(folder, &place->key, &size), 0);
        assert_int_equal(size, i);
        shoal_folder_close(folder);
    }
    char inner[128];
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(files_below(inner), count);
    assert_int_equal(shoal_folder_open(place->store, "", &place->folder), -EINVAL);
}

struct seen {
    size_t entries, damaged;
    uint64_t bytes;
};

static int count_entry(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error,
                       void *context)
{
    struct seen *seen = context;
    assert_string_equal(folder, "function");
    assert_true(key->bytes[0] < 20);
    seen->entries++;
    seen->damaged += error != 0;
    seen->bytes += numbers->size;
    return 0;
}

static void a_visit_sees_each_entry_and_a_clear_leaves_what_is_not_ours(void **state)
{
    struct place *place = *state;
    char command[600];
    struct seen seen = {0};
    for (uint8_t i = 0; i < 20; i++) {
        place->key.bytes[0] = i;
        assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
    }
    (void)snprintf(command, sizeof command,
                   "cd %s && touch notes.txt ../readme && mkdir ../other && touch ../other/file && truncate -s 50 07*",
                   shoal_folder_path(place->folder));
    run(command);
    assert_int_equal(shoal_store_visit(place->store, count_entry, &seen), 0);
    assert_int_equal(seen.entries, 20);
    assert_int_equal(seen.damaged, 1);
    assert_true(seen.bytes > (uint64_t)19 * 200);
    assert_int_equal(shoal_store_clear(place->store), 0);
    assert_int_equal(files_below(place->path), 3);
    seen = (struct seen){0};
    assert_int_equal(shoal_store_visit(place->store, count_entry, &seen), 0);
    assert_int_equal(seen.entries, 0);
    assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
    assert_int_equal(shoal_folder_clear(place->folder), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -ENOENT);
}

/* ---- damage ---- */

static size_t load_file(const char *path, uint8_t **out)
{
    int fd = open(path, O_RDONLY);
    struct stat status;
    assert_int_equal(fstat(fd, &status), 0);
    *out = malloc((size_t)status.st_size);
    assert_int_equal(read(fd, *out, (size_t)status.st_size), status.st_size);
    (void)close(fd);
    return (size_t)status.st_size;
}

static void store_file(const char *path, const uint8_t *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), (ssize_t)size);
    (void)close(fd);
}

static void no_changed_byte_of_a_small_entry_goes_unseen(void **state)
{
    struct place *place = *state;
    uint8_t *data;
    assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
    size_t size = load_file(place->file, &data);
    for (size_t at = 0; at < size; at++) {
        for (int change = 0; change < 3; change++) {
            uint8_t was = data[at];
            data[at] = (uint8_t)(change == 0 ? was ^ (1u << (at % 8)) : change == 1 ? ~(unsigned)was : was + 1u);
            store_file(place->file, data, size);
            data[at] = was;
            if (get_pattern(place->folder, &place->key, NULL) != SHOAL_ECORRUPT)
                fail_msg("byte %zu: the change was not seen", at);
        }
    }
    store_file(place->file, data, size);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    free(data);
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
    static const size_t sizes[] = {100, LARGE};
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

static void an_entry_under_another_name_is_not_taken_for_that_one(void **state)
{
    struct place *place = *state;
    char command[1200];
    assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
    (void)snprintf(command, sizeof command, "cd %s && mv * 00000000000000000000000000000000",
                   shoal_folder_path(place->folder));
    run(command);
    shoal_key other = {{0}};
    assert_int_equal(get_pattern(place->folder, &other, NULL), SHOAL_ECORRUPT);
}

/* ---- whose it is ---- */

static void what_others_could_have_written_is_refused(void **state)
{
    struct place *place = *state;
    char inner[128];
    shoal_store *store;
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);

    assert_int_equal(chmod(place->file, 0620), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -EPERM);
    assert_int_equal(chmod(place->file, 0602), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -EPERM);
    assert_int_equal(chmod(place->file, 0644), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);

    shoal_folder *fresh;
    assert_int_equal(chmod(shoal_folder_path(place->folder), 0770), 0);
    assert_int_equal(shoal_folder_open(place->store, "function", &fresh), 0);
    assert_int_equal(get_pattern(fresh, &place->key, NULL), -EPERM);
    assert_int_equal(put_pattern(fresh, &place->key, 100), -EPERM);
    assert_int_equal(put_pattern(place->folder, &place->key, 100), -EPERM);
    shoal_folder_close(fresh);
    assert_int_equal(chmod(shoal_folder_path(place->folder), 0700), 0);

    assert_int_equal(chmod(inner, 0707), 0);
    assert_int_equal(shoal_store_open(inner, NULL, &store), -EPERM);
    assert_int_equal(chmod(inner, 0755), 0);
    assert_int_equal(shoal_store_open(inner, NULL, &store), 0);
    shoal_store_close(store);

    if (geteuid() == 0) { /* only root can make a file that is another's */
        assert_int_equal(chown(place->file, 12345, (gid_t)-1), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), -EPERM);
        assert_int_equal(chown(inner, 12345, (gid_t)-1), 0);
        assert_int_equal(shoal_store_open(inner, NULL, &store), -EPERM);
        assert_int_equal(chown(inner, 0, (gid_t)-1), 0);
        assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    }
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
            (void)snprintf(inner, sizeof inner, "%s/umask-%zu-%u", place->path, i, flags);
            mode_t before = umask(masks[i]);
            assert_int_equal(shoal_store_open(inner, &options, &store), 0);
            assert_int_equal(shoal_folder_open(store, "f", &folder), 0);
            assert_int_equal(put_pattern(folder, &place->key, 10), 0);
            (void)umask(before);
            char file[600];
            assert_only_entry_is_kept_private(inner, S_IFDIR, 0700);
            assert_only_entry_is_kept_private(shoal_folder_path(folder), S_IFDIR, 0700);
            (void)snprintf(file, sizeof file, "%s/%s", shoal_folder_path(folder), strrchr(place->file, '/') + 1);
            assert_only_entry_is_kept_private(file, S_IFREG, 0600);
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
        shoal_folder_close(place->folder);
        shoal_store_close(place->store);
        open_place(place, flags);
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

/* ---- other processes ---- */

static void kill_writers(struct place *place, uint32_t flags, int turns)
{
    struct timespec pause;
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    srand(seed);
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    open_place(place, flags);
    for (int turn = 0; turn < turns; turn++) {
        size_t size = turn % 3 == 0 ? 100 : turn % 3 == 1 ? 50000 : LARGE * 10;
        pid_t child = fork();
        if (child == 0) {
            for (uint8_t i = 0;; i++) {
                shoal_key key = place->key;
                key.bytes[0] = i % 4;
                (void)put_pattern(place->folder, &key, size + i);
            }
        }
        pause = (struct timespec){0, rand() % 4000000};
        (void)nanosleep(&pause, NULL);
        (void)kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        for (uint8_t i = 0; i < 4; i++) {
            shoal_key key = place->key;
            key.bytes[0] = i;
            int error = get_pattern(place->folder, &key, NULL);
            assert_true(error == 0 || error == -ENOENT);
        }
    }
}

static void killed_writers_leave_whole_entries_and_nothing_else(void **state)
{
    struct place *place = *state;
    kill_writers(place, 0, 300);
    assert_true(files_below(place->path) <= 4);
}

static void what_killed_writers_leave_under_temporary_names_is_swept(void **state)
{
    struct place *place = *state;
    kill_writers(place, SHOAL_STORE_NAMED_FILES, 100);
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    open_place(place, SHOAL_STORE_NAMED_FILES);
    assert_int_equal(put_pattern(place->folder, &place->key, 10), 0);
    assert_true(files_below(place->path) <= 5);
    assert_int_equal(shoal_store_clear(place->store), 0);
    assert_int_equal(files_below(place->path), 0);
}

static void crowd(struct place *place, uint32_t flags)
{
    enum { PROCESSES = 8 };
    pid_t children[PROCESSES];
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    for (unsigned p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        if (children[p] != 0)
            continue;
        shoal_folder_close(place->folder);
        shoal_store_close(place->store);
        open_place(place, flags);
        srand(seed + p);
        int64_t end = (int64_t)time(NULL) + 3;
        for (int turn = 0; (int64_t)time(NULL) < end; turn++) {
            shoal_key key = place->key;
            key.bytes[0] = (uint8_t)(rand() % 5);
            int what = rand() % 100, error;
            if (what < 55) {
                error = get_pattern(place->folder, &key, NULL);
                if (error != 0 && error != -ENOENT)
                    _exit(10);
            } else if (what < 90) {
                error = put_pattern(place->folder, &key, rand() % 4 == 0 ? LARGE : (size_t)rand() % 2000);
                if (error != 0)
                    _exit(11);
            } else if (what < 98) {
                error = shoal_folder_remove(place->folder, &key);
                if (error != 0 && error != -ENOENT)
                    _exit(12);
            } else if (what < 99) {
                if (shoal_folder_clear(place->folder) != 0)
                    _exit(13);
            } else if (shoal_store_clear(place->store) != 0) {
                _exit(14);
            }
        }
        _exit(0);
    }
    for (unsigned p = 0; p < PROCESSES; p++) {
        int status;
        assert_int_equal(waitpid(children[p], &status, 0), children[p]);
        assert_int_equal(status, 0);
    }
    assert_true(files_below(place->path) <= 5);
}

static void eight_processes_read_write_remove_and_clear_the_same_keys(void **state)
{
    crowd(*state, 0);
}

static void eight_processes_do_so_on_a_file_system_without_unnamed_files(void **state)
{
    crowd(*state, SHOAL_STORE_NAMED_FILES);
}

static void a_process_that_closed_all_its_descriptors_goes_on(void **state)
{
    struct place *place = *state;
    assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
    pid_t child = fork();
    if (child == 0) {
        for (int fd = 3; fd < 64; fd++)
            (void)close(fd);
        int others = open("/tmp", O_RDONLY | O_DIRECTORY); /* takes the number of the folder's descriptor */
        for (int i = 0; i < 20; i++)
            (void)dup(others);
        int error = get_pattern(place->folder, &place->key, NULL);
        if (error == 0)
            error = put_pattern(place->folder, &place->key, 200);
        struct stat tmp, number;
        if (stat("/tmp", &tmp) != 0 || fstat(others, &number) != 0 || tmp.st_ino != number.st_ino)
            _exit(1);
        _exit(error == 0 ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
}

static void a_folder_that_was_removed_and_made_again_is_found(void **state)
{
    struct place *place = *state;
    char command[300];
    for (int turn = 0; turn < 3; turn++) {
        assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
        (void)snprintf(command, sizeof command, "cd %s && mv store away%d", place->path, turn);
        run(command);
        assert_int_equal(put_pattern(place->folder, &place->key, 7), 0);
        size_t size;
        assert_int_equal(get_pattern(place->folder, &place->key, &size), 0);
        assert_int_equal(size, 7);
        (void)snprintf(command, sizeof command, "rm -r %s/store && cp -rp %s/away%d %s/store", place->path, place->path,
                       turn, place->path);
        run(command);
        struct place second = *place;
        open_place(&second, 0);
        assert_int_equal(get_pattern(second.folder, &place->key, &size), 0);
        assert_int_equal(size, 100);
        shoal_folder_close(second.folder);
        shoal_store_close(second.store);
    }
    assert_true(open("/dev/null", O_RDONLY) < 16); /* no descriptor was lost on the way */
}

static void a_durable_store_keeps_what_is_put(void **state)
{
    struct place *place = *state;
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    open_place(place, SHOAL_STORE_DURABLE);
    assert_int_equal(put_pattern(place->folder, &place->key, LARGE), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
}

/* ---- memo ---- */

struct calls {
    int count, code;
};

static int add(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    struct calls *calls = context;
    calls->count++;
    const double *numbers = input;
    double sum = 0;
    for (size_t i = 0; i < input_size / sizeof *numbers; i++)
        sum += numbers[i];
    assert_int_equal(output_size, sizeof sum);
    memcpy(output, &sum, sizeof sum);
    return calls->code;
}

static void a_memo_computes_once_for_each_name_and_input(void **state)
{
    struct place *place = *state;
    struct calls calls = {0, 0};
    double input[3] = {1, 2, 3.5}, output = 0;
    int hit = -1;
    for (int i = 0; i < 3; i++) {
        output = 0;
        assert_int_equal(
            shoal_memo_call(place->store, "add-1", add, &calls, input, sizeof input, &output, sizeof output, &hit), 0);
        assert_true(output == 6.5);
        assert_int_equal(hit, i != 0);
        assert_int_equal(calls.count, 1);
    }
    assert_int_equal(shoal_memo_call(place->store, "add-1", add, &calls, NULL, 8, &output, sizeof output, NULL),
                     -EINVAL);
    assert_int_equal(shoal_memo_call(place->store, "add-1", add, &calls, input, 8, NULL, 8, NULL), -EINVAL);
    assert_int_equal(
        shoal_memo_call(place->store, "add-2", add, &calls, input, sizeof input, &output, sizeof output, NULL), 0);
    assert_int_equal(calls.count, 2);
    input[1] = -2;
    assert_int_equal(
        shoal_memo_call(place->store, "add-1", add, &calls, input, sizeof input, &output, sizeof output, &hit), 0);
    assert_int_equal(hit, 0);
    assert_true(output == 2.5);
}

static void a_memo_does_not_keep_what_failed(void **state)
{
    struct place *place = *state;
    struct calls calls = {0, -EDOM};
    double input = 1, output;
    for (int i = 1; i < 3; i++) {
        assert_int_equal(
            shoal_memo_call(place->store, "add", add, &calls, &input, sizeof input, &output, sizeof output, NULL),
            -EDOM);
        assert_int_equal(calls.count, i);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_digest_does_not_depend_on_how_the_bytes_are_cut),
        TEST(a_stream_and_a_digest_of_few_bytes_agree_and_equal_the_published_value),
        TEST(what_is_put_is_what_is_got),
        TEST(an_entry_says_when_it_was_made_and_at_what_cost),
        TEST(many_parts_come_back_in_order_small_ones_aligned_and_large_ones_on_pages),
        TEST(writing_to_what_was_got_changes_nothing_on_disk),
        TEST(a_value_that_was_got_outlives_its_file_and_its_store),
        TEST(any_name_has_a_folder_of_its_own),
        TEST(a_visit_sees_each_entry_and_a_clear_leaves_what_is_not_ours),
        TEST(no_changed_byte_of_a_small_entry_goes_unseen),
        TEST(a_large_entry_is_verified_again_once_its_file_changed),
        TEST(damage_of_any_kind_is_told_and_repaired_by_the_next_put),
        TEST(an_entry_under_another_name_is_not_taken_for_that_one),
        TEST(what_others_could_have_written_is_refused),
        TEST(links_to_folders_are_not_followed),
        TEST(modes_do_not_depend_on_the_umask),
        TEST(a_limit_on_file_size_is_an_error_and_leaves_nothing),
        TEST(a_full_disk_is_an_error_and_leaves_nothing),
        TEST(a_read_only_folder_can_be_read_and_says_why_not_more),
        TEST(killed_writers_leave_whole_entries_and_nothing_else),
        TEST(what_killed_writers_leave_under_temporary_names_is_swept),
        TEST(eight_processes_read_write_remove_and_clear_the_same_keys),
        TEST(eight_processes_do_so_on_a_file_system_without_unnamed_files),
        TEST(a_process_that_closed_all_its_descriptors_goes_on),
        TEST(a_folder_that_was_removed_and_made_again_is_found),
        TEST(a_durable_store_keeps_what_is_put),
        TEST(a_memo_computes_once_for_each_name_and_input),
        TEST(a_memo_does_not_keep_what_failed),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
