//! The API as an OpenAPI document, and a page to read it. Answers no other call.

use std::sync::OnceLock;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{Html, IntoResponse};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{anthropic, control, generate, kinds, limits, live, models, responses, score, transfer};
use crate::engine::VerdictRecord;

/// Paths for operators beside those of versions and of the trainer.
const FOR_OPERATORS: [&str; 5] = ["/v1/events", "/v1/feedback/reviews", "/v1/samples", "/v1/status", "/metrics"];

/// The kind of a snapshot.
const BYTES: &str = "application/octet-stream";

/// GET /openapi.json
pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text())
}

/// The document, made once.
pub(super) fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut document = serde_json::to_value(Api::openapi()).unwrap_or_default();
        limits::write(&mut document);
        tag(&mut document);
        settle(&mut document);
        document.to_string()
    })
}

/// What derived schemas can't say: the content of a verdict's record, numbers that have a name of their own in Rust,
/// and texts that were written for it.
fn settle(document: &mut Value) {
    document["components"]["schemas"]["StoredVerdict"]["properties"]["record"] =
        json!({"$ref": "#/components/schemas/VerdictRecord"});
    // What else an operation may answer, as where a key is missing, a body too large, or the service too busy.
    let error = json!({"description": "Any other error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}});
    for (_, methods) in document["paths"].as_object_mut().into_iter().flatten() {
        for (_, operation) in methods.as_object_mut().into_iter().flatten() {
            operation["responses"]["default"] = error.clone();
        }
    }
    let bytes = json!({"type": "string", "format": "binary"});
    let (sent, taken) = ("/v1/policy/versions/{version}/snapshot", "/v1/policy/restore");
    document["paths"][sent]["get"]["responses"]["200"]["content"][BYTES]["schema"] = bytes.clone();
    document["paths"][taken]["post"]["requestBody"]["content"][BYTES]["schema"] = bytes;
    let schemas = &mut document["components"]["schemas"];
    // An answer may be of several of these.
    if let Some(ways) = schemas["ForgetAnswer"].as_object_mut().and_then(|answer| answer.remove("oneOf")) {
        schemas["ForgetAnswer"]["anyOf"] = ways;
    }
    // What stands in another object has that one's fields beside it.
    schemas["Sampling"].as_object_mut().map(|sampling| sampling.remove("additionalProperties"));
    let mut inlined = Map::new();
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.retain(|name, schema| {
            let number = name.starts_with(|first: char| first.is_ascii_lowercase());
            let inline = number || kinds::OF_ITEMS.contains(&name.as_str());
            if inline {
                inlined.insert(format!("#/components/schemas/{name}"), schema.take());
            }
            !inline
        });
    }
    settle_within(document, &inlined);
}

fn settle_within(value: &mut Value, inlined: &Map<String, Value>) {
    match value {
        Value::Object(map) => {
            let schema =
                map.get("$ref").and_then(Value::as_str).and_then(|to| inlined.get(to)).and_then(Value::as_object);
            if let Some(schema) = schema.cloned() {
                map.remove("$ref");
                map.extend(schema);
            }
            if let Some(field) = of_several_kinds(map) {
                *map = field;
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace("[`", "`").replace("`]", "`").replace("`None`", "null");
            }
            map.values_mut().for_each(|inner| settle_within(inner, inlined));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| settle_within(inner, inlined)),
        _ => {}
    }
}

/// A field of several kinds as one schema. It is told as two, the second of which only describes it.
fn of_several_kinds(field: &Map<String, Value>) -> Option<Map<String, Value>> {
    let [kinds, said] = field.get("allOf")?.as_array()?.as_slice() else { return None };
    if !kinds["oneOf"].is_array() || said.get("properties").is_some() {
        return None;
    }
    let texts = [said.get("description"), field.get("description")].into_iter().flatten().filter_map(Value::as_str);
    let text = texts.collect::<Vec<_>>().join(" ");
    Some(Map::from_iter([("description".into(), text.into()), ("oneOf".into(), kinds["oneOf"].clone())]))
}

/// The tag of what is for operators.
pub(super) const OPERATORS: &str = "operators";

/// Says whom each operation is for. What needs no key is for everyone, too.
fn tag(document: &mut Value) {
    let operators = |path: &str| {
        path.starts_with("/v1/policy/") || path.starts_with("/v1/trainer") || FOR_OPERATORS.contains(&path)
    };
    for (path, methods) in document["paths"].as_object_mut().into_iter().flatten() {
        let tag = if operators(path) { OPERATORS } else { "clients" };
        for (_, operation) in methods.as_object_mut().into_iter().flatten() {
            operation["tags"] = json!([tag]);
        }
    }
}

/// GET /docs: loads nothing from other hosts, and may not.
pub(super) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    (headers, Html(include_str!("docs.html")))
}

