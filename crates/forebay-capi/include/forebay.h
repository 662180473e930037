// forebay: moves model weights from storage to where they are computed on.
//
// Made by cbindgen from the crate forebay-capi; not to be edited.
//
// The rules that hold for every function:
//
// - Answers. What can fail answers a forebay_status; FOREBAY_OK is 0. After anything else,
//   forebay_last_error_message() says, on the same thread, what was wrong and what to do about it.
//   Nothing unwinds into the caller, and nothing is printed, but for where a bug of forebay's is.
// - NULL. A NULL handle, text or place for an answer is FOREBAY_INVALID_ARGUMENT, unless the
//   function says otherwise; counts of NULL are 0, and freeing NULL does nothing. A pointer that is
//   to be written to a place is written there as NULL when the function fails.
// - Ownership. What a `_new`, `_open`, `_start`, `_run` or `_finish` writes belongs to the caller,
//   who frees it once with the function of its type. `const` pointers that are handed out belong to
//   the handle that they came from and live as long as it does. Texts end in NUL; those that may
//   hold a NUL themselves come with their length.
// - Threads. Different handles may be used by different threads at once. One handle may go from
//   thread to thread, and may be used by several at once only through functions that take it as
//   `const`. forebay_cancel is the exception: every thread may ask for an end at any time.
// - Callbacks run on the thread that called the function they are called from. They must return:
//   neither longjmp nor an exception may leave them. They must not use the loader or the load that
//   calls them.
// - Structs are handed out by pointer and only ever grow at their end: pass on the pointers that
//   were handed out, never a copy, don't step from one to the next, and don't compare their sizes.
// - Names that hold a NUL can't be given to functions that take a name.


#ifndef FOREBAY_H
#define FOREBAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The interface that this header describes. It changes when a program that was built with an older
// header would no longer work, and with it the name of the library, `libforebay.so.0`.
#define FOREBAY_ABI_VERSION 0

// How a call ended. Numbers are never given anew; later versions may add some.
enum forebay_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // It did what it says.
    FOREBAY_OK = 0,
    // A NULL, an index past the end, a text that is not UTF-8, a load of the process that this one was
    // forked from: the call itself was wrong.
    FOREBAY_INVALID_ARGUMENT = 1,
    // There is nothing of that name, or it is of another type.
    FOREBAY_NOT_FOUND = 2,
    // A file can't be opened: it is not there, or may not be read.
    FOREBAY_FILE = 3,
    // The file is damaged, or is no model.
    FOREBAY_FORMAT = 4,
    // An option that is none, or that can't be met; lent memory that does not fit.
    FOREBAY_OPTION = 5,
    // A read failed: the storage, or a file that was cut short.
    FOREBAY_READ = 6,
    // The system refuses memory, locks or threads.
    FOREBAY_MEMORY = 7,
    // A device, its driver, or a copy to it failed.
    FOREBAY_DEVICE = 8,
    // The tensors do not fit into the memory of a device: fewer layers may.
    FOREBAY_DEVICE_MEMORY = 9,
    // A file was written to while it was being loaded.
    FOREBAY_CHANGED = 10,
    // forebay_cancel_request was called.
    FOREBAY_CANCELLED = 11,
    // A callback answered other than 0.
    FOREBAY_STOPPED = 12,
    // A bug of forebay's. The handles of the call may only be freed.
    FOREBAY_INTERNAL = 13,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum forebay_status forebay_status;
#else
typedef int32_t forebay_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Stops the loads that were given it.
typedef struct forebay_cancel forebay_cancel;

// A load whose tensors are landing.
typedef struct forebay_load forebay_load;

// Every tensor of a model, in place.
typedef struct forebay_loaded forebay_loaded;

// A load that has not begun.
typedef struct forebay_loader forebay_loader;

// A model whose headers have been read, and none of its tensors.
typedef struct forebay_model forebay_model;

// What a plan or a load is to do; starts with every option at its default.
typedef struct forebay_options forebay_options;

// What a forebay_tensor is inside.
typedef struct forebay_tensor_handle forebay_tensor_handle;

