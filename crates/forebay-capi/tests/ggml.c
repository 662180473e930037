// Fills a real ggml context through forebay and compares it, byte by byte, with what ggml's own
// reader of GGUF files makes of the same file. Built by tests/ggml.rs where ggml is at hand.

#include <forebay.h>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <gguf.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static bool failed(forebay_status status, const char *what) {
    if (status == FOREBAY_OK) {
        return false;
    }
    fprintf(stderr, "error: %s: %s\n", what, forebay_last_error_message());
    return true;
}

// What llama_model_loader::load_all_data does, through forebay.
static bool load(const char *path, struct ggml_context *context) {
    forebay_loader *loader;
    forebay_loaded *loaded;
    if (failed(forebay_loader_new(path, NULL, &loader), "loader")) {
        return false;
    }
    for (struct ggml_tensor *tensor = ggml_get_first_tensor(context); tensor != NULL;
         tensor = ggml_get_next_tensor(context, tensor)) {
        if (failed(forebay_loader_into_host(loader, ggml_get_name(tensor), tensor->data,
                                            ggml_nbytes(tensor)),
                   ggml_get_name(tensor))) {
            forebay_loader_free(loader);
            return false;
        }
    }
    if (failed(forebay_loader_run(loader, &loaded), "load")) {
        return false;
    }
    forebay_loaded_free(loaded);
    return true;
}

static bool compare(struct ggml_context *expected, struct ggml_context *ours) {
    size_t tensors = 0, bytes = 0;
    for (struct ggml_tensor *tensor = ggml_get_first_tensor(ours); tensor != NULL;
         tensor = ggml_get_next_tensor(ours, tensor)) {
        const char *name = ggml_get_name(tensor);
        struct ggml_tensor *other = ggml_get_tensor(expected, name);
        if (other == NULL || ggml_nbytes(other) != ggml_nbytes(tensor) ||
            memcmp(other->data, tensor->data, ggml_nbytes(tensor)) != 0) {
            fprintf(stderr, "error: %s differs\n", name);
            return false;
        }
        tensors++;
        bytes += ggml_nbytes(tensor);
    }
    printf("%zu tensors, %zu bytes: as ggml reads them\n", tensors, bytes);
    return tensors > 0;
}

int main(int count, char **arguments) {
    struct ggml_context *expected = NULL, *ours = NULL;
    struct gguf_init_params whole = {.no_alloc = false, .ctx = &expected};
    struct gguf_init_params empty = {.no_alloc = true, .ctx = &ours};
    const char *path = count == 2 ? arguments[1] : "";
    struct gguf_context *theirs = gguf_init_from_file(path, whole);
    struct gguf_context *header = gguf_init_from_file(path, empty);
    if (theirs == NULL || header == NULL) {
        fprintf(stderr, "error: ggml can't read it\n");
        return 1;
    }
    ggml_backend_buffer_t buffer =
        ggml_backend_alloc_ctx_tensors_from_buft(ours, ggml_backend_cpu_buffer_type());
    bool done = buffer != NULL && load(path, ours) && compare(expected, ours);
    ggml_backend_buffer_free(buffer);
    gguf_free(header);
    gguf_free(theirs);
    ggml_free(ours);
    ggml_free(expected);
    return done ? 0 : 1;
}
