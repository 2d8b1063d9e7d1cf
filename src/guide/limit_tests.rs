//! Tests of what is said of formats that pass the compiler's limits.

use super::tests::guides;
use crate::types::Format;

#[test]
fn a_grammar_that_is_too_large_is_refused_without_the_compilers_words() {
    let long = format!("root ::= {}", "[a-z]? ".repeat(2000));
    let rules: String = (0..40).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect();
    let doubled = format!("root ::= r0\n{rules}r40 ::= \"a\"\n");
    for grammar in [long, doubled] {
        let error = guides().guide(&Format::Grammar(grammar), &|_| None).map(drop).unwrap_err();
        let said = error.message();
        assert!(said.starts_with("the grammar can't be used: it is too large or too complex, expected"), "{said}");
    }
}