// A file of a model.
typedef struct forebay_file {
    // Its path: bytes, as the system has them.
    const char *path;
    // Its length.
    uint64_t bytes;
} forebay_file;

// A tensor as the model's headers describe it.
typedef struct forebay_tensor_info {
    // Its place among the model's tensors, which are in file order.
    size_t index;
    // The name, in UTF-8.
    const char *name;
    // The length of the name without the NUL behind it.
    size_t name_bytes;
    // The element or block type, spelt as the format spells it: "Q4_K", "F16", "BF16".
    const char *dtype;
    // Elements per dimension, outermost first. (ggml's `ne` has them the other way round. Where a
    // `.ptd` file has them in another order, the metadata's `ptd.dim_order.NAME` says so.)
    const uint64_t *shape;
    // How many dimensions there are; 0 for a scalar.
    size_t rank;
    // How many bytes it has.
    uint64_t bytes;
    // Which of the model's files it is in.
    size_t file;
    // Where its bytes begin in that file.
    uint64_t offset;
} forebay_tensor_info;

// A tensor, whole and where it belongs.
typedef struct forebay_tensor {
    // What the model's headers say of it.
    const struct forebay_tensor_info *info;
    // Where it is: "cpu", "host" or "cuda:N"; of a tensor in parts, where the first of them is.
    const char *backend;
    // Its bytes, as the file has them, if they can be read where they are: NULL for what is on a
    // device, in parts, or repacked; forebay_tensor_read copies those. The place of a tensor of no
    // bytes is not to be looked at.
    const void *data;
    // The number of its CUDA device; -1 if it is on none.
    int32_t device;
    // Whether `data` is in a mapping of the file: pages may still come from storage as they are
    // touched, and touching them after the file was cut short is a SIGBUS.
    bool is_mapped;
    // Where it begins in the address space of its device; 0 if it is on none, or in parts.
    uint64_t device_address;
    // How many parts forebay_tensor_part knows: 1, but for tensors that are split over devices.
    size_t part_count;
    // For the functions that take a tensor.
    const struct forebay_tensor_handle *handle;
} forebay_tensor;

// Called for each tensor that has landed, with what was given along with it. Any answer but 0
// stops the load, which ends with FOREBAY_STOPPED. The tensor lives on as one of forebay_load_next
// does.
typedef int (*forebay_tensor_callback)(void *user, const struct forebay_tensor *tensor);

// Called with how many bytes of how many are where they belong. Any answer but 0 stops the load,
// which ends with FOREBAY_STOPPED.
typedef int (*forebay_progress_callback)(void *user, uint64_t done_bytes, uint64_t total_bytes);

// A tensor, or the part of one that a device has, as a matrix: all outer dimensions are rows, the
// innermost is columns.
typedef struct forebay_part {
    // Where it is: "cpu", "host" or "cuda:N".
    const char *backend;
    // The number of its CUDA device; -1 if it is on none.
    int32_t device;
    // Where it begins in the address space of its device; 0 if it is on none.
    uint64_t device_address;
    // Its bytes, row after row without gaps.
    uint64_t bytes;
    // The first of the tensor's rows that it has.
    uint64_t rows_begin;
    // One past the last of them.
    uint64_t rows_end;
    // The first of the tensor's columns that it has.
    uint64_t columns_begin;
    // One past the last of them.
    uint64_t columns_end;
} forebay_part;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The interface that the library has: FOREBAY_ABI_VERSION as it was when the library was built.
// Programs that look the library up themselves (dlopen) compare the two.
//
// Threads: any, at any time.
uint32_t forebay_abi_version(void);

// The version of the library, "0.1.0", say; a text that lives for ever.
//
// Threads: any, at any time.
const char *forebay_version(void);

// Frees a text that a function has written to a `char **`. NULL is fine.
//
// Threads: any. The text is gone afterwards.
//
// # Safety
// The text comes from this library, and has not been freed.
void forebay_text_free(char *text);

