//! The limits of request fields in the OpenAPI document, taken from the layers that check them. Checks nothing itself.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::engine::GenerateRequest;
use crate::request::{ANSWERS, CHOICES, EMBEDDINGS, SCORED, TEXT_LOGPROBS};
use crate::types::{RATINGS, Sampling};

/// Writes the limits into a document.
pub(super) fn write(document: &mut Value) {
    for body in ["ChatRequest", "CompletionRequest"] {
        let mut numbers = |field, range| limit(document, body, field, range);
        numbers("temperature", ends(&Sampling::TEMPERATURE));
        numbers("top_k", ends(&(0..=Sampling::MAX_TOP_K)));
        numbers("top_p", ends(&Sampling::MASS));
        numbers("min_p", ends(&Sampling::MASS));
        numbers("repeat_penalty", ends(&Sampling::REPEAT_PENALTY));
        numbers("frequency_penalty", ends(&Sampling::PENALTY));
        numbers("presence_penalty", ends(&Sampling::PENALTY));
        numbers("top_logprobs", ends(&(0..=GenerateRequest::MAX_LOGPROBS)));
        numbers("n", ends(&(1..=CHOICES)));
        let (low, high) = (Sampling::BIAS.start(), Sampling::BIAS.end());
        add(document, body, "logit_bias", &format!("At most {} tokens, {low} to {high} each.", Sampling::MAX_BIASES));
        add(document, body, "stop", &format!("At most {}.", GenerateRequest::MAX_STOPS));
    }
    limit(document, "CompletionRequest", "logprobs", ends(&(0..=TEXT_LOGPROBS)));
    add(document, "CompletionRequest", "prompt", &format!("Several get at most {ANSWERS} answers in all."));
    limit(document, "RerankRequest", "top_n", ends(&(1..=SCORED)));
    add(document, "ScoreRequest", "completions", &format!("At most {SCORED}."));
    add(document, "RerankRequest", "documents", &format!("At most {SCORED}."));
    add(document, "EmbeddingsRequest", "input", &format!("At most {EMBEDDINGS}."));
    limit(document, "FeedbackRequest", "rating", ends(&RATINGS));
    limit(document, "SampleRequest", "reward", ends(&RATINGS));
    limit(document, "SampleRequest", "temperature", ends(&Sampling::TEMPERATURE));
}

/// Both ends as JSON numbers, in their shortest form: 0.01 is no 32-bit float.
fn ends<T: Display>(range: &RangeInclusive<T>) -> [Value; 2] {
    [range.start(), range.end()].map(|end| end.to_string().parse().unwrap_or_default())
}

fn field<'a>(document: &'a mut Value, body: &str, field: &str) -> Option<&'a mut Value> {
    document.pointer_mut(&format!("/components/schemas/{body}/properties/{field}"))
}

fn limit(document: &mut Value, body: &str, name: &str, [low, high]: [Value; 2]) {
    if let Some(field) = field(document, body, name) {
        field["minimum"] = low;
        field["maximum"] = high;
    }
}

/// Adds a sentence to a field's description.
fn add(document: &mut Value, body: &str, name: &str, sentence: &str) {
    if let Some(field) = field(document, body, name) {
        let text = field["description"].as_str().unwrap_or_default();
        field["description"] = format!("{text} {sentence}").trim().into();
    }
}

#[cfg(test)]
mod tests {
    use super::super::openapi;

    #[test]
    fn the_document_tells_the_limits_that_requests_are_checked_against() {
        let document: serde_json::Value = serde_json::from_str(openapi::text()).unwrap();
        let of = |body: &str, field: &str| document["components"]["schemas"][body]["properties"][field].clone();
        let range = |body: &str, field: &str| (of(body, field)["minimum"].clone(), of(body, field)["maximum"].clone());
        assert_eq!(range("ChatRequest", "temperature"), (0.into(), 10.into()));
        assert_eq!(range("ChatRequest", "repeat_penalty"), (0.01.into(), 10.into()));
        assert_eq!(range("ChatRequest", "top_logprobs"), (0.into(), 20.into()));
        assert_eq!(range("CompletionRequest", "logprobs"), (0.into(), 5.into()));
        assert_eq!(range("CompletionRequest", "n"), (1.into(), 8.into()));
        assert_eq!(range("FeedbackRequest", "rating"), ((-1).into(), 1.into()));
        let stop = of("ChatRequest", "stop")["description"].as_str().unwrap().to_owned();
        assert_eq!(stop, "A string or several. At most 16.");
    }
}
