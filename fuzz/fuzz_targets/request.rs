//! Every body that a client can send, through the code that HTTP and C share.
#![no_main]

use apa::request::*;

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    for unknown in [Unknown::Refuse, Unknown::Ignore] {
        let _ = parse_request(body, unknown);
        let _ = parse_chat(body, unknown);
        let _ = parse_completion(body, unknown);
        let _ = parse_anthropic(body, unknown);
        let _ = parse_responses(body, unknown);
        let _ = parse_messages(body, unknown);
    }
    let _ = parse_score(body);
    let _ = parse_rerank(body);
    let _ = parse_feedback(body);
    let _ = parse_preference(body);
    let _ = parse_sample(body);
    let _ = parse_forget(body);
    let _ = parse_review(body);
    let _ = parse_embeddings(body);
    let _ = parse_tokenize(body);
    let _ = parse_detokenize(body);
    let _ = parse_activate(body);
    let _ = parse_adopt(body);
    let _ = parse_nothing(body);
});