// Gives back what the process keeps for its next load: pinned staging memory, and with it the
// contexts of CUDA devices. For programs that load once, and before the library is unloaded.
//
// Threads: any; loads under way are not touched.
void forebay_release_staging(void);

// How the last call that failed on this thread ended; FOREBAY_OK if none has. Calls that go well
// leave it alone.
//
// Threads: each has its own.
forebay_status forebay_last_error_status(void);

// What was wrong with the last call that failed on this thread: a line, then a line for each cause
// ("  because: ...") and one for what to do about it ("  remedy: ..."), where that is known.
// UTF-8, never NULL, "" if none has failed. It lives until the next call that fails on the same
// thread.
//
// Threads: each has its own.
const char *forebay_last_error_message(void);

// Makes options with every default.
//
// Threads: any. The caller frees them with forebay_options_free.
forebay_status forebay_options_new(struct forebay_options **options);

// Sets an option. Keys are the long flags of `forebay load` without the dashes, values are spelt
// as there: "device" = "cuda:0", "gpu-layers" = "20", "load-mode" = "device=dio,cpu=mmap",
// "engine" = "threads", "staging" = "64MiB". "place" ("REGEX=BACKEND") adds a rule behind those
// already there; "no-fallback" is "on" or "off".
//
// FOREBAY_OPTION for a key or value that is none, and nothing has changed then. Both texts are
// copied.
//
// Threads: one at a time.
//
// # Safety
// The texts end in NUL.
forebay_status forebay_options_set(struct forebay_options *options,
                                   const char *key,
                                   const char *value);

// Frees the options; loaders have copies of theirs. NULL is fine.
//
// Threads: any, once nobody uses them.
void forebay_options_free(struct forebay_options *options);

// Opens a .gguf file (one part of a split one opens them all), a .safetensors file, a
// *.safetensors.index.json, a .ptd file, or a folder that holds exactly one such model, and reads
// its headers. The path is bytes, as the system has them.
//
// FOREBAY_FILE where it can't be opened, FOREBAY_FORMAT where it is no model, FOREBAY_READ where
// the headers can't be read.
//
// Threads: any. The caller frees the model with forebay_model_free.
//
// # Safety
// The path ends in NUL.
forebay_status forebay_model_open(const char *path, struct forebay_model **model);

// Closes the model; what it has handed out is gone with it. NULL is fine. Loads need no open
// model.
//
// Threads: any, once nobody uses it.
void forebay_model_free(struct forebay_model *model);

// The format: "gguf", "safetensors" or "ptd"; a text that lives for ever. NULL for NULL.
//
// Threads: several at once.
const char *forebay_model_format(const struct forebay_model *model);

// How many files the model has. 0 for NULL.
//
// Threads: several at once.
size_t forebay_model_file_count(const struct forebay_model *model);

// A file by its index. It lives as long as the model.
//
// FOREBAY_INVALID_ARGUMENT past the end.
//
// Threads: several at once.
forebay_status forebay_model_file(const struct forebay_model *model,
                                  size_t index,
                                  const struct forebay_file **file);

// How many tensors the model has. 0 for NULL.
//
// Threads: several at once.
size_t forebay_model_tensor_count(const struct forebay_model *model);

// A tensor by its index; they are in file order. It lives as long as the model.
//
// FOREBAY_INVALID_ARGUMENT past the end.
//
// Threads: several at once.
forebay_status forebay_model_tensor(const struct forebay_model *model,
                                    size_t index,
                                    const struct forebay_tensor_info **info);

// A tensor by its name, in UTF-8. It lives as long as the model.
//
// FOREBAY_NOT_FOUND if there is none.
//
// Threads: several at once.
//
// # Safety
// The name ends in NUL.
forebay_status forebay_model_find_tensor(const struct forebay_model *model,
                                         const char *name,
                                         const struct forebay_tensor_info **info);

// What a load of the model with these options (NULL: the defaults) would do, and why, as one JSON
// object: what `forebay plan --json` prints. No tensor is read.
//
// FOREBAY_OPTION where the options can't be met together.
//
// Threads: several at once. The caller frees the text with forebay_text_free.
forebay_status forebay_plan_json(const struct forebay_model *model,
                                 const struct forebay_options *options,
                                 char **json);

