//! Passes the log to a function of the application. Never prints.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Level, Metadata};

use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::hook::{Slot, UserData};
use crate::error::Error;

/// Called with each line of the log: its level (1 error, 2 warning, 3 information, 4 debugging, 5 tracing) and a JSON
/// object of `level`, `target`, `message` and the line's own fields; not NUL-terminated, valid until it returns. Called
/// on any thread, one call at a time. It must not call this library except for the frees.
pub type apa_log_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, json: *const c_char, json_len: usize)>;

type Log = unsafe extern "C" fn(*mut c_void, i32, *const c_char, usize);

static SLOT: Slot<Log> = Slot::new();
/// The least important level that the hook wants; 0 is none.
static LEVEL: AtomicI32 = AtomicI32::new(0);

/// Registers `log`, which is called with `user_data` for each line of the log up to `level` (1 to 5). There is one hook
/// per process, and this replaces it; NULL removes it. When this returns, the earlier one is not running and never will
/// be. Without a hook nothing is logged.
///
/// Errors: `APA_ERR_ARG` for another level; `APA_ERR_BUSY` if a Rust program around this library logs already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_log_set(
    level: i32,
    log: apa_log_fn,
    user_data: *mut c_void,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            if log.is_some() && !(1..=5).contains(&level) {
                return Err(Error::arg(format!("the log level is {level}, expected 1 to 5")));
            }
            static INSTALLED: OnceLock<bool> = OnceLock::new();
            if log.is_some() && !INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(ToHook).is_ok()) {
                return Err(Error::busy("the process has a log subscriber already"));
            }
            LEVEL.store(if log.is_some() { level } else { 0 }, Ordering::Relaxed);
            SLOT.set(log.map(|log| (log, UserData(user_data))));
            tracing::callsite::rebuild_interest_cache();
            Ok(apa_status::APA_OK)
        })
    }
}

fn number(level: &Level) -> i32 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Turns events into lines. Spans are not shown.
struct ToHook;

impl Subscriber for ToHook {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            5 => LevelFilter::TRACE,
            _ => LevelFilter::OFF,
        })
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn event(&self, event: &Event<'_>) {
        let level = number(event.metadata().level());
        let mut line = Line(Map::new());
        line.0.insert("level".into(), event.metadata().level().as_str().to_ascii_lowercase().into());
        line.0.insert("target".into(), event.metadata().target().into());
        event.record(&mut line);
        let json = Value::Object(line.0).to_string();
        // SAFETY: the application's function, called as the header says.
        SLOT.run(|log, user_data| unsafe { log(user_data, level, json.as_ptr().cast(), json.len()) });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(Map<String, Value>);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
}
