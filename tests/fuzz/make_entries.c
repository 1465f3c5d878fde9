/* make_entries.c: writes some sound entries into a folder, for the fuzzer to start from. */
#include <stdint.h>
#include <stdio.h>

#include "shoal.h"

int main(int argc, char **argv)
{
    shoal_store *store;
    shoal_folder *folder;
    static uint8_t data[70000];
    for (uint32_t method = SHOAL_COMPRESS_NONE; method <= SHOAL_COMPRESS_LZ4; method++) {
        shoal_store_options options = {.compression = method};
        if (argc != 2 || shoal_store_open(argv[1], &options, &store) != 0 ||
            shoal_folder_open(store, "seeds", &folder) != 0)
            return 1;
        for (uint32_t count = 0; count < 6; count++) {
            shoal_part parts[6];
            shoal_key key = {{(uint8_t)count, (uint8_t)method}};
            for (uint32_t i = 0; i < count; i++)
                parts[i] = (shoal_part){data, i == 3 ? sizeof data : 300 * (size_t)i, i};
            if (shoal_folder_put(folder, &key, parts, count, NULL) != 0)
                return 1;
        }
        if (method == SHOAL_COMPRESS_LZ4)
            (void)puts(shoal_folder_path(folder));
        shoal_folder_close(folder);
        shoal_store_close(store);
    }
    return 0;
}
