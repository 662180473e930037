// Loads a model to `host` through the C++ wrapper, tensor by tensor as they land. For benches/faces.py.
//
//     faces MODEL [--digest]
//
// Prints the seconds from the first call to the whole model, or `sha256  name` of each tensor.

#include "forebay.hpp"

#include <chrono>
#include <cstdio>
#include <exception>

int main(int count, char **arguments) {
    try {
        const auto started = std::chrono::steady_clock::now();
        forebay::options options;
        options.set("device", "host");
        forebay::load load = forebay::loader(arguments[1], options).start();
        for (const forebay_tensor &tensor : load) {
            if (count > 2) {
                std::printf("%s  %s\n", forebay::sha256(tensor).c_str(), tensor.info->name);
            }
        }
        const forebay::loaded loaded = std::move(load).finish();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
        if (count == 2) {
            std::printf("%.9f\n", seconds.count());
        }
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