// How many key/values the model's metadata has. 0 for NULL.
//
// Threads: several at once.
size_t forebay_model_metadata_count(const struct forebay_model *model);

// A key by its index, in the file's order. The text lives as long as the model.
//
// FOREBAY_INVALID_ARGUMENT past the end.
//
// Threads: several at once.
forebay_status forebay_model_metadata_key(const struct forebay_model *model,
                                          size_t index,
                                          const char **key);

// The value of a key as a text: strings as the file has them (GGUF does not promise UTF-8, nor
// that there is no NUL in them), numbers in digits, "true" and "false", arrays as type and length,
// `string[32000]`. The text lives as long as the model; its length goes to `bytes`, which may be
// NULL.
//
// FOREBAY_NOT_FOUND if there is no such key.
//
// Threads: several at once.
//
// # Safety
// The key ends in NUL.
forebay_status forebay_model_metadata_text(const struct forebay_model *model,
                                           const char *key,
                                           const char **value,
                                           size_t *bytes);

// The value of a key, if it is an integer of any width that is not negative.
//
// FOREBAY_NOT_FOUND if there is no such key, or it is something else.
//
// Threads: several at once.
//
// # Safety
// The key ends in NUL.
forebay_status forebay_model_metadata_u64(const struct forebay_model *model,
                                          const char *key,
                                          uint64_t *value);

// The value of a key, if it is a float of either width.
//
// FOREBAY_NOT_FOUND if there is no such key, or it is something else.
//
// Threads: several at once.
//
// # Safety
// The key ends in NUL.
forebay_status forebay_model_metadata_f64(const struct forebay_model *model,
                                          const char *key,
                                          double *value);

// The value of a key, if it is a boolean.
//
// FOREBAY_NOT_FOUND if there is no such key, or it is something else.
//
// Threads: several at once.
//
// # Safety
// The key ends in NUL.
forebay_status forebay_model_metadata_bool(const struct forebay_model *model,
                                           const char *key,
                                           bool *value);

// Makes a flag that nobody has set.
//
// Threads: any. The caller frees it with forebay_cancel_free.
forebay_status forebay_cancel_new(struct forebay_cancel **cancel);

// Asks every load that has this flag to end, and returns at once; each of them ends with
// FOREBAY_CANCELLED when what it has in flight is drained. The flag stays set: loads that are
// given it later end at their start. NULL is fine.
//
// Threads: any, at any time, also at once with others, and also from a signal's handler: it only
// stores to memory.
void forebay_cancel_request(const struct forebay_cancel *cancel);

// Frees the flag. Loads that were given it go on, and can be stopped by it no more. NULL is fine.
//
// Threads: any, once nobody (no signal's handler either) uses the flag.
void forebay_cancel_free(struct forebay_cancel *cancel);

// Makes a loader of the model at `path` (as forebay_model_open takes it) with these options (NULL:
// the defaults), which are copied. Opens nothing yet.
//
// Threads: any. The caller hands it to forebay_loader_run or forebay_load_start, or frees it with
// forebay_loader_free.
//
// # Safety
// The path ends in NUL.
forebay_status forebay_loader_new(const char *path,
                                  const struct forebay_options *options,
                                  struct forebay_loader **loader);

// Makes a loader of a model that is open already: of those files, whatever their paths lead to by
// now. The model may be freed before the load. That one of its files is written to between its
// opening and the end of the load is FOREBAY_CHANGED.
//
// Threads: any. The caller hands it to forebay_loader_run or forebay_load_start, or frees it with
// forebay_loader_free.
forebay_status forebay_loader_of(const struct forebay_model *model,
                                 const struct forebay_options *options,
                                 struct forebay_loader **loader);

