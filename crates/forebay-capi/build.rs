//! Gives the shared library the name that programs ask the loader for.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The number is `FOREBAY_ABI_VERSION`; a test holds them together.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libforebay.so.0");
}
