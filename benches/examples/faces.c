// Loads a model to `host` through the C interface. For benches/faces.py.
//
//     faces MODEL [--digest]
//
// Prints the seconds from the first call to the whole model, or `sha256  name` of each tensor.

#include <forebay.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void must(forebay_status status) {
    if (status != FOREBAY_OK) {
        fprintf(stderr, "error: %s\n", forebay_last_error_message());
        exit(1);
    }
}

static double now(void) {
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
    if (count < 2) {
        fprintf(stderr, "usage: faces MODEL [--digest]\n");
        return 2;
    }
    double started = now();
    forebay_options *options;
    forebay_loader *loader;
    forebay_loaded *loaded;
    must(forebay_options_new(&options));
    must(forebay_options_set(options, "device", "host"));
    must(forebay_loader_new(arguments[1], options, &loader));
    must(forebay_loader_run(loader, &loaded));
    double seconds = now() - started;
    if (count == 2) {
        printf("%.9f\n", seconds);
    }
    for (size_t index = 0; count > 2 && index < forebay_loaded_tensor_count(loaded); index++) {
        const forebay_tensor *tensor;
        char digest[65];
        must(forebay_loaded_tensor(loaded, index, &tensor));
        must(forebay_tensor_sha256(tensor, &digest));
        printf("%s  %s\n", digest, tensor->info->name);
    }
    forebay_loaded_free(loaded);
    forebay_options_free(options);
    return 0;
}
