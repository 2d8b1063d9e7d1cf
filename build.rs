//! Build-time settings of the shared library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
