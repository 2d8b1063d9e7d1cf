//! Builds what is C++: the guard that turns exceptions into errors, kernels for ggml, what gives memory back, and the
//! trainer's kernels for CUDA.

use std::env;
use std::path::Path;

/// What the kernels need of the processor, by Rust's and the compiler's common names...
const FEATURES: [&str; 3] = ["avx2", "fma", "f16c"];
/// ... and what they use where all of it is there...
const WIDE: [&str; 5] = ["avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"];
/// ... or else this.
const NARROW: [&str; 1] = ["avxvnni"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/llama/guard.cpp");
    println!("cargo::rerun-if-changed=src/llama/kernels.cpp");
    println!("cargo::rerun-if-changed=src/llama/memory.cpp");
    println!("cargo::rerun-if-changed=src/llama/vectors.h");
    // Of libraries inside, some export names of their own (`llg_*`): of libapa only `apa_*` is to be seen.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
    cc::Build::new().cpp(true).std("c++17").file("src/llama/guard.cpp").compile("apa_guard");

    let mut kernels = cc::Build::new();
    kernels.cpp(true).std("c++17").file("src/llama/kernels.cpp").opt_level(3);
    // GCC warns of its own headers of intrinsics.
    kernels.flag_if_supported("-Wno-maybe-uninitialized").flag_if_supported("-Wno-uninitialized");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    println!("cargo::rustc-env=APA_TARGET_FEATURES={features}");
    let has = |name: &str| features.split(',').any(|f| f == name);
    // llama-cpp-sys-2 tells where it installed ggml's package; the headers are beside it.
    let headers = env::var("DEP_LLAMA_GGML_CMAKE_DIR").ok();
    let headers = headers.as_deref().and_then(|dir| Path::new(dir).ancestors().nth(2)).map(|dir| dir.join("include"));
    let headers = headers.filter(|dir| dir.join("ggml.h").exists());
    let headers = headers.expect("ggml's headers are where llama-cpp-sys-2 installs its package");
    cc::Build::new().cpp(true).std("c++17").file("src/llama/memory.cpp").include(&headers).compile("apa_memory");
    kernels.include(headers);
    // Else ggml's own kernels serve, but for those that may not.
    if FEATURES.into_iter().all(has) {
        kernels.define("APA_KERNELS", None).flag("-ffp-contract=off");
        let more: &[&str] = match (WIDE.into_iter().all(has), NARROW.into_iter().all(has)) {
            (true, _) => &WIDE,
            (false, true) => &NARROW,
            (false, false) => &[],
        };
        for feature in FEATURES.iter().chain(more) {
            kernels.flag(format!("-m{feature}"));
        }
    }
    kernels.compile("apa_kernels");
    cuda_kernels();
}

/// Compiles the trainer's kernels for CUDA, for the least card that has what they use; the driver makes of it what its
/// card takes.
fn cuda_kernels() {
    println!("cargo::rerun-if-changed=src/policy/ops/cuda");
    if env::var_os("CARGO_FEATURE_TRAIN_CUDA").is_none() {
        return;
    }
    let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(env::var_os);
    let nvcc = homes.map(|home| Path::new(&home).join("bin/nvcc")).find(|nvcc| nvcc.exists());
    let nvcc = nvcc.unwrap_or_else(|| "nvcc".into());
    let to = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.ptx");
    let done = std::process::Command::new(&nvcc)
        .args(["-ptx", "-arch=compute_80", "-std=c++17", "-O3", "-o"])
        .arg(&to)
        .arg("src/policy/ops/cuda/kernels.cu")
        .status();
    assert!(done.is_ok_and(|status| status.success()), "{} can't compile the kernels for CUDA", nvcc.display());
}
