//! tests/conformance in C, C++, Go, Node and Python: the same calls give the same results, token for token, and those
//! that are expected.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::c::{run, shared_library};
use crate::support::go::Go;
use crate::support::node::Node;
use crate::support::python::Python;
use crate::support::tiny::{TinySpec, tiny_model};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance").join(name)
}

/// A folder with a model.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(&dir.path().join("tiny.gguf"), &TinySpec::new("llama")).unwrap();
    dir
}

/// Compiles a runner against the library of this build.
fn compiled(compiler: &str, flags: &[&str], source: &str, dir: &Path) -> Command {
    Command::new(program(compiler, flags, source, dir, &shared_library()))
}

fn program(compiler: &str, flags: &[&str], source: &str, dir: &Path, library: &Path) -> PathBuf {
    let program = dir.join(source.replace('.', "-"));
    let mut compile = Command::new(compiler);
    compile.args(flags).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-I"]);
    compile.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include")).arg(file(source)).arg(library);
    compile.arg(format!("-Wl,--disable-new-dtags,-rpath,{}", library.parent().unwrap().display())).arg("-pthread");
    run(compile.arg("-o").arg(&program));
    program
}

/// What a runner prints: value and status by case and step.
type Lines = BTreeMap<(String, usize), (String, String)>;

fn lines_of(mut runner: Command, dir: &Path) -> Lines {
    let data = tempfile::tempdir().unwrap();
    let output = run(runner.arg(file("cases.json")).arg(dir.join("tiny.gguf")).arg(data.path()));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let [case, step, value, status] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        ((case.to_owned(), step.parse().unwrap()), (value.to_owned(), status.to_owned()))
    };
    out.lines().map(line).collect()
}

/// What the cases expect of a language: status, and a value where they name one.
fn expected(language: &str) -> BTreeMap<(String, usize), (Option<String>, String)> {
    let cases: Value = serde_json::from_slice(&std::fs::read(file("cases.json")).unwrap()).unwrap();
    let runs = |case: &&Value| case["only"].as_array().is_none_or(|only| only.iter().any(|l| l == language));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of = |case: &Value| {
        let name = text(&case["name"]);
        let step = move |(i, step): (usize, &Value)| {
            ((name.clone(), i), (step["value"].as_str().map(str::to_owned), text(&step["expect"])))
        };
        case["steps"].as_array().unwrap().iter().enumerate().map(step).collect::<Vec<_>>()
    };
    cases.as_array().unwrap().iter().filter(runs).flat_map(of).collect()
}

