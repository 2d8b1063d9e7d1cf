//! Schemas and grammars: the first byte says how an answer goes on among the tokens that may follow.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use apa::guide::Guides;
use apa::types::Format;

const END: u32 = 256;

/// Single bytes, and the end.
static GUIDES: LazyLock<Guides> = LazyLock::new(|| {
    let mut tokens: Vec<Vec<u8>> = (0..=254).map(|byte| vec![byte]).collect();
    tokens.extend([Vec::new(), b"\xff<end>".to_vec()]);
    Guides::new(tokens, &[END]).unwrap()
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&pick, text)) = input.split_first() else { return };
    let format = match (serde_json::from_slice(text), std::str::from_utf8(text)) {
        (Ok(schema), _) => Format::JsonSchema(schema),
        (Err(_), Ok(grammar)) => Format::Grammar(grammar.to_owned()),
        _ => return,
    };
    let Ok(mut guide) = GUIDES.guide(&format, &|text| (text == "<end>").then_some(END)) else { return };
    for step in 0..24 {
        guide.wait(Duration::from_secs(20));
        let Ok(mask) = guide.mask() else { return };
        let tokens: Vec<u32> = mask.expect("a mask takes less than 20 seconds").tokens().collect();
        assert!(!tokens.is_empty());
        let token = tokens[(usize::from(pick) + 7 * step) % tokens.len()];
        if token == END {
            return;
        }
        guide.accept(token);
    }
});
