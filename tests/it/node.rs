//! The Node package: builds its addon, runs its own tests and example against the library of this build, and packs and
//! installs it elsewhere. Tests nothing by itself.

use std::path::Path;

use crate::support::c::{ROOT, run};
use crate::support::installed::Installed;
use crate::support::node::{Node, skipped};

#[test]
fn the_node_package_passes_its_tests() {
    let Some(node) = Node::find() else { return };
    let mut tests = node.command("node");
    tests.args(["--expose-gc", "--test"]);
    tests.args(["test/engine.test.mjs", "test/streams.test.mjs", "test/process.test.mjs"]);
    let output = run(&mut tests);
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = said.lines().find_map(|line| line.strip_prefix("# pass ")?.parse::<u32>().ok());
    assert!(passed.is_some_and(|passed| passed >= 20), "too few tests ran: {passed:?}");
}

#[test]
fn the_node_package_types_allow_what_they_must_and_refuse_the_rest() {
    let Some(node) = Node::find() else { return };
    if !Path::new(ROOT).join("bindings/node/node_modules/.bin/tsc").exists() {
        let installed = node.command("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).output();
        if !installed.is_ok_and(|o| o.status.success()) {
            skipped("npm ci in bindings/node failed; TypeScript tests its types");
            return;
        }
    }
    run(node.command("node_modules/.bin/tsc").arg("--noEmit"));
}

#[test]
fn the_node_example_runs_the_whole_loop() {
    let Some(node) = Node::find() else { return };
    let data = node.dir.path().join("data");
    let output = run(node.command("node").arg("../../examples/chat.mjs").arg(node.model()).arg(data));
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("training: 16 answers, "), "{out}");
    assert!(out.ends_with("answered by version 1, back to 0\n"), "{out}");
    assert!(output.stderr.is_empty(), "the library printed something");
}

/// As `npm install libapa` would: the tarball alone, against what `make install` puts in place.
#[test]
fn the_packed_node_package_installs_and_runs_outside_the_repository() {
    let Some(node) = Node::find() else { return };
    let installed = Installed::new();
    let application = node.dir.path().join("application");
    std::fs::create_dir(&application).unwrap();
    let output = run(node.command("npm").args(["pack", "--silent", "--pack-destination"]).arg(&application));
    let tarball = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let npm = |arguments: &[&str]| {
        let mut npm = node.command("npm");
        npm.current_dir(&application).args(arguments).args(["--no-audit", "--no-fund", "--offline"]);
        npm.env_remove("APA_LIB_DIR").env("PKG_CONFIG_PATH", installed.library("pkgconfig"));
        run(npm.env_remove("LD_LIBRARY_PATH").env("npm_config_cache", node.dir.path().join("npm")));
    };
    let import = || {
        let mut import = node.command("node");
        import.current_dir(&application).env_remove("LD_LIBRARY_PATH");
        import.args(["--input-type=module", "-e", "import { version } from 'libapa'; console.log(version);"]);
        import.output().unwrap()
    };
    std::fs::write(application.join("package.json"), r#"{"name": "application", "private": true}"#).unwrap();
    // Without its scripts it says what is missing.
    npm(&["install", "--ignore-scripts", &format!("./{tarball}")]);
    let failed = String::from_utf8(import().stderr).unwrap();
    assert!(failed.contains("`npm rebuild libapa` builds it"), "{failed}");
    npm(&["rebuild", "libapa"]);
    assert_eq!(String::from_utf8(import().stdout).unwrap().trim(), env!("CARGO_PKG_VERSION"));

    let example = std::fs::read_to_string(Path::new(ROOT).join("examples/chat.mjs")).unwrap();
    let example = example.replace("'../bindings/node/index.js'", "'libapa'");
    std::fs::write(application.join("chat.mjs"), example).unwrap();
    let mut chat = node.command("node");
    chat.current_dir(&application).env_remove("LD_LIBRARY_PATH").arg("chat.mjs").arg(node.model()).arg("data");
    let out = String::from_utf8(run(&mut chat).stdout).unwrap();
    assert!(out.ends_with("answered by version 1, back to 0\n"), "{out}");
}
