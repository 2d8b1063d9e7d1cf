//! The laws of the house, for what no compiler checks: imports run one way, files say their job and stay short, what is
//! named exists, what is declared is used. Reads sources and documents; runs nothing.
//!
//! An exception is a line in a list below with the reason. The lists may only shrink: one that is no longer needed
//! fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules in layers: each may import what stands before it, and none of its own layer. docs/ARCHITECTURE.md says
/// the same in a sentence, which is compared.
const LAYERS: &[&[&str]] = &[
    &["types", "error", "lock", "durations", "files", "members", "shown", "web"],
    &["system", "processor", "config", "gguf", "guide", "align", "overwrite", "prompts"],
    &["ids", "llama", "policy", "gate", "publish", "tinker"],
    &["optim"],
    &["ledger", "scheduler", "reward", "trainer", "forecast", "convert"],
    &["engine", "experiment", "doctor"],
    &["request"],
    &["http"],
    &["ffi"],
];

/// What may be used only in some places: the word, and the beginnings of the paths.
const ONLY_IN: &[(&str, &[&str])] = &[
    // The trainer's reference implementation of a forward pass is llama.cpp's.
    ("llama_cpp_2", &["src/llama/", "src/policy/tests/"]),
    // What decodes a file's blocks is held against ggml's own.
    ("llama_cpp_sys_2", &["src/llama/", "src/policy/tests/", "src/policy/ops/quantized_tests.rs"]),
    ("llguidance", &["src/guide/"]),
    ("toktrie", &["src/guide/"]),
    ("axum", &["src/http/"]),
    ("anyhow", &["src/bin/"]),
    ("rusqlite", &["src/ledger/sqlite/"]),
    ("tokio_postgres", &["src/ledger/postgres/"]),
    ("unsafe", &["src/llama/", "src/ffi/", "src/policy/ops/", "src/bin/apad/allocator.rs"]),
];

/// Imports against the layers, and files of one folder that import each other.
const TANGLED: &[(&str, &str)] = &[];

/// Lines of a Rust file.
const LENGTH: usize = 400;
/// Files that are longer, and the hundreds that they stay below.
const LONGER: &[(&str, usize)] = &[
    ("src/ledger/tests.rs", 500),
    ("tests/it/engine.rs", 600),
    ("tests/it/ffi_engine.rs", 700),
    ("tests/it/reward_loop.rs", 500),
    ("tests/it/tidy.rs", 500),
    ("tests/it/train.rs", 500),
];

/// Columns of a line of Rust, in characters.
const WIDTH: usize = 120;
/// Files with wider lines, and how many.
const WIDER: &[(&str, usize)] = &[];

/// Paths that documents and comments name and that are not there.
const MISSING: &[&str] = &[];

/// Dependencies that no source names, and why they are there.
const UNNAMED: &[(&str, &str)] = &[];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below these folders (or these files) with one of the endings, as paths from the root. Built and fetched
/// things are left out.
fn files(places: &[&str], endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = places.iter().map(|place| root().join(place)).collect();
    while let Some(path) = left.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", "node_modules", "build", "corpus", "artifacts"].contains(&name.as_str()) {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing ends with {endings:?} in {places:?}");
    found
}

fn rust_files() -> Vec<String> {
    files(&["build.rs", "src", "tests", "fuzz"], &[".rs"])
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Source without comments and without what stands between quotation marks on one line.
fn code_of(text: &str) -> String {
    let line = |line: &str| {
        let (mut code, mut quoted, mut before) = (String::new(), false, ' ');
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '"' if before != '\\' && before != '\'' => quoted = !quoted,
                '/' if !quoted && chars.peek() == Some(&'/') => break,
                _ if !quoted => code.push(c),
                _ => {}
            }
            before = if before == '\\' { ' ' } else { c };
        }
        code
    };
    text.lines().map(|l| line(l) + "\n").collect()
}

/// Code without its unit tests, which may use anything.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]\nmod tests {").map_or(code, |at| &code[..at])
}

fn is_test(file: &str) -> bool {
    file.contains("/tests/") || file.ends_with("tests.rs")
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The names that follow `prefix`, those of a list in braces too: `crate::a` and `use crate::{b::C, d}`.
fn named_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].chars().next_back().is_some_and(|c| is_name(c) || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.insert(rest.chars().take_while(|c| is_name(*c)).collect());
            continue;
        };
        let (mut depth, mut start) = (1, true);
        let mut name = String::new();
        for c in list.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 1 && start && is_name(c) {
                name.push(c);
            } else if depth == 1 && c == ',' || depth == 0 {
                names.insert(std::mem::take(&mut name));
                start = true;
            } else if depth == 1 && !c.is_whitespace() {
                start = false;
            }
            if depth == 0 {
                break;
            }
        }
    }
    names.remove("");
    names
}

