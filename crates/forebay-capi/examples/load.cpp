// Loads a model through forebay.hpp and prints `sha256  name` of every tensor as it lands.
//
//     c++ -std=c++17 load.cpp $(pkg-config --cflags --libs forebay) -o load
//     ./load MODEL [KEY=VALUE …]
//
// And shows how errors and exceptions come back: it throws from a callback, and catches that.

#include "forebay.hpp"

#include <cstdint>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

forebay::options options_of(const std::vector<std::string> &settings) {
    forebay::options options;
    for (const std::string &setting : settings) {
        const std::size_t equals = setting.find('=');
        if (equals == std::string::npos) {
            throw std::invalid_argument("'" + setting + "' is not KEY=VALUE");
        }
        options.set(setting.substr(0, equals), setting.substr(equals + 1));
    }
    return options;
}

// Digests of tensors while others are still on their way.
void print_digests(const std::string &path, const forebay::options &options) {
    forebay::loader loader(path, options);
    loader.on_progress([](std::uint64_t done, std::uint64_t total) { return done <= total; });
    forebay::load load = std::move(loader).start();
    for (const forebay_tensor &tensor : load) {
        std::cout << forebay::sha256(tensor) << "  " << tensor.info->name << '\n';
    }
    // Only now is it known that no file has changed meanwhile.
    const forebay::loaded loaded = std::move(load).finish();
    std::cerr << loaded.size() << " tensors: " << loaded.report().size() << " bytes of report\n";
}

// An exception out of a callback ends the load, and arrives here as it was thrown.
bool is_thrown_through(const std::string &path, const forebay::options &options) {
    forebay::loader loader{forebay::model{path}, options};
    loader.on_tensor([](const forebay_tensor &tensor) -> bool {
        throw std::domain_error(std::string("enough of ") + tensor.info->name);
    });
    try {
        std::move(loader).run();
    } catch (const std::domain_error &error) {
        std::cerr << "caught: " << error.what() << '\n';
        return true;
    }
    return false;
}

} // namespace

int main(int count, char **arguments) {
    try {
        const std::vector<std::string> given(arguments + 1, arguments + count);
        if (given.empty()) {
            throw std::invalid_argument("no model is named");
        }
        const forebay::options options = options_of({given.begin() + 1, given.end()});
        const forebay::model model(given.front());
        print_digests(given.front(), options);
        const bool thrown = model.size() == 0 || is_thrown_through(given.front(), options);
        forebay_release_staging();
        return thrown ? 0 : 1;
    } catch (const forebay::error &error) {
        std::cerr << "error " << error.status() << ": " << error.what() << '\n';
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << '\n';
    }
    return 1;
}
