//! Versions as files, out and in, and answers that were made elsewhere. Never takes a path from a client.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::body::{Body as Content, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};

use super::answers::*;
use super::body::Body;
use super::control::{PathText, text};
use super::error::{ApiError, ApiResult};
use super::schemas::*;
use super::{App, blocking};
use crate::engine::SampleReceipt;
use crate::error::Error;
use crate::request;
use crate::types::PolicyVersion;

/// Folder in the data folder for files on their way; emptied at every start.
const FOLDER: &str = "transfer";
/// Most bytes of a file that is taken in.
const MOST: u64 = 4 << 30;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// Takes away what a service that broke off left on its way.
pub(super) fn tidy(data: &Path) {
    let folder = data.join(FOLDER);
    if folder.exists()
        && let Err(error) = std::fs::remove_dir_all(&folder)
    {
        tracing::warn!(%error, folder = %folder.display(), "what an earlier transfer left can't be removed");
    }
}

/// A file on its way, removed with it.
struct Passing(PathBuf);

impl Passing {
    fn new(data: &Path) -> Result<Self, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let folder = data.join(FOLDER);
        crate::system::make_private_folder(&folder)?;
        Ok(Self(folder.join(format!("{}.tar", COUNT.fetch_add(1, Ordering::Relaxed)))))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // It may not be there yet.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A version's files as one file, which another data folder with the same base model can restore
#[utoipa::path(get, path = "/v1/policy/versions/{version}/snapshot", params(("version" = u64, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn snapshot(State(app): State<Arc<App>>, path: PathText) -> ApiResult<Response> {
    let given = text(path)?;
    let number = given.parse().map_err(|_| Error::arg(format!("the version is {given:?}, expected a whole number")))?;
    let (passing, file, length) = blocking(move || {
        let passing = Passing::new(&app.engine.config().data)?;
        app.engine.snapshot(PolicyVersion(number), &passing.0)?;
        let file = File::open(&passing.0).map_err(Error::from)?;
        let length = file.metadata().map_err(Error::from)?.len();
        Ok((passing, file, length))
    })
    .await?;
    let chunks = stream::unfold(Some((passing, file)), |open| async {
        let (passing, mut file) = open?;
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK];
            let read = file.read(&mut chunk)?;
            chunk.truncate(read);
            Ok::<_, std::io::Error>((chunk, file))
        });
        match read.await {
            Ok(Ok((chunk, _))) if chunk.is_empty() => None,
            Ok(Ok((chunk, file))) => Some((Ok(Bytes::from(chunk)), Some((passing, file)))),
            Ok(Err(error)) => Some((Err(error), None)),
            Err(error) => Some((Err(std::io::Error::other(error)), None)),
        }
    });
    let name = format!("attachment; filename=\"version-{number}.tar\"");
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, name),
    ];
    Ok((headers, Content::from_stream(chunks)).into_response())
}

/// Make a new version of a snapshot's file, the body, and serve it
#[utoipa::path(post, path = "/v1/policy/restore",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Serving), (status = 400, body = ErrorBody), (status = 413, body = ErrorBody)))]
pub(super) async fn restore(State(app): State<Arc<App>>, request: Request) -> ApiResult<Json<Serving>> {
    let data = app.engine.config().data.clone();
    let (passing, mut file) = blocking(move || {
        let passing = Passing::new(&data)?;
        let file = File::create(&passing.0).map_err(Error::from)?;
        Ok((passing, file))
    })
    .await?;
    let mut chunks = request.into_body().into_data_stream();
    let mut taken = 0;
    loop {
        let next = tokio::time::timeout(app.patience, chunks.next()).await.map_err(|_| {
            let message = format!("nothing of the body arrived for {} seconds", app.patience.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })?;
        let Some(chunk) = next else { break };
        let chunk = chunk.map_err(|e| {
            ApiError::new(StatusCode::BAD_REQUEST, "body_incomplete", format!("the request body broke off: {e}"))
        })?;
        taken += chunk.len() as u64;
        if taken > MOST {
            let message = format!("the snapshot is larger than {MOST} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
        }
        file = blocking(move || {
            file.write_all(&chunk).map_err(Error::from)?;
            Ok(file)
        })
        .await?;
    }
    if taken == 0 {
        return Err(Error::arg("the body is empty, expected the file of a snapshot").into());
    }
    blocking(move || {
        let restored = app.engine.restore(&passing.0);
        // The path is nobody's but this service's.
        let version = restored.map_err(|e| match e.code() {
            crate::Code::Io | crate::Code::Model => Error::arg(shown(e.message(), &passing.0)),
            _ => e,
        })?;
        Ok(Json(Serving { policy_version: version }))
    })
    .await
}

fn shown(message: &str, path: &Path) -> String {
    message.replace(&*path.to_string_lossy(), "the snapshot")
}

/// Record an answer that was made elsewhere, with its reward if it has one; it is trained on like any other
#[utoipa::path(post, path = "/v1/samples", request_body = SampleRequest,
    responses((status = 200, body = SampleReceipt), (status = 400, body = ErrorBody)))]
pub(super) async fn sample(State(app): State<Arc<App>>, Body(body): Body) -> ApiResult<Json<SampleReceipt>> {
    blocking(move || {
        let sample = request::parse_sample(&body)?.resolve(&app.engine)?;
        Ok(Json(app.engine.add_sample(sample)?))
    })
    .await
}