/// The module that a file of `src` belongs to.
fn module_of(file: &str) -> &str {
    let path = file.strip_prefix("src/").unwrap();
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

fn sources() -> Vec<String> {
    let mut found = files(&["src"], &[".rs"]);
    found.retain(|file| !file.starts_with("src/bin/") && file != "src/lib.rs" && !is_test(file));
    found
}

/// The exceptions that were met, and the offences that are none.
fn compare(found: &BTreeSet<(String, String)>, allowed: &[(&str, &str)], law: &str) {
    let is_allowed = |(a, b): &&(String, String)| allowed.contains(&(a.as_str(), b.as_str()));
    let offences: Vec<_> = found.iter().filter(|pair| !is_allowed(pair)).collect();
    assert!(offences.is_empty(), "{law}: {offences:#?}");
    let kept: Vec<_> = allowed.iter().filter(|(a, b)| !found.contains(&((*a).to_owned(), (*b).to_owned()))).collect();
    assert!(kept.is_empty(), "{law}: exceptions that are no longer needed: {kept:#?}");
}

#[test]
fn the_laws_read_sources_as_the_compiler_does() {
    let imports = "use crate::{a::B, c, d::{E, f}}; // crate::no\n";
    let code = code_of(&format!("{imports}let x = \"crate::no\"; crate::g::h(crate::i);\n"));
    let names: Vec<String> = named_after(&code, "crate::").into_iter().collect();
    assert_eq!(names, ["a", "c", "d", "g", "i"]);
    assert_eq!(code_of("let a = \"// unsafe\"; // unsafe\n"), "let a = ; \n");
    let named = paths_in("see `src/a/b.rs`, docs/C.md, and llama.cpp/src/x.cpp; src/{y,z}.rs.");
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["docs/C.md", "src", "src/a/b.rs"]);
}

#[test]
fn imports_run_one_way() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut found = BTreeSet::new();
    let mut modules = BTreeSet::new();
    for file in sources() {
        let module = module_of(&file).to_owned();
        let own = layer(&module).unwrap_or_else(|| panic!("{file} is in no layer: add {module} to LAYERS"));
        for used in named_after(without_tests(&code_of(&read(&file))), "crate::") {
            // What lib.rs brings up is of its module.
            let used = match used.as_str() {
                "Engine" => "engine".to_owned(),
                "Error" | "Result" | "Code" => "error".to_owned(),
                _ => used,
            };
            if used != module && layer(&used).is_some_and(|of| of >= own) {
                found.insert((module.clone(), used));
            }
        }
        modules.insert(module);
    }
    let layered: BTreeSet<String> = LAYERS.iter().flat_map(|layer| layer.iter().map(|m| (*m).to_owned())).collect();
    assert_eq!(layered, modules, "the layers name each module once");
    let allowed: Vec<_> = TANGLED.iter().copied().filter(|(a, _)| !a.contains('/')).collect();
    compare(&found, &allowed, "a module imports one that is not before it");
}

#[test]
fn the_architecture_names_the_layers_as_they_are() {
    let layer = |layer: &&[&str]| match layer {
        [one] => (*one).to_owned(),
        many => format!("{{{}}}", many.join(", ")),
    };
    let sentence = LAYERS.iter().map(layer).collect::<Vec<_>>().join(" ← ") + " ← bin";
    let text = read("docs/ARCHITECTURE.md").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(&sentence), "docs/ARCHITECTURE.md has to say: {sentence}");
}

/// The part of docs/ARCHITECTURE.md's tree that is about a module of `src`.
fn tree_entry(module: &str) -> Option<String> {
    let text = read("docs/ARCHITECTURE.md");
    let tree = text.split("```\n").find(|block| block.starts_with("src/\n"))?.to_owned();
    let names = |line: &str| line.strip_prefix("  ").is_some_and(|l| l.split([' ', '/', '.']).next() == Some(module));
    let mut lines = tree.lines().skip_while(|line| !names(line));
    let first = lines.next()?.to_owned();
    let rest = lines.take_while(|line| line.starts_with("    "));
    Some(rest.fold(first, |entry, line| entry + " " + line.trim()))
}

#[test]
fn the_architecture_names_every_file() {
    let mut missing = Vec::new();
    for file in sources() {
        let module = module_of(&file);
        let entry = tree_entry(module).unwrap_or_default();
        let path: Vec<&str> = file.split('/').collect();
        // A folder within a module stands for its files, but for the learner's.
        let name = match path[..] {
            ["src", _, "mod.rs"] | ["src", _] => module,
            ["src", _, file] | ["src", _, "learner", file] if file != "mod.rs" => file,
            ["src", _, folder, ..] => folder,
            _ => unreachable!("{file}"),
        };
        if !entry.contains(name) {
            missing.push(file);
        }
    }
    assert!(missing.is_empty(), "the tree of docs/ARCHITECTURE.md has to name: {missing:#?}");
}

