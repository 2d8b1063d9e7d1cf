//! What happens to the model while one talks: that it is being trained, that another version serves. Prints nothing.

use std::time::Duration;

use apa::engine::{Status, TrainerState};
use serde_json::Value;
use tokio::sync::mpsc::{self, Receiver};

use crate::client::Client;

/// Lines that wait to be shown; more are left out.
const MOST: usize = 16;
/// Pause before the stream is opened again.
const PAUSE: Duration = Duration::from_secs(3);

/// Follows the daemon's events for as long as the receiver is there; each is a line for a person.
pub fn follow(client: Client) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel(MOST);
    tokio::spawn(async move {
        let mut before = None;
        while !sender.is_closed() {
            let hear = |kind: &str, news: Value| {
                if let Some(line) = in_words(kind, news, &mut before) {
                    // Nobody has to read them all.
                    let _ = sender.try_send(line);
                }
            };
            // The daemon may have ended; the next question will say so.
            let _ = client.events(hear).await;
            tokio::time::sleep(PAUSE).await;
        }
    });
    receiver
}

/// An event in words, if it is one to tell. `before` is what the trainer did last.
fn in_words(kind: &str, news: Value, before: &mut Option<TrainerState>) -> Option<String> {
    let version = |key: &str| news[key].as_u64().map_or_else(|| "?".to_owned(), |version| version.to_string());
    let reason = || news["reason"].as_str().unwrap_or("it gives no reason").to_owned();
    match kind {
        "status" => {
            let trainer = serde_json::from_value::<Status>(news).ok()?.trainer;
            let known = before.replace(trainer.state);
            let began = trainer.state == TrainerState::Training && known.is_some_and(|known| known != trainer.state);
            began.then(|| "training began: a step on the ratings that are in".to_owned())
        }
        "version_published" => Some(format!("version {} serves now", version("version"))),
        "version_activated" => Some(format!("version {} serves again", version("version"))),
        "version_refused" => Some(format!("the candidate was refused: {}", reason())),
        "version_rolled_back" => {
            Some(format!("version {} was taken back, {} serves: {}", version("version"), version("parent"), reason()))
        }
        "trial_started" => Some(format!("version {} is tried by some of the users", version("version"))),
        "step_dropped" => Some(format!("a batch of ratings taught nothing: {}", reason())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn training_is_told_once_when_it_begins_and_versions_when_they_serve() {
        let status = |state: TrainerState| {
            let mut status = Status::default();
            status.trainer.state = state;
            serde_json::to_value(status).unwrap()
        };
        let mut before = None;
        let mut hear = |kind: &str, news: Value| in_words(kind, news, &mut before);
        // A step that ran already when the talk began is no news.
        assert_eq!(hear("status", status(TrainerState::Training)), None);
        assert_eq!(hear("status", status(TrainerState::Idle)), None);
        assert!(hear("status", status(TrainerState::Training)).unwrap().starts_with("training began"));
        assert_eq!(hear("status", status(TrainerState::Training)), None);
        let published = json!({"event": "version_published", "version": 3, "parent": 2});
        assert_eq!(hear("version_published", published).unwrap(), "version 3 serves now");
        assert_eq!(hear("error", json!({})), None);
    }
}