fn conforms(language: &str, lines: &Lines) {
    let expected = expected(language);
    assert_eq!(lines.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{language} left steps out");
    for (step, (value, status)) in &expected {
        let found = &lines[step];
        assert_eq!(&found.1, status, "{language}: {step:?}");
        assert!(value.as_ref().is_none_or(|value| *value == found.0), "{language}: {step:?} gave {}", found.0);
    }
}

#[test]
fn every_language_gives_the_same_results() {
    let dir = folder();
    // Errors of memory end it: of the runner's own, of what the library hands it, and whatever is left at the end.
    let sanitized = ["-std=c99", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];
    let c = lines_of(compiled("gcc", &sanitized, "run.c", dir.path()), dir.path());
    conforms("c", &c);
    assert!(c.values().any(|(value, status)| status == "DONE" && value.len() > 16), "no answer has text");
    let cpp = lines_of(compiled("g++", &["-std=c++17"], "run.cpp", dir.path()), dir.path());
    let mut all = vec![("cpp", cpp)];
    if let Some(go) = Go::find() {
        let program = dir.path().join("run-go");
        run(go.command(&["build", "-race", "-o"]).arg(&program).arg(file("run.go")));
        let mut runner = Command::new(program);
        runner.env("LD_LIBRARY_PATH", shared_library().parent().unwrap()).env("GOGC", "1");
        all.push(("go", lines_of(runner, dir.path())));
    }
    if let Some(node) = Node::find() {
        let mut runner = node.command("node");
        runner.arg(file("run.mjs"));
        all.push(("node", lines_of(runner, dir.path())));
    }
    if let Some(python) = Python::find() {
        for kind in ["sync", "async"] {
            let mut runner = python.command();
            runner.arg(file("run.py")).arg(kind);
            all.push(("python", lines_of(runner, dir.path())));
        }
    }
    for (language, lines) in &all {
        conforms(language, lines);
        for (step, outcome) in lines {
            assert_eq!(Some(outcome), c.get(step), "{language} and c differ: {step:?}");
        }
    }
}

/// Signals, memory, threads and whatever else is one in a process.
#[test]
fn an_application_is_not_disturbed() {
    let dir = folder();
    let mut host = compiled("g++", &["-std=c++17"], "host.cpp", dir.path());
    let output = run(host.arg(dir.path().join("tiny.gguf")).arg(dir.path().join("data")));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "after the first engine\nafter the second\nok\n");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Replaced and taken back under load, and left set at the end of the process.
#[test]
fn the_log_of_cpp_is_safe_to_set_and_to_leave() {
    let dir = folder();
    let sanitized = ["-std=c++17", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];
    let mut log = compiled("g++", &sanitized, "log.cpp", dir.path());
    let output = run(log.arg(dir.path().join("tiny.gguf")).arg(dir.path().join("data")));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `make memcheck`: valgrind knows no AVX-512, so it wants a library that was built without.
#[test]
#[ignore = "slow, and wants the library that APA_MEMCHECK_LIB names"]
fn memcheck_finds_no_error_and_no_leak() {
    let dir = folder();
    let library = std::env::var_os("APA_MEMCHECK_LIB").map(PathBuf::from).expect("APA_MEMCHECK_LIB names a libapa.so");
    let mut memcheck = Command::new("valgrind");
    memcheck.args(["--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite,possible", "--error-exitcode=9"]);
    memcheck.arg(format!("--suppressions={}", file("memcheck.supp").display()));
    memcheck.arg(program("gcc", &["-std=c99"], "run.c", dir.path(), &library));
    conforms("c", &lines_of(memcheck, dir.path()));
}

/// The first processor with AVX2 and FMA, without what qemu warns of.
const HASWELL: &str = "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid";

/// `make test-dist`: a release (APA_DIST, for APA_DIST_ARCH) on processors that are emulated: C calls the library,
/// which answers, learns and answers anew.
#[test]
#[ignore = "minutes, and wants the release that APA_DIST names"]
fn a_release_runs_on_the_processors_that_it_is_for_and_says_so_on_others() {
    let dir = folder();
    let dist = std::env::var_os("APA_DIST").map(PathBuf::from).expect("APA_DIST names a release's folder");
    let (compiler, emulators): (_, &[&[&str]]) = match std::env::var("APA_DIST_ARCH").as_deref() {
        Ok("aarch64") => ("aarch64-linux-gnu-gcc", &[&["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]]),
        _ => ("gcc", &[&["qemu-x86_64", "-cpu", HASWELL], &["env"]]),
    };
    let native = lines_of(compiled("gcc", &["-std=c99"], "run.c", dir.path()), dir.path());
    // Takes the place of the program before.
    let program = program(compiler, &["-std=c99"], "run.c", dir.path(), &dist.join("lib/libapa.so"));
    for emulator in emulators {
        let mut runner = Command::new(emulator[0]);
        runner.args(&emulator[1..]).arg(&program);
        let lines = lines_of(runner, dir.path());
        conforms("c", &lines);
        for (step, outcome) in &native {
            assert_eq!(lines.get(step), Some(outcome), "{emulator:?} and this machine's build differ: {step:?}");
        }
    }
    if compiler != "gcc" {
        return;
    }
    for program in [&program, &dist.join("bin/apad")] {
        let output = Command::new("qemu-x86_64").args(["-cpu", "Nehalem"]).arg(program).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("it lacks AVX2, FMA or what else x86-64-v3 asks for"), "{said}");
    }
    let doctor = |level: &str| {
        let output = run(Command::new(dist.join("bin/apad")).args(["doctor", "--json"]).env("APA_LEVEL", level));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["report"]["processor"]["compiled_for"].to_string()
    };
    let floor = doctor("x86-64-v3");
    assert!(floor.contains("avx2") && !floor.contains("avx512"), "{floor}");
}

#[test]
fn streams_and_engines_leave_nothing_behind() {
    let dir = folder();
    let mut stress = compiled("gcc", &["-std=c99", "-O2"], "stress.c", dir.path());
    let output = run(stress.arg(dir.path().join("tiny.gguf")).arg(dir.path().join("data")));
    let numbers: Value = serde_json::from_slice(&output.stdout).unwrap();
    eprintln!("{numbers}");
    let number = |name: &str| numbers[name].as_f64().unwrap();
    // Far above what a quiet machine shows (docs/LOG.md), far below what a leak or a wait would.
    assert!(number("token_us") < 20.0, "{numbers}");
    assert!(number("cancel_ms_median") < 50.0 && number("cancel_ms_worst") < 2000.0, "{numbers}");
    assert!(number("cancel_all_ms_worst") < 2000.0, "{numbers}");
    assert!(number("streams_kb") < 8192.0 && number("opens_kb") < 4096.0, "{numbers}");
}
