// A model through forebay's C interface: what is in it, what a load would do, and the load itself.
//
//     cc load.c $(pkg-config --cflags --libs forebay) -o load
//     ./load [FLAGS] MODEL
//
//     --list           print the model's tensors, and load nothing
//     --plan           print what the load would do, and load nothing
//     --set KEY=VALUE  an option, as the flags of `forebay load` are called
//     --own            let the tensors land in memory of this program's own
//     --steps          take the tensors one by one, as they land
//     --digest         print `sha256  name` of every tensor, read back from where it landed
//     --report         print what the load did, as JSON
//     --stop           end the load from the progress callback, at its first call
//
// Ctrl-C ends the load in order.

#include <forebay.h>

#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct flags {
    const char *path;
    bool list, plan, own, steps, digest, report, stop;
} flags;

// A signal's handler finds it here; forebay_cancel_request may be called in one.
static forebay_cancel *cancel;

static void on_signal(int signal_number) {
    (void)signal_number;
    forebay_cancel_request(cancel);
}

static bool failed(forebay_status status, const char *what) {
    if (status == FOREBAY_OK) {
        return false;
    }
    fprintf(stderr, "error: %s: %s\n", what, forebay_last_error_message());
    return true;
}

static int on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes) {
    const flags *given = user;
    if (given->stop) {
        return 1;
    }
    fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " bytes", done_bytes, total_bytes);
    if (done_bytes == total_bytes) {
        fputc('\n', stderr);
    }
    return 0;
}

static void print_info(const forebay_tensor_info *info) {
    printf("%s %s [", info->name, info->dtype);
    for (size_t dimension = 0; dimension < info->rank; dimension++) {
        printf("%s%" PRIu64, dimension > 0 ? ", " : "", info->shape[dimension]);
    }
    printf("] %" PRIu64 " bytes at %" PRIu64 " of file %zu\n", info->bytes, info->offset,
           info->file);
}

static bool list(const forebay_model *model) {
    printf("%s\n", forebay_model_format(model));
    for (size_t index = 0; index < forebay_model_file_count(model); index++) {
        const forebay_file *file;
        if (failed(forebay_model_file(model, index, &file), "file")) {
            return false;
        }
        printf("%s: %" PRIu64 " bytes\n", file->path, file->bytes);
    }
    for (size_t index = 0; index < forebay_model_metadata_count(model); index++) {
        const char *key, *value;
        if (failed(forebay_model_metadata_key(model, index, &key), "metadata") ||
            failed(forebay_model_metadata_text(model, key, &value, NULL), key)) {
            return false;
        }
        printf("%s = %s\n", key, value);
    }
    for (size_t index = 0; index < forebay_model_tensor_count(model); index++) {
        const forebay_tensor_info *info;
        if (failed(forebay_model_tensor(model, index, &info), "tensor")) {
            return false;
        }
        print_info(info);
    }
    return true;
}

// Allocates a place for each tensor and lends it to the loader. The places outlive the load: they
// are freed by free_places after what was loaded.
static bool lend(const forebay_model *model, forebay_loader *loader, void **places) {
    for (size_t index = 0; index < forebay_model_tensor_count(model); index++) {
        const forebay_tensor_info *info;
        if (failed(forebay_model_tensor(model, index, &info), "tensor")) {
            return false;
        }
        // malloc may answer NULL for nothing.
        places[index] = malloc(info->bytes > 0 ? info->bytes : 1);
        if (places[index] == NULL) {
            fprintf(stderr, "error: no memory for %s\n", info->name);
            return false;
        }
        if (failed(forebay_loader_into_host(loader, info->name, places[index], info->bytes),
                   info->name)) {
            return false;
        }
    }
    return true;
}

static void free_places(void **places, size_t count) {
    for (size_t index = 0; places != NULL && index < count; index++) {
        free(places[index]);
    }
    free(places);
}

// That what was lent is where the tensors are.
static bool check_places(const forebay_loaded *loaded, void *const *places) {
    for (size_t index = 0; index < forebay_loaded_tensor_count(loaded); index++) {
        const forebay_tensor *tensor;
        if (failed(forebay_loaded_tensor(loaded, index, &tensor), "tensor")) {
            return false;
        }
        if (tensor->info->bytes > 0 && tensor->data != places[index]) {
            fprintf(stderr, "error: %s is not in its place\n", tensor->info->name);
            return false;
        }
    }
    return true;
}

// Takes tensors as they land. From forebay_load_next on they are whole and can be used.
static forebay_loaded *load_in_steps(forebay_loader *loader) {
    forebay_load *load;
    if (failed(forebay_load_start(loader, &load), "start")) {
        return NULL;
    }
    for (;;) {
        const forebay_tensor *tensor;
        if (failed(forebay_load_next(load, &tensor), "next")) {
            forebay_load_free(load);
            return NULL;
        }
        if (tensor == NULL) {
            break;
        }
        fprintf(stderr, "%s is on %s\n", tensor->info->name, tensor->backend);
    }
    forebay_loaded *loaded;
    return failed(forebay_load_finish(load, &loaded), "finish") ? NULL : loaded;
}

