# What a developer types; `just` lists them.

default:
    @just --list

# What CI runs, all of it
ci:
    .ci/run

# The checks before a commit
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace

# The suites that need root: filesystems (one that lies too), limits, strace
root:
    FOREBAY_ROOT_TESTS=1 cargo test -p forebay-cli -p forebay-tests --test 'root_*' --test io_uring_disabled -- --test-threads=1 --nocapture

# Load modes against each other, on a synthetic model
bench:
    cargo run --release -- bench

# Cold and warm loads beside fio's best shape
fio model:
    benches/against_fio.py {{model}} --touch 10

# Criterion benchmarks
micro:
    cargo bench -p forebay-benches

# libFuzzer: so many seconds a target (fuzz 20 gguf ptd: these two)
fuzz seconds *targets:
    tests/fuzz/run {{seconds}} {{targets}}

# What threads share, in every order; and whether the models notice mistakes
loom:
    cargo run --release --manifest-path tests/loom/Cargo.toml --target-dir target/loom
    tests/loom/mutants

# Tests under a sanitizer (sanitize address; sanitize valgrind)
sanitize *arguments:
    tests/sanitize {{arguments}}

# The API's documentation
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# The Python package: builds the wheel and tests it (python --torch: with torch, 540 MB)
python *arguments:
    crates/forebay-python/test {{arguments}}
