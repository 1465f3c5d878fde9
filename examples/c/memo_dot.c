/* memo_dot.c: ten dot products of two long vectors: one after the other, on a pool of two processes, and then both from
 * a store on disk, where the second call costs the look-up.
 *
 *     cc -O2 memo_dot.c $(pkg-config --cflags --libs shoal) && ./a.out [--length N]
 * with LD_LIBRARY_PATH, or an rpath, where the library is in no place that the loader looks in.
 */
#include <shoal.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PRODUCTS 10
#define DEFAULT_LENGTH 100000000

/* Memory for a long vector, in large pages where the machine has them: most of a product's time is else the first touch
 * of its pages. */
static double *make_vector(size_t length)
{
    const size_t page = (size_t)2 << 20;
    size_t size = (length * sizeof(double) + page - 1) / page * page;
    double *vector = aligned_alloc(page, size);
    if (vector != NULL)
        (void)madvise(vector, size, MADV_HUGEPAGE);
    return vector;
}

/* Two vectors 0, 1, 2, …, and their product. */
static int get_product(size_t length, uint32_t threads, double *out)
{
    double *a = make_vector(length), *b = make_vector(length);
    int error = -ENOMEM;
    if (a != NULL && b != NULL) {
        for (size_t i = 0; i < length; i++)
            a[i] = b[i] = (double)i;
        error = shoal_dot(a, b, length, threads, out);
    }
    free(a);
    free(b);
    return error;
}

static int serial(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input_size;
    (void)output_size;
    (void)context;
    const size_t length = *(const size_t *)input;
    double *products = output;
    int error = 0;
    for (int i = 0; i < PRODUCTS && error == 0; i++)
        error = get_product(length, 0, &products[i]);
    return error;
}

/* One product, in a worker: a pool shares the cores out, so 0 threads means one each here. */
static int one_product(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input_size;
    (void)output_size;
    (void)context;
    return get_product(*(const size_t *)input, 0, output);
}

static int parallel(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input_size;
    (void)output_size;
    size_t lengths[PRODUCTS];
    for (int i = 0; i < PRODUCTS; i++)
        lengths[i] = *(const size_t *)input;
    const shoal_map_options options = {.chunk = 1}; /* one after the other, as each worker gets free */
    return shoal_pool_map(context, one_product, lengths, sizeof lengths[0], output, sizeof(double), PRODUCTS, &options);
}

static double seconds_since(int64_t start)
{
    return (double)(shoal_clock_now() - start) / 1e9;
}

static int show(const char *name, int error, const double *products, int64_t start)
{
    if (error != 0)
        fprintf(stderr, "%s: %s\n", name, shoal_error_text(error));
    else
        printf("%-36s %.17g  %8.4f s\n", name, products[0], seconds_since(start));
    return error;
}

/* The job itself, then twice through the store. */
static int run(shoal_store *store, const char *name, shoal_memo_function job, void *context, size_t length)
{
    double products[PRODUCTS];
    char label[64];
    int64_t start = shoal_clock_now();
    int error = show(name, job(&length, sizeof length, products, sizeof products, context), products, start);
    for (int call = 1; call <= 2 && error == 0; call++) {
        int hit;
        start = shoal_clock_now();
        error = shoal_memo_call(store, name, job, context, &length, sizeof length, products, sizeof products, &hit);
        snprintf(label, sizeof label, "%s, memo, %s", name, hit == 1 ? "looked up" : "computed");
        error = show(label, error, products, start);
    }
    return error;
}

static size_t length_that_fits(size_t length)
{
    long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page <= 0)
        return length;
    size_t fits = (size_t)pages / 10 * 8 * (size_t)page / (4 * sizeof(double));
    if (length <= fits)
        return length;
    printf("memory is short: vectors of %zu elements instead of %zu\n", fits, length);
    return fits;
}

static int parse_length(int count, char **arguments, size_t *length)
{
    *length = DEFAULT_LENGTH;
    if (count == 1)
        return 0;
    char *end = NULL;
    if (count == 3 && strcmp(arguments[1], "--length") == 0) {
        long long value = strtoll(arguments[2], &end, 10);
        if (end != arguments[2] && *end == '\0' && value > 0) {
            *length = (size_t)value;
            return 0;
        }
    }
    fprintf(stderr, "usage: %s [--length N]   (N elements in each vector, at least 1; %d by default)\n", arguments[0],
            DEFAULT_LENGTH);
    return -EINVAL;
}

int main(int count, char **arguments)
{
    size_t length;
    if (parse_length(count, arguments, &length) != 0)
        return 2;
    length = length_that_fits(length);

    /* Workers first: they are forks of this process, which is small now. */
    shoal_pool *pool;
    int error = shoal_pool_start(&(shoal_start_options){.workers = 2}, &pool);
    if (error != 0)
        return show("cannot start a pool", error, NULL, 0) != 0;
    char path[] = "/tmp/memo_dot-XXXXXX";
    shoal_store *store = NULL;
    error = mkdtemp(path) == NULL ? -errno : shoal_store_open(path, NULL, &store);
    if (error != 0)
        fprintf(stderr, "cannot open a store: %s\n", shoal_error_text(error));
    if (error == 0)
        error = run(store, "serially", serial, NULL, length);
    if (error == 0)
        error = run(store, "on a pool of two", parallel, pool, length);
    if (store != NULL) {
        (void)shoal_store_clear(store);
        shoal_store_close(store);
        (void)rmdir(path);
    }
    shoal_pool_stop(pool, 0);
    return error != 0;
}
