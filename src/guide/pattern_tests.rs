//! Tests of the translated patterns, and of refusals.

use super::translate;

/// Whether the whole text matches.
fn matches(pattern: &str, text: &str) -> bool {
    let rust = translate(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
    regex::Regex::new(&rust).unwrap_or_else(|e| panic!("{rust}: {e}")).is_match(text)
}

#[test]
fn patterns_mean_what_ecma_262_says() {
    for (pattern, good, bad) in [
        (r"^[[a-z]]$", "[]", "a"),
        ("^[a&&b]$", "&", "c"),
        ("^[+--b]$", ",", "a"),
        ("^a{2,3}?$", "aaa", "a"),
        ("^a{b$", "a{b", "a"),
        ("^a}]$", "a}]", "a"),
        (r"^\d{3}$", "123", "١٢٣"),
        (r"^\D$", "x", "1"),
        (r"^[^\d]$", "x", "١"),
        (r"^[\D]$", "x", "5"),
        (r"^[\w-]+$", "a-b_9", "a b"),
        (r"^\W$", "-", "a"),
        (r"^[^\W]$", "a", "-"),
        (r"^\S+$", "ab", "a b"),
        (r"^[^\s]$", "a", "\u{85}"),
        ("^.$", "x", "\u{2028}"),
        (r"^a\/b\-c$", "a/b-c", "ab"),
        (r#"^"x"$"#, "\"x\"", "x"),
        (r"^a\\b$", r"a\b", "a\\\\b"),
        (r"^\x41\u0042\u{43}\cJ$", "ABC\n", "ABC"),
        (r"^\ud83d\ude00$", "😀", "x"),
        (r"^[\b]$", "\u{8}", "b"),
        (r"^(?<year>\d{4})-(?:\d\d)$", "2026-11", "26-11"),
        ("(?i)^a$", "A", "b"),
        (r"^\p{Lu}$", "É", "é"),
        ("#x y", "a #x yz", "#xy"),
        ("^a|b$", "xb", "xa"),
    ] {
        assert!(matches(pattern, good), "{pattern} {good}");
        assert!(!matches(pattern, bad), "{pattern} {bad}");
    }
}

#[test]
fn what_can_not_be_honoured_is_named() {
    for (pattern, what) in [
        ("a(?=b)", "ahead or behind"),
        ("a(?!b)", "ahead or behind"),
        ("(?<=a)b", "ahead or behind"),
        (r"(a)\1", "references to groups"),
        (r"\bword\b", "word boundaries"),
        ("[]", "is empty"),
        ("[^]", "is empty"),
        ("[a", "expected ]"),
        ("(a", "unclosed group"),
        ("*a", "nothing to repeat"),
        ("a**", "nothing to repeat"),
        ("a{,2}", "write {0,2}"),
        ("[z-a]", "ends before it begins"),
        (r"\q", r"\q is not known"),
        ("a\\", "last character"),
        ("a{999999999}", "more than"),
        (r"\p{Nonsense}", "property"),
        (r"^\ud800$", "surrogate"),
        ("(?m)^a$", "this kind of group"),
    ] {
        let message = translate(pattern).expect_err(pattern).message().to_owned();
        assert!(message.starts_with("pattern") && message.to_lowercase().contains(what), "{pattern}: {message}");
    }
}
