//! The Python package: runs its own tests, its example and what checks its types, and installs its wheel elsewhere.
//! Tests nothing by itself.

use std::path::Path;
use std::process::Command;

use crate::support::c::{ROOT, run};
use crate::support::python::Python;

#[test]
fn the_python_package_passes_its_tests() {
    let Some(python) = Python::find() else { return };
    // What is never awaited, closed or collected is an error as well.
    let output = run(python.command().args(["-X", "dev", "-W", "error", "-m", "unittest"]));
    let said = String::from_utf8_lossy(&output.stderr);
    let tests = said.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse::<u32>().ok());
    assert!(tests.is_some_and(|tests| tests >= 40), "too few tests ran: {said}");
    assert!(!said.contains("Exception ignored"), "{said}");
}

#[test]
fn the_python_example_runs_the_whole_loop() {
    let Some(python) = Python::find() else { return };
    let data = python.dir.path().join("data");
    let output = run(python.command().arg("../../../examples/chat.py").arg(python.model()).arg(data));
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("training: 16 answers, "), "{out}");
    assert!(out.ends_with("answered by version 1, back to 0\n"), "{out}");
    assert!(output.stderr.is_empty(), "the library printed something");
}

/// docs/TUTORIAL.md, its pieces of Python one after the other. Of random weights another taste is asked, and larger
/// steps are taken; the rest is as it stands there.
#[test]
fn the_tutorial_makes_a_model_that_is_liked_better() {
    let Some(python) = Python::find() else { return };
    let page = std::fs::read_to_string(Path::new(ROOT).join("docs/TUTORIAL.md")).unwrap();
    let pieces = page.split("```python\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let mut program = pieces.collect::<Vec<_>>().join("\n");
    for (there, here) in [
        ("\"train.batch\": 64}", "\"train.batch\": 64, **tiny}"),
        ("len(answer[\"text\"]) <= 60", "\"e\" in answer[\"text\"]"),
    ] {
        assert_eq!(program.matches(there).count(), 1, "{there}");
        program = program.replace(there, here);
    }
    let learning = "'train.lr': 0.02, 'train.kl_step': 2.0, 'train.rank': 4, 'train.alpha': 8.0";
    let program = format!("tiny = {{{learning}, 'serve.threads': 1, 'serve.context': 1024}}\n{program}");
    let program = program + "\nassert after > before, (before, after)\n";
    let data = python.dir.path().join("data");
    let out = run(python.command().args(["-c", &program]).arg(python.model()).arg(data)).stdout;
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("\nback to 3 and forth to 4\n"), "{out}");
    eprintln!("{out}");
}

#[test]
fn the_python_package_has_the_version_and_the_interface_of_the_library() {
    let read = |file: &str| std::fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let version = format!("__version__ = \"{}\"\n", env!("CARGO_PKG_VERSION"));
    assert!(read("bindings/python/libapa/__init__.py").contains(&version), "expected {version}");
    let header = read("include/apa.h");
    let abi = header.lines().find_map(|line| line.strip_prefix("#define APA_ABI_VERSION ")?.parse::<u32>().ok());
    let abi = abi.expect("apa.h tells its version");
    let interface = format!("INTERFACE = ({}, {})\n", abi >> 16, abi & 0xffff);
    let native = read("bindings/python/libapa/_native.py");
    assert!(native.contains(&interface), "expected {interface}");
    // A call that was added to the header is one that the package may want, or leaves out on purpose.
    const LEFT_OUT: &[&str] = &["apa_error_code", "apa_generate", "apa_options_set"];
    let names = header.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    let calls = names.filter(|name| header.contains(&format!("{name}(")) && name.starts_with("apa_"));
    let missing: Vec<_> =
        calls.filter(|name| !native.contains(&format!("\"{name}\"")) && !LEFT_OUT.contains(name)).collect();
    assert!(missing.is_empty(), "bindings/python has no {missing:?}");
}

#[cfg(feature = "daemon")]
#[test]
fn mypy_finds_the_types_of_the_python_package_strict_and_refuses_wrong_calls() {
    use crate::support::packages::packages;
    let (Some(python), Some(packages)) = (Python::find(), packages(&["venv/bin/mypy"])) else { return };
    let mypy = || {
        let mut mypy = Command::new(packages.join("venv/bin/mypy"));
        mypy.current_dir(Path::new(ROOT).join("bindings/python")).args(["--strict", "--python-version", "3.10"]);
        mypy.arg("--cache-dir").arg(python.dir.path().join("mypy"));
        mypy
    };
    run(mypy().args(["libapa", "../../examples/chat.py"]));
    let wrong = python.dir.path().join("wrong.py");
    let calls = [
        "engine.generate(max_tokens=4)",
        "engine.generate(prompt='a', temprature=1)",
        "engine.generate(prompt='a', messages=[])",
        "engine.feedback('a', thumbs='sideways')",
        "engine.complete(prompt='a')['txt']",
        "engine.activate('1')",
        "engine.set_reward(lambda answer: 'good')",
    ];
    let text = format!("import libapa\nengine = libapa.Engine('m')\n{}\n", calls.join("\n"));
    std::fs::write(&wrong, text).unwrap();
    let output = mypy().arg(&wrong).env("MYPYPATH", ".").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    for (number, call) in calls.iter().enumerate() {
        assert!(said.contains(&format!("wrong.py:{}: error", number + 3)), "{call} is allowed: {said}");
    }
}

/// `make test-dist`: the wheel beside a release (APA_DIST), installed as anybody would.
#[test]
#[ignore = "wants the release that APA_DIST names"]
fn a_release_runs_from_its_python_wheel() {
    let (Some(python), Some(dist)) = (Python::find(), std::env::var_os("APA_DIST")) else { panic!("no release") };
    if std::env::var("APA_DIST_ARCH").is_ok_and(|arch| arch != std::env::consts::ARCH) {
        return;
    }
    let beside = Path::new(&dist).parent().unwrap();
    let wheels = std::fs::read_dir(beside).unwrap().map(|entry| entry.unwrap().path());
    let wheel = wheels.into_iter().find(|path| path.extension().is_some_and(|e| e == "whl")).expect("a wheel");
    let venv = python.dir.path().join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    run(Command::new(venv.join("bin/pip")).args(["install", "--no-index", "--quiet"]).arg(wheel));
    let mut chat = Command::new(venv.join("bin/python"));
    chat.env_remove("PYTHONPATH").env_remove("APA_LIB").env_remove("APA_LIB_DIR").env("LD_LIBRARY_PATH", "");
    chat.arg(Path::new(ROOT).join("examples/chat.py")).arg(python.model()).arg(python.dir.path().join("data"));
    let out = String::from_utf8(run(&mut chat).stdout).unwrap();
    assert!(out.ends_with("answered by version 1, back to 0\n"), "{out}");
}
