/* pool_map.c: a pool of processes maps a function over an array.
 *
 *     cc pool_map.c $(pkg-config --cflags --libs shoal) && ./a.out
 */
#include <shoal.h>

#include <stdio.h>

static int square(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    (void)input_size;
    (void)output_size;
    (void)context;
    const long x = *(const long *)input;
    *(long *)output = x * x;
    return 0;
}

int main(void)
{
    const long inputs[] = {1, 2, 3, 4};
    long outputs[4];

    shoal_pool *pool;
    int error = shoal_pool_start(NULL, &pool);
    if (error != 0) {
        fprintf(stderr, "cannot start a pool: %s\n", shoal_error_text(error));
        return 1;
    }
    error = shoal_pool_map(pool, square, inputs, sizeof inputs[0], outputs, sizeof outputs[0], 4, NULL);
    shoal_pool_stop(pool, 0);
    if (error != 0) {
        fprintf(stderr, "the map failed: %s\n", shoal_error_text(error));
        return 1;
    }
    printf("[%ld, %ld, %ld, %ld] on %u cpus\n", outputs[0], outputs[1], outputs[2], outputs[3], shoal_cpu_count());
    return 0;
}