// Lends memory of the caller's for a tensor, whatever the options say of it: its bytes are written
// to `memory` on, as the file has them. `bytes` are at least the tensor's; what is behind them is
// not touched. As many tensors as the model has may be lent memory, at any alignment; places must
// not overlap. `memory` may be NULL if `bytes` are 0.
//
// An unknown name and memory that is too small are FOREBAY_OPTION when the load starts.
//
// Threads: one at a time.
//
// # Safety
// - The name ends in NUL.
// - The memory stays the caller's. It stays allocated, and nobody reads or writes it, until the
//   tensor has been handed out; then it may be read, and stays allocated and unwritten until
//   forebay_loader_run, forebay_load_start or forebay_load_finish has failed, or the forebay_load
//   or forebay_loaded has been freed.
forebay_status forebay_loader_into_host(struct forebay_loader *loader,
                                        const char *name,
                                        void *memory,
                                        uint64_t bytes);

// The same with memory of the CUDA device `ordinal`, at `address` of its address space (a
// CUdeviceptr of the device's primary context, which is the one of CUDA's runtime).
//
// An unknown name and memory that is too small are FOREBAY_OPTION when the load starts, memory
// that is not the device's is FOREBAY_DEVICE.
//
// Threads: one at a time.
//
// # Safety
// - The name ends in NUL.
// - The memory as in forebay_loader_into_host; and whatever was queued on it before has completed,
//   since copies go through streams that wait for no other.
forebay_status forebay_loader_into_device(struct forebay_loader *loader,
                                          const char *name,
                                          uint32_t ordinal,
                                          uint64_t address,
                                          uint64_t bytes);

// Has `callback` called for every tensor as it lands, by forebay_loader_run and
// forebay_load_finish (forebay_load_next hands its tensor out instead). NULL for none.
//
// Threads: one at a time.
//
// # Safety
// The callback may be called with `user` until the load ends, on the thread that runs it.
forebay_status forebay_loader_on_tensor(struct forebay_loader *loader,
                                        forebay_tensor_callback callback,
                                        void *user);

// Has `callback` called with the progress, at most every `interval_ms` milliseconds (0: 100) and
// at the end, by forebay_loader_run, forebay_load_next and forebay_load_finish. NULL for none.
//
// Threads: one at a time.
//
// # Safety
// The callback may be called with `user` until the load ends, on the thread that runs it.
forebay_status forebay_loader_on_progress(struct forebay_loader *loader,
                                          forebay_progress_callback callback,
                                          void *user,
                                          uint32_t interval_ms);

// Lets `cancel` stop the load. The flag may be freed before the load ends.
//
// Threads: one at a time for the loader, any for the flag.
forebay_status forebay_loader_cancel_with(struct forebay_loader *loader,
                                          const struct forebay_cancel *cancel);

// Loads everything, and returns when all of it is there or the load has failed; then nothing is in
// flight and no thread of it runs. The loader is consumed, also by a failure.
//
// Fails with everything that forebay_status names.
//
// Threads: one at a time; it blocks. The caller frees the result with forebay_loaded_free.
forebay_status forebay_loader_run(struct forebay_loader *loader, struct forebay_loaded **loaded);

// Frees a loader that was never run or started. NULL is fine.
//
// Threads: any, once nobody uses it.
void forebay_loader_free(struct forebay_loader *loader);

// Opens, plans and starts; returns as soon as reads are under way. Tensors land from then on,
// whether or not anybody takes them. The loader is consumed, also by a failure.
//
// FOREBAY_FILE, FOREBAY_FORMAT, FOREBAY_OPTION, FOREBAY_MEMORY, FOREBAY_DEVICE,
// FOREBAY_DEVICE_MEMORY, FOREBAY_CANCELLED.
//
// Threads: one at a time. The caller hands the load to forebay_load_finish, or frees it with
// forebay_load_free.
forebay_status forebay_load_start(struct forebay_loader *loader, struct forebay_load **load);

// Waits for the next tensor that has landed, whole and where it belongs; NULL is written with
// FOREBAY_OK when there is no more. It lives as long as the load, and once forebay_load_finish has
// answered FOREBAY_OK, as long as what that wrote.
//
// Fails as forebay_loader_run does; then nothing of the load runs any more, and it fails with the
// same again.
//
// Threads: one at a time; it blocks. Tensors that it has handed out may be used by other threads
// meanwhile, until the load is freed or forebay_load_finish has failed.
forebay_status forebay_load_next(struct forebay_load *load, const struct forebay_tensor **tensor);

