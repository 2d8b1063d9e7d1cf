//! Tests of guides over a vocabulary of bytes.

use std::path::Path;

use llguidance::api::StopReason;
use serde_json::{Value, json};

use super::answer::{STEP, ended};
use super::*;
use crate::error::Code;

/// A vocabulary of single bytes, a few longer tokens, and the end token.
pub(super) fn guides() -> Guides {
    guides_with(Step::make)
}

fn guides_with(make: fn(Step, &Meter)) -> Guides {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| if b == 0xff { Vec::new() } else { vec![b] }).collect();
    tokens.extend(["{\"", "\":", "\",", "the", "\u{1f680}"].map(|t| t.as_bytes().to_vec()));
    tokens.push(b"\xff<end>".to_vec());
    let end = tokens.len() as TokenId - 1;
    Guides::with_step(tokens, &[end], make).unwrap()
}

const END: TokenId = 261;

/// How much of the text is allowed, and whether the answer may end there.
fn follow(mut guide: Guide, text: &str) -> Result<(usize, bool)> {
    for (at, byte) in text.bytes().enumerate() {
        let mask = ready(&mut guide)?;
        if !mask.contains(&TokenId::from(byte)) {
            return Ok((at, false));
        }
        guide.accept(TokenId::from(byte));
    }
    Ok((text.len(), ready(&mut guide)?.contains(&END)))
}

fn ready(guide: &mut Guide) -> Result<Vec<TokenId>> {
    guide.wait(Duration::from_secs(20));
    let mask = guide.mask()?.expect("a mask after 20 seconds");
    Ok(mask.tokens().collect())
}

fn accepts(guides: &Guides, format: &Format, text: &str) -> bool {
    let guide = guides.guide(format, &|_| None).unwrap_or_else(|e| panic!("{format:?}: {e}"));
    follow(guide, text).unwrap_or_else(|e| panic!("{format:?}: {text}: {e}")) == (text.len(), true)
}

/// Schemas with instances, from files that the tests of clients read too.
fn cases() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let read = |file| match serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap() {
        Value::Array(cases) => cases,
        _ => panic!("a file of schemas is an array"),
    };
    files.into_iter().flat_map(read).collect()
}

#[test]
fn a_panic_of_a_worker_ends_its_answer_alone_and_says_that_it_was_a_bug() {
    let guides =
        guides_with(|step, masks| if step.token == 7 { panic!("a bug, for this test") } else { step.make(masks) });
    let any = Format::Grammar("root ::= [^x]+".into());
    let good = guides.guide(&any, &|_| None).unwrap();
    // More often than there are workers: each goes on.
    for _ in 0..8 {
        let mut bad = guides.guide(&any, &|_| None).unwrap();
        bad.accept(7);
        let error = ready(&mut bad).unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::Panic, "a bug kept the answer from being held to its format")
        );
    }
    assert_eq!(follow(good, "goes on").unwrap(), (7, true));
    // What llguidance catches itself is no fault of the client's either.
    assert_eq!(ended(StopReason::InternalError, Some("panic: index out of bounds".into())).code(), Code::Panic);
    assert_eq!(ended(StopReason::InternalError, Some("too many items".into())).code(), Code::Arg);
    let lexer = ended(StopReason::LexerTooComplex, Some("lexer error: too many expressions constructed".into()));
    assert!(lexer.message().contains("following pattern"), "{lexer}");
}

