//! Builds the guard that turns C++ exceptions into errors.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/llama/guard.cpp");
    cc::Build::new().cpp(true).std("c++17").file("src/llama/guard.cpp").compile("apa_guard");
}