static forebay_loaded *load_at_once(forebay_loader *loader) {
    forebay_loaded *loaded;
    return failed(forebay_loader_run(loader, &loaded), "load") ? NULL : loaded;
}

static bool print_results(const forebay_loaded *loaded, const flags *given) {
    for (size_t index = 0; given->digest && index < forebay_loaded_tensor_count(loaded); index++) {
        const forebay_tensor *tensor;
        char hex[65];
        if (failed(forebay_loaded_tensor(loaded, index, &tensor), "tensor") ||
            failed(forebay_tensor_sha256(tensor, &hex), "digest")) {
            return false;
        }
        printf("%s  %s\n", hex, tensor->info->name);
    }
    char *report;
    if (given->report) {
        if (failed(forebay_loaded_report_json(loaded, &report), "report")) {
            return false;
        }
        printf("%s\n", report);
        forebay_text_free(report);
    }
    return true;
}

static bool load(const forebay_model *model, const forebay_options *options, flags *given) {
    size_t count = forebay_model_tensor_count(model);
    void **places = NULL;
    forebay_loader *loader;
    if (failed(forebay_loader_new(given->path, options, &loader), "loader")) {
        return false;
    }
    bool ready = !failed(forebay_loader_cancel_with(loader, cancel), "cancel") &&
                 !failed(forebay_loader_on_progress(loader, on_progress, given, 0), "progress");
    if (ready && given->own) {
        places = calloc(count > 0 ? count : 1, sizeof *places);
        ready = places != NULL && lend(model, loader, places);
    }
    if (!ready) {
        forebay_loader_free(loader);
        free_places(places, count);
        return false;
    }
    // Either consumes the loader.
    forebay_loaded *loaded = given->steps ? load_in_steps(loader) : load_at_once(loader);
    bool done = loaded != NULL && (places == NULL || check_places(loaded, places)) &&
                print_results(loaded, given);
    // In this order: forebay may look into lent memory until what was loaded is freed.
    forebay_loaded_free(loaded);
    free_places(places, count);
    return done;
}

static bool set(forebay_options *options, char *setting) {
    char *value = strchr(setting, '=');
    if (value == NULL) {
        fprintf(stderr, "error: '%s' is not KEY=VALUE\n", setting);
        return false;
    }
    *value = '\0';
    return !failed(forebay_options_set(options, setting, value + 1), "option");
}

static bool parse(int count, char **arguments, flags *given, forebay_options *options) {
    const struct { const char *name; bool *flag; } known[] = {
        {"--list", &given->list},     {"--plan", &given->plan},     {"--own", &given->own},
        {"--steps", &given->steps},   {"--digest", &given->digest}, {"--report", &given->report},
        {"--stop", &given->stop},
    };
    for (int index = 1; index < count; index++) {
        bool found = false;
        for (size_t flag = 0; flag < sizeof known / sizeof *known; flag++) {
            if (strcmp(arguments[index], known[flag].name) == 0) {
                *known[flag].flag = found = true;
            }
        }
        if (!found && strcmp(arguments[index], "--set") == 0 && index + 1 < count) {
            if (!set(options, arguments[++index])) {
                return false;
            }
        } else if (!found) {
            given->path = arguments[index];
        }
    }
    if (given->path == NULL) {
        fprintf(stderr, "error: no model is named\n");
    }
    return given->path != NULL;
}

static bool run(const flags *given, const forebay_options *options) {
    flags copy = *given;
    forebay_model *model;
    if (failed(forebay_model_open(given->path, &model), "open")) {
        return false;
    }
    bool done = true;
    char *plan;
    if (given->list) {
        done = list(model);
    }
    if (given->plan) {
        done = done && !failed(forebay_plan_json(model, options, &plan), "plan");
        if (done) {
            printf("%s\n", plan);
            forebay_text_free(plan);
        }
    }
    if (!given->list && !given->plan) {
        done = load(model, options, &copy);
    }
    forebay_model_free(model);
    return done;
}

int main(int count, char **arguments) {
    flags given = {0};
    forebay_options *options;
    if (forebay_abi_version() != FOREBAY_ABI_VERSION) {
        fprintf(stderr, "error: the library is %s, and another than the header\n",
                forebay_version());
        return 1;
    }
    if (failed(forebay_options_new(&options), "options") ||
        failed(forebay_cancel_new(&cancel), "cancel")) {
        return 1;
    }
    signal(SIGINT, on_signal);
    bool done = parse(count, arguments, &given, options) && run(&given, options);
    signal(SIGINT, SIG_DFL);
    forebay_cancel_free(cancel);
    forebay_options_free(options);
    forebay_release_staging();
    return done ? 0 : 1;
}
