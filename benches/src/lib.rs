//! Nothing to use: this package holds the benchmarks in `benches/` (`cargo bench -p forebay-benches`)
//! and their results in `results/`.
