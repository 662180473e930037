// How llama.cpp would be fed: one plain buffer, laid out as ggml lays out a buffer of the CPU, and
// its tensors filled in place. No ggml is needed; tests/ggml.c does the same with the real one.
//
//     cc llama.c $(pkg-config --cflags --libs forebay) -o llama
//     ./llama MODEL.gguf
//
// In llama.cpp the places are there already: llama_model::load_tensors allocates a buffer for each
// type of memory (ggml_backend_alloc_ctx_tensors_from_buft), and llama_model_loader::load_all_data
// reads every tensor to its `data`. What replaces that is `lend` and `load` below; the manual of
// forebay (C, "llama.cpp") goes through it step by step.

#include <forebay.h>

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What ggml_backend_buft_get_alignment answers for the CPU's memory.
enum { TENSOR_ALIGNMENT = 32 };

// As llama.cpp's: the share that is done, and whether to go on.
typedef bool (*llama_progress_callback)(float progress, void *user);

typedef struct progress {
    llama_progress_callback callback;
    void *user;
} progress;

// A buffer, and where in it each tensor begins: `tensor->data` in ggml.
typedef struct buffer {
    unsigned char *memory;
    size_t *offsets;
    size_t count, bytes;
} buffer;

static bool failed(forebay_status status, const char *what) {
    if (status == FOREBAY_OK) {
        return false;
    }
    fprintf(stderr, "error: %s: %s\n", what, forebay_last_error_message());
    return true;
}

static size_t padded(size_t bytes, size_t alignment) {
    return (bytes + alignment - 1) / alignment * alignment;
}

// One tensor after the other, each at a multiple of the alignment, as ggml_tallocr_alloc does it.
static bool allocate(const forebay_model *model, buffer *buffer) {
    buffer->count = forebay_model_tensor_count(model);
    buffer->offsets = calloc(buffer->count + 1, sizeof *buffer->offsets);
    if (buffer->offsets == NULL) {
        return false;
    }
    for (size_t index = 0; index < buffer->count; index++) {
        const forebay_tensor_info *info;
        if (failed(forebay_model_tensor(model, index, &info), "tensor")) {
            return false;
        }
        buffer->offsets[index] = buffer->bytes;
        buffer->bytes += padded((size_t)info->bytes, TENSOR_ALIGNMENT);
    }
    // A page's alignment lets forebay have the pages ready before bytes arrive.
    const size_t page_bytes = 4096;
    buffer->memory = aligned_alloc(page_bytes, padded(buffer->bytes + 1, page_bytes));
    return buffer->memory != NULL;
}

// load_all_data's loop over the tensors: instead of reading each, it says where each belongs.
static bool lend(const forebay_model *model, const buffer *buffer, forebay_loader *loader) {
    for (size_t index = 0; index < buffer->count; index++) {
        const forebay_tensor_info *info;
        if (failed(forebay_model_tensor(model, index, &info), "tensor")) {
            return false;
        }
        void *data = buffer->memory + buffer->offsets[index];
        // In a CUDA buffer of ggml's it would be forebay_loader_into_device, with the same address.
        if (failed(forebay_loader_into_host(loader, info->name, data, info->bytes), info->name)) {
            return false;
        }
    }
    return true;
}

// Other way round: forebay's callbacks stop by anything but 0, llama.cpp's by false.
static int on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes) {
    const progress *progress = user;
    float share = total_bytes > 0 ? (float)((double)done_bytes / (double)total_bytes) : 1.0F;
    return progress->callback(share, progress->user) ? 0 : 1;
}

// What is not lent (tensors that the engine does not use) stays in the file, untouched.
static bool leave_the_rest(forebay_options *options) {
    return !failed(forebay_options_set(options, "gpu-layers", "0"), "gpu-layers") &&
           !failed(forebay_options_set(options, "load-mode", "cpu=mmap"), "load-mode") &&
           !failed(forebay_options_set(options, "prefetch", "off"), "prefetch");
}

// On the thread that loads the model, which the callback is called on too. When it returns, the
// buffer is the caller's alone again, whether it went well or not.
static forebay_status load(const char *path, const forebay_model *model, const buffer *buffer,
                           progress *progress) {
    forebay_options *options = NULL;
    forebay_loader *loader = NULL;
    forebay_loaded *loaded = NULL;
    forebay_status status = FOREBAY_INVALID_ARGUMENT;
    if (!failed(forebay_options_new(&options), "options") && leave_the_rest(options) &&
        !failed(forebay_loader_new(path, options, &loader), "loader") &&
        !failed(forebay_loader_on_progress(loader, on_progress, progress, 0), "progress") &&
        lend(model, buffer, loader)) {
        status = forebay_loader_run(loader, &loaded);
        loader = NULL; // consumed
    }
    forebay_loaded_free(loaded);
    forebay_loader_free(loader);
    forebay_options_free(options);
    return status;
}

// Reads a tensor as anybody would, and compares.
static bool is_equal(FILE *file, const forebay_tensor_info *info, const unsigned char *data) {
    unsigned char piece[1 << 16];
    if (fseek(file, (long)info->offset, SEEK_SET) != 0) {
        return false;
    }
    for (uint64_t done = 0; done < info->bytes;) {
        size_t left = (size_t)(info->bytes - done);
        size_t got = fread(piece, 1, left < sizeof piece ? left : sizeof piece, file);
        if (got == 0 || memcmp(piece, data + done, got) != 0) {
            return false;
        }
        done += got;
    }
    return true;
}

static bool verify(const forebay_model *model, const buffer *buffer) {
    for (size_t index = 0; index < buffer->count; index++) {
        const forebay_tensor_info *info;
        const forebay_file *source;
        if (failed(forebay_model_tensor(model, index, &info), "tensor") ||
            failed(forebay_model_file(model, info->file, &source), "file")) {
            return false;
        }
        FILE *file = fopen(source->path, "rb");
        bool equal = file != NULL && is_equal(file, info, buffer->memory + buffer->offsets[index]);
        if (file != NULL) {
            fclose(file);
        }
        if (!equal) {
            fprintf(stderr, "error: %s is not what the file has\n", info->name);
            return false;
        }
    }
    return true;
}

static bool show(float share, void *user) {
    (void)user;
    fprintf(stderr, "\r%3.0f %%%s", (double)share * 100, share < 1 ? "" : "\n");
    return true;
}

// As a user who has enough of it: load_all_data answers false then, and llama.cpp gives up.
static bool give_up(float share, void *user) {
    (void)share;
    (void)user;
    return false;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: llama MODEL.gguf\n");
        return 2;
    }
    forebay_model *model;
    if (failed(forebay_model_open(arguments[1], &model), "open")) {
        return 1;
    }
    buffer buffer = {0};
    progress shown = {show, NULL}, given_up = {give_up, NULL};
    bool done = allocate(model, &buffer);
    if (done && load(arguments[1], model, &buffer, &given_up) != FOREBAY_STOPPED) {
        fprintf(stderr, "error: the callback did not stop the load\n");
        done = false;
    }
    done = done && !failed(load(arguments[1], model, &buffer, &shown), "load") &&
           verify(model, &buffer);
    if (done) {
        printf("%zu tensors, %zu bytes: as in the file\n", buffer.count, buffer.bytes);
    }
    free(buffer.memory);
    free(buffer.offsets);
    forebay_model_free(model);
    return done ? 0 : 1;
}
