//! Tests of the forms of lines. None of what becomes of them.

use super::*;

fn judged(line: &str) -> Judged {
    parse(line.as_bytes()).unwrap().judged
}

fn chat(text: &str) -> PromptText {
    PromptText::Chat(vec![ChatMessage { role: "user".into(), content: text.into() }])
}

#[test]
fn every_form_of_a_pair_is_read() {
    let expected = Judged::Pair { prompt: chat("hi"), chosen: "hello".into(), rejected: "go\n\naway".into() };
    for line in [
        r#"{"prompt": [{"role": "user", "content": "hi"}], "chosen": "hello", "rejected": "go\n\naway"}"#,
        r#"{"prompt": [{"role": "user", "content": "hi"}], "chosen": [{"role": "assistant", "content": "hello"}],
            "rejected": [{"role": "assistant", "content": "go\n\naway"}], "user": "ann"}"#,
        r#"{"chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "rejected": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "go\n\naway"}]}"#,
        r#"{"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go\n\naway"}"#,
    ] {
        assert_eq!(judged(line), expected, "{line}");
    }
}

#[test]
fn every_form_of_a_rating_is_read() {
    let rated = |rating| Judged::Rated { prompt: chat("hi"), answer: "hello".into(), rating };
    let messages = r#""messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]"#;
    assert_eq!(judged(&format!("{{{messages}, \"thumbs_up\": 3, \"thumbs_down\": 1}}")), rated(0.5));
    let prompt = r#""prompt": [{"role": "user", "content": "hi"}], "completion": "hello""#;
    assert_eq!(judged(&format!("{{{prompt}, \"label\": false}}")), rated(-1.0));
    assert_eq!(judged(&format!("{{{prompt}, \"rating\": 0.25}}")), rated(0.25));
    assert_eq!(judged(&format!("{{{prompt}, \"rating\": null, \"thumbs_up\": 2.0}}")), rated(1.0));
}

#[test]
fn what_is_wrong_with_a_line_is_said() {
    for (line, reason) in [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "no judged answer, expected prompt"),
        (r#"{"prompt": "p", "chosen": " ", "rejected": "a"}"#, "the chosen answer is empty"),
        (r#"{"prompt": "p", "chosen": "a", "rejected": ""}"#, "the rejected answer is empty"),
        (r#"{"prompt": "p", "chosen": "a", "rejected": "a"}"#, "both answers are the same"),
        (r#"{"prompt": "p", "chosen": 3, "rejected": "a"}"#, "chosen is neither text nor one message"),
        (r#"{"prompt": [], "chosen": "b", "rejected": "a"}"#, "the prompt has no messages"),
        (r#"{"chosen": "x", "rejected": "a"}"#, "chosen is no conversation"),
        (r#"{"prompt": "p", "completion": "a", "rating": 2}"#, "rating is 2, expected a number from -1 to 1"),
        (r#"{"prompt": "p", "completion": "a", "label": "yes"}"#, "label is \"yes\", expected true or false"),
        (r#"{"prompt": "p", "completion": "a", "thumbs_up": true}"#, "thumbs_up is true, expected a number, how many"),
        (r#"{"prompt": "p", "completion": "a", "thumbs_up": 1, "thumbs_down": -1}"#, "thumbs_down is -1, expected a"),
        (r#"{"prompt": "p", "completion": "a", "thumbs_up": null, "rating": null}"#, "no rating, expected rating from"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1e999}"#, "no JSON"),
        (r#"{"prompt": "p", "completion": "a"}"#, "no rating, expected"),
        (r#"{"prompt": "p", "completion": "a", "label": 5}"#, "label is 5, expected true or false"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "thumbs_down": 5}"#, "thumbs beside rating or label"),
        (r#"{"prompt": "p", "completion": "a", "label": true, "thumbs_down": 1}"#, "thumbs beside rating or label"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "chosen": "b"}"#, "one of chosen and rejected"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "messages": []}"#, "messages beside prompt"),
        (r#"{"prompt": "p", "chosen": "a", "rejected": "b", "completion": "c"}"#, "there is completion beside chosen"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "user": 5}"#, "user is 5, expected a text"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "user": ""}"#, "user is empty"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "comment": []}"#, "comment is [], expected a text"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "label": false}"#, "rating and label say the opposite"),
        (r#"{"prompt": "p", "completion": "a", "rating": 1, "label": "x"}"#, "label is \"x\", expected true or false"),
        (
            r#"{"prompt": "p", "chosen": "a", "rejected": "b", "rating": 1}"#,
            "there is rating beside chosen and rejected",
        ),
        (r#"{"prompt": "p", "chosen": "a", "rejected": "b", "signal": "copied"}"#, "there is signal beside chosen"),
        (r#"{"prompt": "p", "chosen": "a", "rejected": "b", "comment": "c"}"#, "there is comment beside chosen"),
    ] {
        let reason_found = parse(line.as_bytes()).unwrap_err().message().to_owned();
        assert!(reason_found.contains(reason), "{line}: {reason_found}");
    }
}

#[test]
fn a_member_of_a_line_that_nothing_can_be_made_of_is_named_with_its_value_and_what_was_expected() {
    let read = |more: &str| parse(format!(r#"{{"prompt": "p", "completion": "a", "rating": 1, {more}}}"#).as_bytes());
    let exported = r#""base_sha256": "f00""#;
    for (more, reason) in [
        (r#""temperature": "x""#, r#"temperature is "x", expected a number from 0 to 10"#),
        (r#""temperature": -1"#, "temperature is -1, expected a number from 0 to 10"),
        (r#""temperature": 1e30"#, "temperature is 1e+30, expected a number from 0 to 10"),
        (&format!(r#"{exported}, "created": "yesterday""#), r#"created is "yesterday", expected milliseconds"#),
        (&format!(r#"{exported}, "created": 1e300"#), "created is 1e+300, expected milliseconds"),
        (&format!(r#"{exported}, "policy_version": -1"#), "policy_version is -1, expected a version's number"),
        (r#""prompt": "q""#, r#""prompt" stands there twice"#),
        (r#""signal": 5"#, "signal is 5, expected a signal's name"),
        (r#""signal": "copied""#, "both a rating and signal"),
        (r#""correction": "yes""#, r#"correction is "yes", expected true or false"#),
        (r#""prompt_tokens": [1, -1]"#, "prompt_tokens[1] is -1, expected a token's number"),
        (r#""prompt_tokens": "x""#, r#"prompt_tokens is "x", expected an array of tokens"#),
        (r#""feedback_identity": "x""#, r#"feedback_identity is "x", expected 32 hexadecimal digits"#),
    ] {
        let said = read(more).unwrap_err().message().to_owned();
        assert!(said.contains(reason), "{more}: {said}");
    }
    assert_eq!(read(r#""prompt_tokens": [100.0, 7]"#).unwrap().prompt_tokens, Some(vec![100, 7]));
    assert!(read(r#""created": "2024-01-31", "temperature": 0.7, "signal": null"#).is_ok(), "another data set");
}

#[test]
fn a_gzipped_file_reads_like_the_plain_one_and_names_its_bad_lines() {
    use std::io::Write;
    let text = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n\nnonsense\n\
                {\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"d\"}";
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = (dir.path().join("a.jsonl"), dir.path().join("a.jsonl.gz"));
    std::fs::write(&plain, text).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    gzip.finish().unwrap();
    let found = read_judgements(&plain).unwrap();
    assert_eq!(found, read_judgements(&packed).unwrap());
    assert_eq!(found.entries.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(found.refused.iter().map(|r| r.line).collect::<Vec<_>>(), [3]);
}
