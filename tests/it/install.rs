//! `make install` as packagers and applications use it: what is there, found by pkg-config and CMake, linked both ways,
//! beside another llama.cpp. Tests nothing of what the library does.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::c::{run, shared_library};
use crate::support::installed::Installed;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn example(name: &str) -> PathBuf {
    Path::new(ROOT).join("examples").join(name)
}

/// Global symbols that a file defines.
fn symbols(file: &Path, dynamic: &[&str]) -> Vec<String> {
    let listing = run(Command::new("nm").args(dynamic).args(["--defined-only", "--extern-only"]).arg(file));
    let listing = String::from_utf8(listing.stdout).unwrap();
    listing.lines().filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned)).collect()
}

/// llama.cpp as this build made it: another copy, for an application of its own.
fn other_llama() -> PathBuf {
    let builds = shared_library().ancestors().map(|dir| dir.join("build")).find(|dir| dir.is_dir()).unwrap();
    let folders = std::fs::read_dir(&builds).unwrap().map(|entry| entry.unwrap().path().join("out/lib"));
    folders.into_iter().find(|lib| lib.join("libllama.a").exists()).expect("no libllama.a in the build")
}

#[test]
fn what_is_installed_links_both_ways_and_beside_another_llama() {
    let installed = Installed::new();

    let header = std::fs::read_to_string(installed.prefix().join("include/apa.h")).unwrap();
    let declared = |name: &str| header.contains(&format!("{}(", name.split('@').next().unwrap_or(name)));
    let exported = symbols(&installed.library("libapa.so"), &["--dynamic"]);
    assert!(exported.iter().all(|name| name == "APA_1" || declared(name)), "{exported:?}");
    assert!(exported.len() > 40);
    // Variables that C++ has once in a process keep a name; it is ours alone.
    let global = symbols(&installed.library("libapa.a"), &[]);
    let strange: Vec<_> = global.iter().filter(|name| !declared(name) && !name.starts_with("_apa_")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    let dynamic = run(Command::new("readelf").arg("-d").arg(installed.library("libapa.so.1")));
    assert!(String::from_utf8_lossy(&dynamic.stdout).contains("soname: [libapa.so.1]"));

    for (package, name) in [("apa", "shared"), ("apa-static", "static")] {
        let program = installed.dir.path().join(name);
        run(Command::new("cc").arg(example("embed.c")).args(installed.flags(package)).arg("-o").arg(&program));
        installed.example_runs(&program);
    }
    cmake_finds_it(&installed);
    an_application_has_its_own_llama(&installed);
}

fn cmake_finds_it(installed: &Installed) {
    let (source, build) = (installed.dir.path().join("application"), installed.dir.path().join("build"));
    std::fs::create_dir(&source).unwrap();
    let lists = format!(
        "cmake_minimum_required(VERSION 3.16)\nproject(application C CXX)\nset(CMAKE_CXX_STANDARD 17)\n\
         find_package(apa 0.1 REQUIRED)\n\
         add_executable(with-shared {})\ntarget_link_libraries(with-shared apa::apa)\n\
         add_executable(with-static {})\ntarget_link_libraries(with-static apa::static)\n",
        example("embed.c").display(),
        example("embed.cpp").display()
    );
    std::fs::write(source.join("CMakeLists.txt"), lists).unwrap();
    let prefix = format!("-DCMAKE_PREFIX_PATH={}", installed.prefix().display());
    run(Command::new("cmake").arg("-S").arg(&source).arg("-B").arg(&build).arg(prefix));
    run(Command::new("cmake").arg("--build").arg(&build));
    installed.example_runs(&build.join("with-shared"));
    installed.example_runs(&build.join("with-static"));
}

/// Its own calls go to its own copy; ours has no name in common with it.
fn an_application_has_its_own_llama(installed: &Installed) {
    let file = |name: &str| installed.dir.path().join(name);
    let main = "const char *llama_print_system_info(void);\nvoid llama_backend_init(void);\n\
        int main(int n, char **v) { llama_backend_init(); puts(llama_print_system_info()); return embed(n, v); }\n";
    let embed = format!("#define main embed\n#include \"{}\"\n#undef main\n", example("embed.c").display());
    std::fs::write(file("both.c"), embed + main).unwrap();
    let flags = installed.flags("apa-static");
    run(Command::new("cc").arg("-c").arg(file("both.c")).args(&flags[..1]).arg("-o").arg(file("both.o")));
    let mut link = Command::new("c++");
    link.arg(file("both.o")).args(&flags).arg("-L").arg(other_llama());
    run(link.args(["-lllama", "-lggml", "-lggml-cpu", "-lggml-base", "-o"]).arg(file("both")));
    let linked = symbols(&file("both"), &[]);
    assert!(linked.iter().any(|name| name == "llama_backend_init"), "the application's own is not there");
    installed.example_runs(&file("both"));
}