#[test]
fn what_a_schema_says_is_held_or_refused_with_the_keyword_named() {
    let guides = guides();
    let mut wrong = Vec::new();
    let cases = cases();
    assert!(cases.len() > 100, "{}", cases.len());
    for case in &cases {
        let name = case["description"].as_str().unwrap();
        let format = Format::JsonSchema(case["schema"].clone());
        let guide = guides.guide(&format, &|_| None);
        if let Some(keyword) = case["refused"].as_str() {
            match guide {
                Ok(_) => wrong.push(format!("{name}: not refused")),
                Err(e) if e.message().contains(keyword) => {}
                Err(e) => wrong.push(format!("{name}: {e}")),
            }
            continue;
        }
        if let Err(e) = guide {
            wrong.push(format!("{name}: {e}"));
            continue;
        }
        for (instances, valid) in [("valid", true), ("invalid", false)] {
            for instance in case[instances].as_array().unwrap() {
                let text = instance.to_string();
                if accepts(&guides, &format, &text) != valid {
                    wrong.push(format!("{name}: {text} is {}", if valid { "refused" } else { "accepted" }));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn a_grammar_means_what_llama_cpp_says() {
    let guides = guides();
    for (grammar, good, bad) in [
        ("root ::= \"yes\" | \"no\"", vec!["yes", "no"], vec!["y", "maybe", "yesno"]),
        ("root ::= item+\nitem ::= \"- \" [^\\r\\n]+ \"\\n\"", vec!["- a\n", "- a\n- b c\n"], vec!["- \n", "a\n", ""]),
        ("root ::= ((\"a\"?){100}){100} \"b\"", vec!["b", "aaab"], vec!["a", "c"]),
        ("root ::= [a-z]* \"end\"", vec!["friend", "enxend", "end"], vec!["en", "endx"]),
        ("root ::= (\"a\" | \"ab\") (\"c\" | \"bc\")", vec!["abc", "ac", "abbc"], vec!["ab"]),
        (
            "root ::= \"[\" ws (root (\",\" ws root)*)? \"]\" ws\nws ::= [ \\t\\n]*",
            vec!["[]", "[ [],[[]]] "],
            vec!["[", "[,]"],
        ),
        ("root ::= \"(\" root \")\" | \"\"", vec!["", "()", "((()))"], vec!["(", "())"]),
        ("root ::= root \"a\" | \"b\"", vec!["b", "baa"], vec!["a", ""]),
        ("root ::= e\ne ::= t (\"+\" t)*\nt ::= [0-9]+ | \"(\" e \")\"", vec!["1", "1+(23+4)+5"], vec!["1+", "()"]),
        ("root ::= \"\"", vec![""], vec!["a"]),
        ("root ::= \"a\"{2,3} \"b\"{2} [c]{0} \"d\"{1,}", vec!["aabbd", "aaabbdd"], vec!["abbd", "aabb", "aabbcd"]),
        ("root ::= [\\u00e9é] . \"\\x41\" [^\\\"\\\\]", vec!["é\nAx", "é漢Aé"], vec!["eéAx", "é漢A\""]),
        ("root ::= under_score\nunder_score ::= \"/\" | \"*\" # a comment: é", vec!["/", "*"], vec!["#"]),
        ("root ::= (\n \"a\" |\n b\n)*\n\nb ::= \"bb\"", vec!["", "abba", "bba"], vec!["ab"]),
    ] {
        let format = Format::Grammar(grammar.into());
        for text in good {
            assert!(accepts(&guides, &format, text), "{grammar}: {text:?}");
        }
        for text in bad {
            assert!(!accepts(&guides, &format, text), "{grammar}: {text:?}");
        }
    }
}

#[test]
fn a_token_of_a_grammar_is_that_token_whatever_its_text() {
    let guides = guides();
    let format = Format::Grammar("root ::= \"a\" <[261]> \"b\" !<the> <the>".into());
    let mut guide = guides.guide(&format, &|text| (text == "<the>").then_some(259)).unwrap();
    assert_eq!(ready(&mut guide).unwrap(), [97]);
    guide.accept(97);
    assert_eq!(ready(&mut guide).unwrap(), [261]);
}

#[test]
fn no_schema_or_grammar_takes_long_to_refuse_or_to_follow() {
    let guides = guides();
    let many = |n: usize, of: &dyn Fn(usize) -> Value| Value::from_iter((0..n).map(|i| (format!("k{i}"), of(i))));
    let numbers = |range: std::ops::Range<u32>| json!({"enum": range.collect::<Vec<_>>()});
    let schemas = [
        json!({"type": "string", "pattern": "^(([a-z]*){50}){50}$"}),
        json!({"type": "string", "pattern": "(a|b)*a(a|b){200}"}),
        json!({"type": "string", "pattern": "(.{0,500}x){500}"}),
        json!({"type": "number", "multipleOf": 19_997}),
        json!({"type": "object", "properties": many(500, &|_| json!({"type": "string"}))}),
        json!({"type": "object", "patternProperties":
            many(400, &|i| json!({"minimum": i}))}),
        json!({"allOf": (0..40).map(|_| json!({"patternProperties":
            many(20, &|i| json!({"minimum": i}))})).collect::<Vec<_>>()}),
        json!({"anyOf": (0..2000).map(|i| json!({"minimum": i})).collect::<Vec<_>>()}),
        json!({"allOf": [numbers(0..900), numbers(900..1800)]}),
    ];
    let grammars = [
        "root ::= ((\"a\"?){100}){100} \"b\"".to_owned(),
        "root ::= s{1000}\ns ::= \"a\"? \"b\"? s?".to_owned(),
        format!("root ::= {} \".\"", "[a-z]? \" \" ".repeat(2000)),
        format!("root ::= ({})*", (0..2000).map(|i| format!("\"w{i} \"")).collect::<Vec<_>>().join(" | ")),
        format!(
            "root ::= r0\n{}r25 ::= \"a\"?",
            (0..25).map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1)).collect::<String>()
        ),
    ];
    let formats = schemas.map(Format::JsonSchema).into_iter().chain(grammars.map(Format::Grammar));
    for format in formats {
        let shown: String = format!("{format:?}").chars().take(100).collect();
        let start = std::time::Instant::now();
        let guide = guides.guide(&format, &|_| None);
        let compiled = start.elapsed();
        assert!(compiled < Duration::from_secs(4), "{shown} took {compiled:?}");
        let Ok(mut guide) = guide else { continue };
        for step in 0..60u32 {
            let start = std::time::Instant::now();
            let Ok(tokens) = ready(&mut guide) else { break };
            assert!(start.elapsed() < Duration::from_secs(1), "{shown} took {:?} at token {step}", start.elapsed());
            let token = tokens[step as usize * 7 % tokens.len()];
            if token == END {
                break;
            }
            guide.accept(token);
        }
    }
}

#[test]
fn guides_that_are_dropped_leave_the_workers_free() {
    let guides = guides();
    for _ in 0..200 {
        let mut guide = guides.guide(&Format::JsonSchema(json!({"type": "string"})), &|_| None).unwrap();
        let token = ready(&mut guide).unwrap()[0];
        guide.accept(token);
    }
    assert!(accepts(&guides, &Format::JsonSchema(json!({})), "[1,\"a\"]"));
}

#[test]
fn an_answer_that_was_made_without_its_format_has_it_or_not() {
    let guides = guides();
    let format = Format::JsonSchema(json!({
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false
    }));
    let fits = |text: &str, ended: bool| {
        let mut tokens: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
        tokens.extend(ended.then_some(END));
        guides.guide(&format, &|_| None).unwrap().fits(&tokens, &|token| token == END)
    };
    assert!(fits(r#"{"a": 12}"#, true) && fits(r#"{"a":1}"#, false));
    for other in [r#"{"a": "x"}"#, r#"{"a": 1"#, r#"Sure! {"a": 1}"#, "```json\n{\"a\": 1}\n```", "", r#"{"a": 1}x"#] {
        assert!(!fits(other, true), "{other}");
    }
}

/// The text of an answer that takes allowed tokens at random; `None` if it goes on for too long.
fn wander(mut guide: Guide, mut seed: u64) -> Option<String> {
    let mut text = Vec::new();
    for _ in 0..40 {
        let tokens = ready(&mut guide).unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = tokens[(seed >> 33) as usize % tokens.len()];
        match u8::try_from(token) {
            Ok(byte) => text.push(byte),
            Err(_) if token == END => return String::from_utf8(text).ok(),
            Err(_) => return None,
        }
        guide.accept(token);
    }
    None
}

#[test]
fn every_answer_matches_its_pattern_whatever_the_escapes_of_json() {
    let guides = guides();
    let mut ended = 0;
    for pattern in [
        r"^[\x00-\x1f]{2}$",
        r"^[^ -~]{1,2}$",
        r"^[^\x00-\x7F]{1,2}$",
        r"^a[^\x20-\u{ffff}]b$",
        "^[^\"]{2}$",
        r"^[^\\]{2}$",
        "^[^\"\\\\]{2}$",
        r"^[^\n]{2}$",
        r"^[^a-zA-Z\x80-\u{10ffff}]{2}$",
        r"^\s{1,2}$",
        r"^[\x00-\x21\x7f]{2}$",
        r"^[!-\u{ff}]{2}$",
        r"^(?:[\t\r]|\n\f)$",
        r"^\W{2}$",
        r"^.\D$",
    ] {
        let regex = regex::Regex::new(pattern).unwrap();
        let format = Format::JsonSchema(json!({"type": "string", "pattern": pattern}));
        for seed in 0..40 {
            let Some(text) = wander(guides.guide(&format, &|_| None).unwrap(), seed) else { continue };
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{pattern}: {text:?}: {e}"));
            assert!(regex.is_match(value.as_str().unwrap()), "{pattern}: {text:?}");
            ended += 1;
        }
    }
    assert!(ended > 200, "{ended}");
}

/// The memory of this process.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).map_or(0, |pages| pages.parse::<u64>().unwrap() * 4096)
}

#[test]
fn patterns_that_multiply_each_other_are_refused_at_once_and_leave_the_compiler_free() {
    let guides = guides();
    let pattern = |letter: char| json!({"pattern": format!(".*{letter}.{{8}}")});
    let all: Vec<Value> = ('a'..='t').map(pattern).collect();
    let under = |schema: &Value| json!({"type": "object", "properties": {"a": {"items": schema}}});
    let named: Value = ('a'..='t').map(|c| (c.to_string(), pattern(c))).collect();
    let refs: Vec<Value> = ('a'..='t').map(|c| json!({"$ref": format!("#/$defs/{c}")})).collect();
    let other = |schema: &Value| json!({"type": "object", "additionalProperties": {"items": schema}});
    let nested = ('a'..='t').fold(json!({}), |inner, c| json!({"allOf": [pattern(c), inner]}));
    let before = resident();
    for schema in [
        json!({"type": "string", "allOf": all}),
        json!({"type": "string", "allOf": refs, "$defs": named}),
        json!({"allOf": all.iter().map(under).collect::<Vec<_>>()}),
        json!({"allOf": all.iter().map(other).collect::<Vec<_>>(), "properties": {"b": {}}}),
        json!({"allOf": all.iter().map(|one| json!({"anyOf": [one, {"maxLength": 3}]})).collect::<Vec<_>>()}),
        json!({"type": "array", "items": {"type": "string", "pattern": "x", "allOf": [nested]}}),
        json!({"patternProperties": {"^a": {"allOf": all[..10]}}, "properties": {"ab": {"allOf": all[10..]}}}),
    ] {
        let start = std::time::Instant::now();
        let error = guides.guide(&Format::JsonSchema(schema.clone()), &|_| None).map(|_| ()).unwrap_err();
        assert!(error.message().contains("pattern") && error.code() == Code::Arg, "{schema}: {error}");
        assert!(start.elapsed() < Duration::from_secs(4), "{schema} took {:?}", start.elapsed());
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(*lock(&guides.compilers.taken), 0);
    assert!(resident().saturating_sub(before) < 300 << 20, "{before} {}", resident());
    // What people write goes on to work.
    for schema in [
        json!({"type": "string", "allOf": [{"pattern": "[A-Z]"}, {"pattern": "[a-z]"}, {"pattern": "^.{3,}$"}]}),
        json!({"type": "string", "format": "date-time", "pattern": "^20[0-9]{2}"}),
        json!({"type": "string", "format": "uuid", "pattern": "^[0-9a-f-]+$"}),
    ] {
        guides.guide(&Format::JsonSchema(schema.clone()), &|_| None).map(|_| ()).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn an_answer_that_is_slow_to_follow_holds_up_no_other() {
    const SLOW: Duration = Duration::from_millis(200);
    let guides = guides_with(|step, masks| {
        if step.token == 7 {
            std::thread::sleep(SLOW);
        }
        step.make(masks);
    });
    let any = Format::Grammar("root ::= [^x]+".into());
    let guide = || guides.guide(&any, &|_| None).unwrap();
    let step = |guide: &mut Guide, token| {
        ready(guide).unwrap();
        guide.accept(token);
    };
    let mut slow: Vec<Guide> = (0..16).map(|_| guide()).collect();
    // Each spends its allowance with its first token, and is in the queue of the slow ones from then on.
    for guide in &mut slow {
        step(guide, 7);
    }
    for guide in &mut slow {
        step(guide, 7);
    }
    let mut quick = guide();
    let start = std::time::Instant::now();
    for _ in 0..10 {
        step(&mut quick, 97);
    }
    ready(&mut quick).unwrap();
    assert!(start.elapsed() < SLOW * 2, "{:?}", start.elapsed());
    // Slow ones get their tokens all the same.
    for guide in &mut slow[..3] {
        ready(guide).unwrap();
    }
}

#[test]
fn a_token_that_takes_too_long_to_follow_ends_its_answer_and_leaves_the_worker_free() {
    // A vocabulary of many words, through which an ambiguous grammar has ever more ways.
    let letters = || b'a'..=b'z';
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| if b == 0xff { Vec::new() } else { vec![b] }).collect();
    tokens.extend(letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| [a, b, c].repeat(4)))));
    tokens.push(b"\xff<end>".to_vec());
    let end = tokens.len() as TokenId - 1;
    let guides = Guides::new(tokens, &[end]).unwrap();
    let ambiguous = Format::Grammar("root ::= e\ne ::= e e e | e e | [a-z ]".into());
    let mut guide = guides.guide(&ambiguous, &|_| None).unwrap();
    let mut longest = Duration::ZERO;
    let error = (0..2000).find_map(|_| {
        let start = std::time::Instant::now();
        let error = loop {
            guide.wait(Duration::from_millis(2));
            match guide.mask() {
                Ok(None) => {}
                Ok(Some(_)) => break None,
                Err(error) => break Some(error),
            }
        };
        longest = longest.max(start.elapsed());
        guide.accept(300);
        error
    });
    assert!(error.is_some_and(|e| e.code() == Code::Arg && e.message().contains("too complex")));
    assert!(longest < STEP * 2, "{longest:?}");
    let simple = Format::Grammar("root ::= [^x]+".into());
    assert_eq!(follow(guides.guide(&simple, &|_| None).unwrap(), "goes").map(|(n, _)| n).unwrap(), 4);
}
