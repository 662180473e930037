// forebay for C++17: handles that free themselves, exceptions, and a range of tensors as they land.
//
// A thin layer over forebay.h, to be copied into programs and changed at will.
//
//     forebay::loader loader("model.gguf");
//     forebay::load load = std::move(loader).start();
//     for (const forebay_tensor &tensor : load) {
//         use(tensor);
//     }
//     forebay::loaded loaded = std::move(load).finish();

#ifndef FOREBAY_HPP
#define FOREBAY_HPP

#include <forebay.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace forebay {

// What every failing function throws: the kind, and the words for people.
class error : public std::runtime_error {
public:
    error(forebay_status status, const char *message)
        : std::runtime_error(message), status_(status) {}
    forebay_status status() const noexcept { return status_; }

private:
    forebay_status status_;
};

inline void check(forebay_status status) {
    if (status != FOREBAY_OK) {
        throw error(status, forebay_last_error_message());
    }
}

// A handle that is freed with its owner, and can only be moved.
template <typename T, void (*Free)(T *)> struct deleter {
    void operator()(T *handle) const noexcept { Free(handle); }
};
template <typename T, void (*Free)(T *)> using unique = std::unique_ptr<T, deleter<T, Free>>;

// Makes a handle from what writes one to a place.
template <typename T, typename Make> T *made(Make make) {
    T *handle = nullptr;
    check(make(&handle));
    return handle;
}

inline std::string taken(char *text) {
    unique<char, forebay_text_free> owner(text);
    return std::string(owner.get());
}

class options {
public:
    options() : handle_(made<forebay_options>(forebay_options_new)) {}
    options &set(const std::string &key, const std::string &value) {
        check(forebay_options_set(handle_.get(), key.c_str(), value.c_str()));
        return *this;
    }
    const forebay_options *get() const noexcept { return handle_.get(); }

private:
    unique<forebay_options, forebay_options_free> handle_;
};

class cancel {
public:
    cancel() : handle_(made<forebay_cancel>(forebay_cancel_new)) {}
    // From any thread, and from a signal's handler.
    void request() const noexcept { forebay_cancel_request(handle_.get()); }
    const forebay_cancel *get() const noexcept { return handle_.get(); }

private:
    unique<forebay_cancel, forebay_cancel_free> handle_;
};

class model {
public:
    explicit model(const std::string &path)
        : handle_(made<forebay_model>(
              [&](forebay_model **model) { return forebay_model_open(path.c_str(), model); })) {}
    std::size_t size() const noexcept { return forebay_model_tensor_count(handle_.get()); }
    // Lives as long as the model.
    const forebay_tensor_info &operator[](std::size_t index) const {
        return *made<const forebay_tensor_info>([&](const forebay_tensor_info **info) {
            return forebay_model_tensor(handle_.get(), index, info);
        });
    }
    std::string plan(const options &options) const {
        return taken(made<char>([&](char **json) {
            return forebay_plan_json(handle_.get(), options.get(), json);
        }));
    }
    const forebay_model *get() const noexcept { return handle_.get(); }

private:
    unique<forebay_model, forebay_model_free> handle_;
};

// A model that has been loaded whole.
class loaded {
public:
    explicit loaded(forebay_loaded *handle) noexcept : handle_(handle) {}
    std::size_t size() const noexcept { return forebay_loaded_tensor_count(handle_.get()); }
    // These live as long as this object does, wherever it is moved.
    const forebay_tensor &operator[](std::size_t index) const {
        return *made<const forebay_tensor>([&](const forebay_tensor **tensor) {
            return forebay_loaded_tensor(handle_.get(), index, tensor);
        });
    }
    const forebay_tensor &operator[](const std::string &name) const {
        return *made<const forebay_tensor>([&](const forebay_tensor **tensor) {
            return forebay_loaded_find_tensor(handle_.get(), name.c_str(), tensor);
        });
    }
    std::string report() const {
        return taken(made<char>([&](char **json) {
            return forebay_loaded_report_json(handle_.get(), json);
        }));
    }

private:
    unique<forebay_loaded, forebay_loaded_free> handle_;
};

inline std::string sha256(const forebay_tensor &tensor) {
    char hex[65];
    check(forebay_tensor_sha256(&tensor, &hex));
    return hex;
}

// What the callbacks of a load are called with; an exception that they throw waits here until the
// function of forebay's that called them has returned.
struct callbacks {
    std::function<bool(std::uint64_t, std::uint64_t)> progress;
    std::function<bool(const forebay_tensor &)> tensor;
    std::exception_ptr thrown;