// How many bytes of how many are where they belong.
//
// Threads: one at a time; forebay_loader_on_progress is for hearing of it during a wait.
//
// The two places differ.
forebay_status forebay_load_progress(struct forebay_load *load,
                                     uint64_t *done_bytes,
                                     uint64_t *total_bytes);

// Waits for everything and hands the whole model over. Only then is the load a success: that a
// file was changed under it is found out at the end. The load is consumed, also by a failure;
// tensors that were handed out are then gone.
//
// Fails as forebay_loader_run does, and with what forebay_load_next has failed with.
//
// Threads: one at a time; it blocks. The caller frees the result with forebay_loaded_free.
forebay_status forebay_load_finish(struct forebay_load *load, struct forebay_loaded **loaded);

// Stops the load, waits until nothing is in flight, and frees it with the tensors that it has
// handed out. NULL is fine.
//
// Threads: any, once nobody uses it; it blocks for as long as reads in flight take.
void forebay_load_free(struct forebay_load *load);

// How many tensors there are. 0 for NULL.
//
// Threads: several at once.
size_t forebay_loaded_tensor_count(const struct forebay_loaded *loaded);

// A tensor by its index; they are in file order. It lives as long as `loaded`.
//
// FOREBAY_INVALID_ARGUMENT past the end.
//
// Threads: several at once.
forebay_status forebay_loaded_tensor(const struct forebay_loaded *loaded,
                                     size_t index,
                                     const struct forebay_tensor **tensor);

// A tensor by its name, in UTF-8. It lives as long as `loaded`.
//
// FOREBAY_NOT_FOUND if there is none.
//
// Threads: several at once.
//
// # Safety
// The name ends in NUL.
forebay_status forebay_loaded_find_tensor(const struct forebay_loaded *loaded,
                                          const char *name,
                                          const struct forebay_tensor **tensor);

// What the load did, as one JSON object: what `forebay load --json` prints, without digests.
//
// Threads: several at once. The caller frees the text with forebay_text_free.
forebay_status forebay_loaded_report_json(const struct forebay_loaded *loaded, char **json);

// Frees the tensors and their memory, but for memory that was lent: that is the caller's alone
// again. NULL is fine.
//
// Threads: any, once nobody uses it or its tensors (kernels of a device included).
void forebay_loaded_free(struct forebay_loaded *loaded);

// A part of a tensor that is split over devices, in the order of rows or columns; every other
// tensor has one, which is all of it. It lives as long as the tensor.
//
// FOREBAY_INVALID_ARGUMENT past the end.
//
// Threads: several at once.
forebay_status forebay_tensor_part(const struct forebay_tensor *tensor,
                                   size_t index,
                                   const struct forebay_part **part);

// Copies `bytes` of the tensor's bytes from `offset` on to `buffer`, as the file has them,
// wherever they are: from devices, put together from parts, put back into order after repacking.
// Never a SIGBUS.
//
// FOREBAY_INVALID_ARGUMENT past the tensor's end, FOREBAY_MEMORY where a mapped file no longer
// reaches, FOREBAY_DEVICE where a device does not give it back.
//
// Threads: several at once.
//
// # Safety
// `buffer` has room for `bytes`, none of which is the tensor's own; it may be NULL if they are 0.
forebay_status forebay_tensor_read(const struct forebay_tensor *tensor,
                                   uint64_t offset,
                                   void *buffer,
                                   size_t bytes);

// Writes the sha256 of the tensor's bytes, read back from where they are, to `hex`: 64 digits and
// a NUL.
//
// Fails as forebay_tensor_read does; `hex` is "" then.
//
// Threads: several at once.
forebay_status forebay_tensor_sha256(const struct forebay_tensor *tensor, char (*hex)[65]);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FOREBAY_H */
