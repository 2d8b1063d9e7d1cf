//! Scores of the reward model: of answers, and of documents put in order by them. Computes none.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::answers::*;
use super::body::Body;
use super::error::ApiResult;
use super::schemas::*;
use super::{App, blocking};
use crate::request;

/// The reward model's score of each answer to a prompt; only differences between them are meaningful
#[utoipa::path(post, path = "/v1/score", request_body = ScoreRequest,
    responses((status = 200, body = Scores), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn score(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Json<Scores>> {
    blocking(move || {
        let answers = request::parse_score(&body)?.resolve(&app.engine)?;
        let scores = app.engine.score(&answers)?.into_iter().enumerate();
        let data = scores.map(|(index, score)| Scored { object: "score", index, score }).collect();
        Ok(Json(Scores { object: "list", data, model: app.model.clone(), usage: usage(&answers) }))
    })
    .await
}

/// Documents in the order of the reward model's scores, each as an answer to the query
#[utoipa::path(post, path = "/v1/rerank", request_body = RerankRequest,
    responses((status = 200, body = Ranking), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn rerank(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Json<Ranking>> {
    blocking(move || {
        let asked = request::parse_rerank(&body)?;
        let texts = asked.texts.then(|| asked.score.completions.clone());
        let answers = asked.score.resolve(&app.engine)?;
        let mut scores: Vec<(usize, f32)> = app.engine.score(&answers)?.into_iter().enumerate().collect();
        // Of equal ones the first comes first.
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        let result = |(index, relevance_score): (usize, f32)| {
            let text = texts.as_ref().and_then(|texts| texts.get(index)).cloned();
            Ranked { index, relevance_score, document: text.map(|text| Document { text }) }
        };
        let results = scores.into_iter().take(asked.top).map(result).collect();
        Ok(Json(Ranking { object: "list", results, model: app.model.clone(), usage: usage(&answers) }))
    })
    .await
}

fn usage(answers: &[request::PromptAndAnswer]) -> InputUsage {
    let tokens: usize = answers.iter().map(|(prompt, answer)| prompt.len() + answer.len()).sum();
    InputUsage { prompt_tokens: tokens, total_tokens: tokens }
}