    template <typename Call> int guarded(Call call) noexcept {
        try {
            return call() ? 0 : 1;
        } catch (...) {
            thrown = std::current_exception();
            return 1;
        }
    }
    void check_call(forebay_status status) {
        if (thrown) {
            std::rethrow_exception(std::exchange(thrown, nullptr));
        }
        check(status);
    }
};

extern "C" inline int forebay_hpp_progress(void *user, std::uint64_t done, std::uint64_t total) {
    auto *given = static_cast<callbacks *>(user);
    return given->guarded([&] { return given->progress(done, total); });
}

extern "C" inline int forebay_hpp_tensor(void *user, const forebay_tensor *tensor) {
    auto *given = static_cast<callbacks *>(user);
    return given->guarded([&] { return given->tensor(*tensor); });
}

// A load under way. `for (const forebay_tensor &tensor : load)` waits for each to land.
class load {
public:
    load(forebay_load *handle, std::unique_ptr<callbacks> callbacks) noexcept
        : callbacks_(std::move(callbacks)), handle_(handle) {}
    load(load &&) = default;
    // What was loading before ends first, with the callbacks it has.
    load &operator=(load &&other) noexcept {
        handle_ = std::move(other.handle_);
        callbacks_ = std::move(other.callbacks_);
        return *this;
    }

    // The next tensor; nullptr when there is no more. It lives as long as the load, or as what
    // finish() answers.
    const forebay_tensor *next() {
        const forebay_tensor *tensor = nullptr;
        callbacks_->check_call(forebay_load_next(handle_.get(), &tensor));
        return tensor;
    }

    class end_of_load {};
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = forebay_tensor;
        using difference_type = std::ptrdiff_t;
        using pointer = const forebay_tensor *;
        using reference = const forebay_tensor &;

        explicit iterator(load &of) : load_(&of), tensor_(of.next()) {}
        reference operator*() const noexcept { return *tensor_; }
        pointer operator->() const noexcept { return tensor_; }
        iterator &operator++() {
            tensor_ = load_->next();
            return *this;
        }
        bool operator!=(end_of_load) const noexcept { return tensor_ != nullptr; }

    private:
        load *load_;
        pointer tensor_;
    };
    iterator begin() { return iterator(*this); }
    end_of_load end() const noexcept { return {}; }

    loaded finish() && {
        forebay_loaded *loaded = nullptr;
        callbacks_->check_call(forebay_load_finish(handle_.release(), &loaded));
        return forebay::loaded(loaded);
    }

private:
    // Freed after the load, whose callbacks use it.
    std::unique_ptr<callbacks> callbacks_;
    unique<forebay_load, forebay_load_free> handle_;
};

class loader {
public:
    explicit loader(const std::string &path, const options &options = {})
        : callbacks_(new callbacks),
          handle_(made<forebay_loader>([&](forebay_loader **loader) {
              return forebay_loader_new(path.c_str(), options.get(), loader);
          })) {}
    // Of the files that are open, whatever their paths lead to by now.
    explicit loader(const model &model, const options &options = {})
        : callbacks_(new callbacks),
          handle_(made<forebay_loader>([&](forebay_loader **loader) {
              return forebay_loader_of(model.get(), options.get(), loader);
          })) {}

    // The memory stays the caller's, and outlives the load and what it answers.
    loader &into_host(const std::string &name, void *memory, std::uint64_t bytes) {
        check(forebay_loader_into_host(handle_.get(), name.c_str(), memory, bytes));
        return *this;
    }
    loader &cancel_with(const cancel &cancel) {
        check(forebay_loader_cancel_with(handle_.get(), cancel.get()));
        return *this;
    }
    // `callback` answers whether the load goes on; what it throws, run() throws.
    loader &on_progress(std::function<bool(std::uint64_t, std::uint64_t)> callback) {
        callbacks_->progress = std::move(callback);
        check(forebay_loader_on_progress(handle_.get(), forebay_hpp_progress, callbacks_.get(), 0));
        return *this;
    }
    loader &on_tensor(std::function<bool(const forebay_tensor &)> callback) {
        callbacks_->tensor = std::move(callback);
        check(forebay_loader_on_tensor(handle_.get(), forebay_hpp_tensor, callbacks_.get()));
        return *this;
    }

    loaded run() && {
        forebay_loaded *loaded = nullptr;
        callbacks_->check_call(forebay_loader_run(handle_.release(), &loaded));
        return forebay::loaded(loaded);
    }
    load start() && {
        forebay_load *load = nullptr;
        callbacks_->check_call(forebay_load_start(handle_.release(), &load));
        return forebay::load(load, std::move(callbacks_));
    }

private:
    std::unique_ptr<callbacks> callbacks_;
    unique<forebay_loader, forebay_loader_free> handle_;
};

} // namespace forebay

#endif