#[derive(OpenApi)]
#[openapi(
    info(title = "apad", description = "Serves a language model and keeps aligning it with the people who use it."),
    paths(
        generate::chat,
        generate::completion,
        anthropic::messages,
        anthropic::count_tokens,
        responses::respond,
        responses::response,
        responses::drop_response,
        control::embeddings,
        score::score,
        score::rerank,
        models::models,
        models::model,
        models::properties,
        models::apply_template,
        models::figures,
        live::events,
        control::tokenize,
        control::detokenize,
        control::generation,
        control::feedback,
        control::preference,
        control::reviews,
        control::review,
        control::forget,
        control::versions,
        control::version,
        control::verdicts,
        control::aside,
        control::adopt,
        control::activate,
        control::rollback,
        transfer::snapshot,
        transfer::restore,
        transfer::sample,
        control::trainer,
        control::step,
        control::roll_out,
        control::status,
        control::health,
        control::metrics,
    ),
    // What a verdict's `record` holds.
    components(schemas(VerdictRecord))
)]
struct Api;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::error::Error;
    use crate::request::known::*;
    use crate::request::*;

    type Read = fn(&[u8]) -> Option<Error>;

    /// Every body of the document, with the fields that its parser lists, and the parser, strict.
    fn bodies() -> Vec<(&'static str, Vec<&'static str>, Read)> {
        const STRICT: Unknown = Unknown::Refuse;
        let but = |left_out: &[&str]| REQUEST_FIELDS.iter().copied().filter(|f| !left_out.contains(f)).collect();
        vec![
            ("ChatRequest", but(TEXT_FIELDS), |b| parse_chat(b, STRICT).err()),
            ("CompletionRequest", but(CHAT_FIELDS), |b| parse_completion(b, STRICT).err()),
            ("MessagesRequest", ANTHROPIC_FIELDS.to_vec(), |b| parse_anthropic(b, STRICT).err()),
            ("ResponsesRequest", RESPONSES_FIELDS.to_vec(), |b| parse_responses(b, STRICT).err()),
            ("EmbeddingsRequest", EMBEDDINGS_FIELDS.to_vec(), |b| parse_embeddings(b).err()),
            ("SampleRequest", SAMPLE_FIELDS.to_vec(), |b| parse_sample(b).err()),
            ("ScoreRequest", SCORE_FIELDS.to_vec(), |b| parse_score(b).err()),
            ("RerankRequest", RERANK_FIELDS.to_vec(), |b| parse_rerank(b).err()),
            ("TokenizeRequest", TOKENIZE_FIELDS.to_vec(), |b| parse_tokenize(b).err()),
            ("DetokenizeRequest", DETOKENIZE_FIELDS.to_vec(), |b| parse_detokenize(b).err()),
            ("FeedbackRequest", FEEDBACK_FIELDS.to_vec(), |b| parse_feedback(b).err()),
            ("PreferenceRequest", PREFERENCE_FIELDS.to_vec(), |b| parse_preference(b).err()),
            ("ForgetRequest", FORGET_FIELDS.to_vec(), |b| parse_forget(b).err()),
            ("ActivateRequest", ACTIVATE_FIELDS.to_vec(), |b| parse_activate(b).err()),
            ("AdoptRequest", ADOPT_FIELDS.to_vec(), |b| parse_adopt(b).err()),
            ("ReviewRequest", REVIEW_FIELDS.to_vec(), |b| parse_review(b).err()),
        ]
    }

    /// A body with what has to be there, and one field more of the wrong kind.
    fn with(document: &Value, name: &str, field: &str) -> Value {
        let schema = &document["components"]["schemas"][name];
        let mut body = json!({});
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            body[required] = match required {
                "messages" => json!([{"role": "user", "content": "hi"}]),
                "tokens" => json!([1]),
                "version" => json!(1),
                "verdict" => json!("hold"),
                "chosen_id" => json!("gen-1"),
                _ => json!("x"),
            };
        }
        body[field] = json!([[]]);
        body
    }

    /// Whether the document says that a field may have this value, by its kinds.
    fn may_be(schema: &Value, value: &Value) -> bool {
        if let Some(ways) = schema["oneOf"].as_array() {
            return ways.iter().any(|way| may_be(way, value));
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        kinds.iter().any(|kind| match (*kind, value) {
            ("array", Value::Array(items)) => items.iter().all(|item| may_be(&schema["items"], item)),
            ("integer", number) => number.is_u64() || number.is_i64(),
            ("number", number) => number.is_number(),
            ("object", value) => value.is_object(),
            ("string", value) => value.is_string(),
            ("boolean", value) => value.is_boolean(),
            ("null", value) => value.is_null(),
            _ => false,
        })
    }

    #[test]
    fn the_document_says_of_each_kind_of_value_that_a_parser_takes_that_it_may_be() {
        let document: Value = serde_json::from_str(text()).unwrap();
        let parts = [json!("x"), json!(1), json!(0.5), json!(true), json!({}), json!({"type": "text", "text": "x"})];
        let lists = [vec![], vec![json!("x"), json!([1])], vec![json!([1]), json!("x")], vec![json!([1]), json!([])]];
        let alone = parts.iter().map(|part| json!([part])).chain(lists.map(Value::from));
        let values: Vec<Value> = parts.iter().cloned().chain(alone).chain([Value::Null]).collect();
        let (mut taken, mut unsaid) = (0, Vec::new());
        for (name, listed, parse) in bodies() {
            for (field, value) in listed.iter().flat_map(|field| values.iter().map(move |value| (*field, value))) {
                let mut body = with(&document, name, field);
                body[field] = value.clone();
                if parse(body.to_string().as_bytes()).is_some() {
                    continue;
                }
                taken += 1;
                if !may_be(&document["components"]["schemas"][name]["properties"][field], value) {
                    unsaid.push(format!("{name}.{field}: {value}"));
                }
            }
        }
        assert!(unsaid.is_empty() && taken > 200, "of {taken}: {}", unsaid.join("; "));
    }

    #[test]
    fn the_document_has_the_fields_of_each_parser_which_takes_them() {
        let document: Value = serde_json::from_str(text()).unwrap();
        let fields_of = |name: &str| -> BTreeSet<String> {
            let fields = document["components"]["schemas"][name]["properties"].as_object();
            fields.unwrap_or_else(|| panic!("no {name}")).keys().cloned().collect()
        };
        let mut compared: BTreeSet<&str> = BTreeSet::new();
        for (name, listed, parse) in bodies() {
            let listed: BTreeSet<String> = listed.into_iter().map(str::to_owned).collect();
            assert_eq!(fields_of(name), listed, "{name}");
            for field in listed {
                let error = parse(with(&document, name, &field).to_string().as_bytes());
                let said = error.as_ref().map_or("", |e| e.message());
                assert!(!said.starts_with("unknown field") && !said.contains("does not belong"), "{name}: {said}");
            }
            compared.insert(name);
        }
        assert_eq!(fields_of("ChatMessageBody"), MEMBERS.iter().map(|m| (*m).to_owned()).collect());
        // No operation takes a body that was not compared.
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                if body.is_null() {
                    continue;
                }
                let name = body["$ref"].as_str().and_then(|at| at.rsplit('/').next());
                assert!(name.is_some_and(|name| compared.contains(name)), "{method} {path}: {body}");
            }
        }
    }
}