/// Siblings that a file imports by `super::`: files of its folder, or names that the folder brings up from them.
fn siblings_of(file: &str) -> BTreeSet<String> {
    let (folder, own) = file.rsplit_once('/').unwrap();
    let own = own.trim_end_matches(".rs");
    if own == "mod" || folder == "src" {
        return BTreeSet::new();
    }
    let is_file = |name: &str| {
        let place = root().join(folder).join(name);
        place.with_extension("rs").exists() || place.join("mod.rs").exists()
    };
    let top = [format!("{folder}/mod.rs"), format!("{folder}/main.rs"), format!("{folder}.rs")];
    let top = top.iter().find(|top| root().join(top).exists()).map(|top| code_of(&read(top))).unwrap_or_default();
    let home = |name: String| -> Option<String> {
        if is_file(&name) {
            return Some(name);
        }
        let brings_up = |part: &&str| part.split(|c| !is_name(c)).any(|word| word == name);
        let line = top.split(';').filter(|part| part.contains("use ")).find(brings_up)?;
        let child = line.rsplit_once("use ")?.1.trim_start_matches("self::").split("::").next()?;
        is_file(child).then(|| child.to_owned())
    };
    let names = named_after(without_tests(&code_of(&read(file))), "super::");
    names.into_iter().filter_map(home).filter(|name| name != own).collect()
}

#[test]
fn no_two_files_of_a_folder_lean_on_each_other() {
    let mut found = BTreeSet::new();
    let mut leans: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files(&["src"], &[".rs"]).into_iter().filter(|file| !is_test(file)) {
        let siblings = siblings_of(&file);
        leans.insert(file.trim_end_matches(".rs").to_owned(), siblings);
    }
    for (file, siblings) in &leans {
        let (folder, own) = file.rsplit_once('/').unwrap();
        for other in siblings {
            // Everything that the sibling leans on, however far away.
            let (mut seen, mut left) = (BTreeSet::new(), vec![other.clone()]);
            while let Some(name) = left.pop() {
                if seen.insert(name.clone()) {
                    left.extend(leans.get(&format!("{folder}/{name}")).into_iter().flatten().cloned());
                }
            }
            if seen.contains(own) {
                found.insert((file.clone(), other.clone()));
            }
        }
    }
    let allowed: Vec<_> = TANGLED.iter().copied().filter(|(a, _)| a.contains('/')).collect();
    compare(&found, &allowed, "files of a folder lean on each other in a circle");
}

