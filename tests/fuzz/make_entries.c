/* make_entries.c: writes some sound entries into a store, each in a file of its own and then those that are small on a
 * shelf, for the fuzzers to start from: in its folders `files` and `shelf`. */
#include <stdint.h>

#include "shoal.h"

int main(int argc, char **argv)
{
    shoal_store *store;
    shoal_folder *folder;
    static uint8_t data[70000];
    for (uint32_t turn = 0; turn < 2 * (SHOAL_COMPRESS_LZ4 + 1); turn++) {
        uint32_t method = turn / 2, on_shelf = turn % 2;
        shoal_store_options options = {.flags = on_shelf ? 0 : SHOAL_STORE_NAMED_FILES, .compression = method};
        if (argc != 2 || shoal_store_open(argv[1], &options, &store) != 0 ||
            shoal_folder_open(store, on_shelf ? "shelf" : "files", &folder) != 0)
            return 1;
        for (uint32_t count = 0; count < 6; count++) {
            shoal_part parts[6];
            shoal_key key = {{(uint8_t)count, (uint8_t)method}};
            for (uint32_t i = 0; i < count; i++)
                parts[i] = (shoal_part){data, i == 3 && !on_shelf ? sizeof data : 300 * (size_t)i, i};
            if (shoal_folder_put(folder, &key, parts, count, NULL) != 0)
                return 1;
        }
        shoal_folder_close(folder);
        shoal_store_close(store);
    }
    return 0;
}
