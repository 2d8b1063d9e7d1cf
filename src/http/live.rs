//! What happens, as server-sent events: everything that is learned, and the engine's state whenever it changed. Never
//! waits for a slow client, which misses the oldest events and is told how many.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, StreamExt};
use futures_util::task::AtomicWaker;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::App;
use super::error::ApiResult;
use super::schemas::*;
use crate::engine::{Engine, Feed, News, Topic};

/// How often the state is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What happens from now on, as server-sent events: `status` with the engine's state, at once and when it changed, and
/// what is learned (`step_done`, `version_published`, `version_refused` and others), each with its JSON
#[utoipa::path(get, path = "/v1/events",
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = 429, body = ErrorBody)))]
pub(super) async fn events(State(app): State<Arc<App>>) -> ApiResult<impl IntoResponse> {
    let live = Live::new(app.engine.clone(), app.engine.subscribe(Topic::Learning)?);
    let mut draining = app.draining.subscribe();
    // Else the end of the service would wait for whoever listens.
    let end = async move { drop(draining.wait_for(|draining| *draining).await) };
    let events = live.map(Ok::<_, Infallible>).take_until(Box::pin(end));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

struct Live {
    engine: Engine,
    feed: Arc<Feed>,
    waker: Arc<AtomicWaker>,
    clock: Interval,
    /// The state as it was told last.
    told: String,
}

impl Live {
    fn new(engine: Engine, feed: Arc<Feed>) -> Self {
        let waker = Arc::new(AtomicWaker::new());
        let hook = waker.clone();
        feed.set_wake(Arc::new(move || hook.wake()));
        let mut clock = interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { engine, feed, waker, clock, told: String::new() }
    }
}

impl Stream for Live {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        // Registered before looking, so that an event in between isn't missed.
        self.waker.register(context.waker());
        match self.feed.next(Some(Duration::ZERO)) {
            Ok(Some(news)) => return Poll::Ready(Some(event(&news))),
            Ok(None) => {}
            Err(_) => return Poll::Ready(None),
        }
        loop {
            ready!(self.clock.poll_tick(context));
            let state = serde_json::to_string(&self.engine.status()).unwrap_or_default();
            if state != self.told {
                self.told.clone_from(&state);
                return Poll::Ready(Some(Event::default().event("status").data(state)));
            }
        }
    }
}

fn event(news: &News) -> Event {
    let json = serde_json::to_value(news).unwrap_or_default();
    let kind = json["event"].as_str().unwrap_or("unknown").to_owned();
    Event::default().event(kind).data(json.to_string())
}