#[test]
fn what_is_dangerous_or_foreign_is_used_in_its_place_alone() {
    let mut found = Vec::new();
    for file in files(&["src"], &[".rs"]) {
        let code = code_of(&read(&file));
        for (word, places) in ONLY_IN {
            let names = |(at, _): (usize, &str)| {
                let before = code[..at].chars().next_back();
                let after = code[at + word.len()..].chars().next();
                !before.is_some_and(is_name) && !after.is_some_and(is_name)
            };
            let used = code.match_indices(word).any(names);
            if used && !places.iter().any(|place| file.starts_with(place)) && !is_test(&file) {
                found.push(format!("{file} uses {word}, which belongs in {}", places.join(", ")));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_file_begins_with_its_job() {
    let bare: Vec<String> = rust_files().into_iter().filter(|file| !read(file).starts_with("//! ")).collect();
    assert!(bare.is_empty(), "these do not begin with a line that says their job: {bare:#?}");
}

#[test]
fn files_are_short_and_lines_narrow() {
    let (mut long, mut wide) = (BTreeMap::new(), BTreeMap::new());
    for file in rust_files() {
        let text = read(&file);
        let wider = text.lines().filter(|line| line.chars().count() > WIDTH).count();
        if wider > 0 {
            wide.insert(file.clone(), wider);
        }
        if text.lines().count() > LENGTH {
            long.insert(file, text.lines().count().next_multiple_of(100));
        }
    }
    let as_list = |found: &BTreeMap<String, usize>| {
        found.iter().map(|(file, count)| format!("    (\"{file}\", {count}),\n")).collect::<String>()
    };
    let of = |list: &[(&str, usize)]| -> BTreeMap<String, usize> {
        list.iter().map(|(file, count)| ((*file).to_owned(), *count)).collect()
    };
    assert!(wide == of(WIDER), "wider than {WIDTH} columns; make them fit, and WIDER shorter:\n{}", as_list(&wide));
    assert!(long == of(LONGER), "over {LENGTH} lines; split them, and make LONGER shorter:\n{}", as_list(&long));
}

/// Documents that people read.
fn documents() -> Vec<String> {
    files(&["README.md", "CONTRIBUTING.md", "docs", "bindings", "tests", "examples"], &[".md"])
}

/// The headings of a document as its links name them.
fn anchors(document: &str) -> Vec<String> {
    let heading = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| is_name(*c) || *c == ' ' || *c == '-');
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    };
    document.lines().filter(|line| line.starts_with('#')).map(heading).collect()
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut dead = Vec::new();
    for file in documents() {
        let text = read(&file);
        let folder = Path::new(&file).parent().unwrap();
        for (at, _) in text.match_indices("](") {
            let target: String = text[at + 2..].chars().take_while(|c| *c != ')' && !c.is_whitespace()).collect();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let place = if path.is_empty() { root().join(&file) } else { root().join(folder).join(path) };
            let there = match fs::read_to_string(&place) {
                Ok(text) => anchor.is_empty() || !path.ends_with(".md") || anchors(&text).iter().any(|a| a == anchor),
                Err(_) => place.exists(),
            };
            if !there {
                dead.push(format!("{file}: {target}"));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

/// Paths of this repository that a text names.
fn paths_in(text: &str) -> BTreeSet<String> {
    const FOLDERS: [&str; 9] =
        ["src/", "docs/", "tests/", "scripts/", "include/", "examples/", "bindings/", "benches/", "fuzz/"];
    let belongs = |c: char| is_name(c) || "/.-*{},".contains(c);
    let mut paths = BTreeSet::new();
    for folder in FOLDERS {
        for (at, _) in text.match_indices(folder) {
            if text[..at].chars().next_back().is_some_and(|c| belongs(c) || ":$~<>".contains(c)) {
                continue;
            }
            let path: String = text[at..].chars().take_while(|c| belongs(*c)).collect();
            // A pattern stands for many, and a sentence ends.
            let path = path.split(['*', '{', ',']).next().unwrap_or_default().trim_end_matches(['.', '-', '/']);
            paths.insert(path.to_owned());
        }
    }
    paths
}

#[test]
fn paths_that_are_named_exist() {
    let comments = |text: &str| -> String {
        let comment = |line: &str| line.find("//").map_or_else(String::new, |at| line[at..].to_owned() + "\n");
        text.lines().map(comment).collect()
    };
    let mut missing = BTreeSet::new();
    let places = documents().into_iter().map(|file| (read(&file), file));
    for (text, file) in places.chain(rust_files().into_iter().map(|file| (comments(&read(&file)), file))) {
        for path in paths_in(&text) {
            let from_here = Path::new(&file).parent().unwrap().join(&path);
            if !root().join(&path).exists() && !root().join(from_here).exists() {
                missing.insert((path, file.clone()));
            }
        }
    }
    let known = |path: &str| MISSING.contains(&path);
    let offences: Vec<_> = missing.iter().filter(|(path, _)| !known(path)).collect();
    assert!(offences.is_empty(), "paths that are not there, and who names them: {offences:#?}");
    let there: Vec<_> = MISSING.iter().filter(|known| !missing.iter().any(|(path, _)| path == *known)).collect();
    assert!(there.is_empty(), "MISSING holds what is there or named nowhere: {there:?}");
}

#[test]
fn every_dependency_is_used() {
    let manifest = read("Cargo.toml");
    let mut section = "";
    let mut dependencies = Vec::new();
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if section.ends_with("dependencies")
            && let Some((name, _)) = line.split_once('=')
            && name.trim().chars().all(|c| is_name(c) || c == '-')
        {
            dependencies.push(name.trim().to_owned());
        }
    }
    assert!(dependencies.len() > 20, "{dependencies:?}");
    let code: String = rust_files().iter().map(|file| code_of(&read(file))).collect();
    let used = |name: &str| {
        let word = name.replace('-', "_");
        let starts = |(at, _): (usize, &str)| {
            let after = &code[at + word.len()..];
            let is_path = after.starts_with("::") || after.starts_with(';') || after.starts_with('!');
            !code[..at].chars().next_back().is_some_and(is_name) && is_path
        };
        code.match_indices(&word).any(starts)
    };
    let reasoned = |name: &str| UNNAMED.iter().any(|(known, _)| *known == name);
    let unused: Vec<_> = dependencies.iter().filter(|name| !used(name) && !reasoned(name)).collect();
    assert!(unused.is_empty(), "no source names {unused:?}");
    let needless = |name: &str| used(name) || !dependencies.iter().any(|known| known == name);
    let named: Vec<_> = UNNAMED.iter().filter(|(name, _)| needless(name)).collect();
    assert!(named.is_empty(), "UNNAMED holds what is named or no dependency: {named:?}");
}
