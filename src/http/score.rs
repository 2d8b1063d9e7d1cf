//! Scores of the reward model: of answers, and of documents put in order by them. Computes none.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::body::Body;
use super::error::ApiResult;
use super::schemas::*;
use super::{App, blocking};
use crate::request;

/// The reward model's score of each answer to a prompt; only differences between them are meaningful
#[utoipa::path(post, path = "/v1/score", request_body = ScoreRequest,
    responses((status = 200, body = Object), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn score(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Json<Value>> {
    blocking(move || {
        let answers = request::parse_score(&body)?.resolve(&app.engine)?;
        let scores = app.engine.score(&answers)?;
        let data = scores.iter().enumerate().map(|(i, score)| json!({"object": "score", "index": i, "score": score}));
        Ok(Json(json!({"object": "list", "data": data.collect::<Vec<_>>(), "model": app.model,
            "usage": usage(&answers)})))
    })
    .await
}

/// Documents in the order of the reward model's scores, each as an answer to the query
#[utoipa::path(post, path = "/v1/rerank", request_body = RerankRequest,
    responses((status = 200, body = Object), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn rerank(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Json<Value>> {
    blocking(move || {
        let asked = request::parse_rerank(&body)?;
        let texts = asked.texts.then(|| asked.score.completions.clone());
        let answers = asked.score.resolve(&app.engine)?;
        let mut scores: Vec<(usize, f32)> = app.engine.score(&answers)?.into_iter().enumerate().collect();
        // Of equal ones the first comes first.
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        let result = |&(i, score): &(usize, f32)| {
            let mut result = json!({"index": i, "relevance_score": score});
            if let Some(text) = texts.as_ref().and_then(|texts| texts.get(i)) {
                result["document"] = json!({"text": text});
            }
            result
        };
        let results: Vec<Value> = scores.iter().take(asked.top).map(result).collect();
        Ok(Json(json!({"object": "list", "results": results, "model": app.model, "usage": usage(&answers)})))
    })
    .await
}

fn usage(answers: &[request::PromptAndAnswer]) -> Value {
    let tokens: usize = answers.iter().map(|(prompt, answer)| prompt.len() + answer.len()).sum();
    json!({"prompt_tokens": tokens, "total_tokens": tokens})
}
