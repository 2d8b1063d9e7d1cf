//! A reward service: sends answers over HTTP and receives scores, within a time limit. Never interprets an answer's
//! text.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::header::LOCATION;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::types::{Generation, PromptText};
use crate::web::{self, shown};

/// Largest number of answers in a request.
const TOGETHER: usize = 32;
/// Largest reply, in bytes per answer.
const REPLY_BYTES: usize = 1 << 12;
/// Attempts at a request whose failure may be temporary; the wait doubles each time.
const TRIES: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// How often a wait checks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Deserialize)]
struct Reply {
    scores: Vec<f64>,
}

/// Why an attempt failed.
enum Failure {
    /// Temporary: nobody listens, or the service is busy.
    Passing(Error),
    /// Permanent.
    Lasting(Error),
}

/// One score per answer, in order: `{"samples": [{"prompt", "response"}]}` is posted, `{"scores": [numbers]}` comes
/// back.
/// `timeout` is for all requests together.
///
/// # Errors
/// `Callback` if the service fails, takes too long, or answers anything but scores; `Closed` if `stop` is set
/// meanwhile.
pub fn scores(
    url: &str,
    answers: &[(&PromptText, &Generation)],
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async {
        let client = web::client_for(url).build().map_err(|e| Error::callback(format!("the reward service: {e}")))?;
        let mut scores = Vec::with_capacity(answers.len());
        for part in answers.chunks(TOGETHER) {
            let samples: Vec<Value> =
                part.iter().map(|(prompt, g)| json!({"prompt": prompt, "response": g.text})).collect();
            scores.extend(ask(&client, url, &json!({"samples": samples}), part.len()).await?);
        }
        Ok(scores)
    };
    runtime.block_on(async {
        tokio::select! {
            scores = asked => scores,
            error = ended(timeout, stop) => Err(error),
        }
    })
}

/// Returns when time is up or the run is stopped.
async fn ended(timeout: Duration, stop: &AtomicBool) -> Error {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if stop.load(Ordering::Relaxed) {
            return Error::closed("stopped while the reward service was asked");
        }
        tokio::time::sleep(LOOK).await;
    }
    let seconds = timeout.as_secs_f64();
    Error::callback(format!("the reward service did not answer in {seconds} seconds"))
}

async fn ask(client: &Client, url: &str, body: &Value, answers: usize) -> Result<Vec<f64>> {
    let mut wait = FIRST_WAIT;
    for tries in 1.. {
        match post(client, url, body, answers).await {
            Ok(scores) => return Ok(scores),
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(error)) if tries == TRIES => {
                return Err(error.context(format!("the reward service failed {TRIES} times")));
            }
            Err(Failure::Passing(error)) => tracing::warn!(%error, tries, "the reward service is asked again"),
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    Err(Error::callback("the reward service was never asked"))
}

async fn post(client: &Client, url: &str, body: &Value, answers: usize) -> Result<Vec<f64>, Failure> {
    let passing = |e: reqwest::Error| Failure::Passing(Error::callback(format!("{}", e.without_url())));
    let mut reply = client.post(url).json(body).send().await.map_err(passing)?;
    let most = REPLY_BYTES * answers;
    let Some(bytes) = web::body(&mut reply, most).await.map_err(passing)? else {
        return Err(Failure::Lasting(Error::callback(format!("the reward service's reply is over {most} bytes"))));
    };
    let status = reply.status();
    if status.is_redirection() {
        let to = reply.headers().get(LOCATION).map_or(Cow::Borrowed("nowhere"), |to| shown(to.as_bytes()).into());
        return Err(Failure::Lasting(Error::callback(format!(
            "the reward service said {status} and to ask {to:?}, which reward.url does not name: expected scores, or \
             that address as reward.url"
        ))));
    }
    if status.is_success() {
        return parse(&bytes, answers).map_err(Failure::Lasting);
    }
    let error = Error::callback(format!("the reward service said {status}: {}", shown(&bytes)));
    let passes = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    Err(if passes { Failure::Passing(error) } else { Failure::Lasting(error) })
}

fn parse(reply: &[u8], answers: usize) -> Result<Vec<f64>> {
    let Reply { scores } = serde_json::from_slice(reply).map_err(|_| {
        let shown = shown(reply);
        Error::callback(format!("the reward service answered {shown:?}, expected {{\"scores\": [numbers]}}"))
    })?;
    if scores.len() != answers {
        let found = scores.len();
        return Err(Error::callback(format!("the reward service gave {found} scores for {answers} answers")));
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_shown_and_a_wrong_count_said() {
        let error = |reply: &str, n| parse(reply.as_bytes(), n).unwrap_err().message().to_owned();
        assert!(error("<html>\n", 1).contains("answered \"<html> \", expected {\"scores\": [numbers]}"));
        assert!(error("{\"scores\": [1, null]}", 2).contains("expected"));
        assert!(error("{\"scores\": [1e999]}", 1).contains("expected"));
        assert!(error("{\"scores\": [1]}", 2).contains("gave 1 scores for 2 answers"));
        assert_eq!(parse(b"{\"scores\": [1, -0.5], \"model\": \"x\"}", 2).unwrap(), [1.0, -0.5]);
    }

    #[test]
    fn answers_go_to_no_address_that_a_redirection_names() {
        use std::io::{Read, Write};
        use std::net::TcpListener;

        let (service, elsewhere) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (url, other) = (service.local_addr().unwrap(), elsewhere.local_addr().unwrap());
        elsewhere.set_nonblocking(true).unwrap();
        let replies = std::thread::spawn(move || {
            for status in [301, 302, 307, 308] {
                let (mut connection, _) = service.accept().unwrap();
                let (mut asked, mut part) = (Vec::new(), [0; 4096]);
                while !asked.windows(7).any(|word| word == b"samples") {
                    let read = connection.read(&mut part).unwrap();
                    asked.extend_from_slice(&part[..read]);
                }
                let head = format!("HTTP/1.1 {status} X\r\nlocation: http://{other}/score\r\ncontent-length: 0\r\n");
                connection.write_all((head + "connection: close\r\n\r\n").as_bytes()).unwrap();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for status in [301, 302, 307, 308] {
            let url = format!("http://{url}/score");
            let asked = async { post(&web::client_for(&url).build().unwrap(), &url, &json!({"samples": []}), 1).await };
            let Err(Failure::Lasting(error)) = runtime.block_on(asked) else {
                panic!("{status} is followed or retried")
            };
            let said = error.message();
            assert!(said.contains(&status.to_string()) && said.contains(&other.to_string()), "{said}");
        }
        replies.join().unwrap();
        assert!(elsewhere.accept().is_err(), "the answers went elsewhere");
    }
}
