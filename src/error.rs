//! The library's one error: a stable code and one clear sentence. Never a backtrace, never a prompt.

use std::fmt;

/// Classes of failure, stable across releases. The numbers are the C API's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// The caller's input is wrong: an argument, an option, a request, an unknown id.
    Arg = -1,
    /// The handle or engine is closed or closing.
    Closed = -2,
    /// A bounded resource is taken: the queue is full, the data folder is locked.
    Busy = -3,
    /// The model file is missing, damaged, of another kind, or llama.cpp refused it.
    Model = -4,
    /// Training failed; serving is untouched.
    Train = -5,
    /// A file, the disk or the ledger failed.
    Io = -6,
    /// A function of the application failed.
    Callback = -7,
    /// This build, model or architecture can't do that.
    Unsupported = -8,
    /// Memory ran out.
    NoMem = -9,
    /// A bug of ours, caught at the boundary.
    Panic = -10,
}

impl Code {
    /// The word used in JSON errors and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Arg => "invalid_argument",
            Code::Closed => "closed",
            Code::Busy => "busy",
            Code::Model => "model_error",
            Code::Train => "train_error",
            Code::Io => "io_error",
            Code::Callback => "callback_error",
            Code::Unsupported => "unsupported",
            Code::NoMem => "out_of_memory",
            Code::Panic => "internal_error",
        }
    }
}

/// What went wrong and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Code,
    message: String,
    kind: Kind,
}

/// Distinguishes failures of one class where callers need to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    UnknownId,
    ContextLength,
    TimeLimit,
}

/// The result of every fallible call of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        impl Error {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self {
                Self { code: Code::$code, message: message.into(), kind: Kind::Plain }
            })*
        }
    };
}

constructors! {
    /// The caller's input is wrong.
    arg => Arg;
    /// The engine is closed.
    closed => Closed;
    /// A bounded resource is taken.
    busy => Busy;
    /// The model can't be used.
    model => Model;
    /// Training failed.
    train => Train;
    /// A file, the disk or the ledger failed.
    io => Io;
    /// A function of the application failed.
    callback => Callback;
    /// Can't be done by this build or with this model.
    unsupported => Unsupported;
    /// Memory ran out.
    nomem => NoMem;
    /// A bug of ours, caught.
    panic => Panic;
}

impl Error {
    /// No record has the given id. The code is `Arg`, as for all unusable input; [`Error::is_unknown_id`] distinguishes
    /// it.
    pub fn unknown_id(message: impl Into<String>) -> Self {
        Self { kind: Kind::UnknownId, ..Self::arg(message) }
    }

    /// Whether the error is an unknown id.
    pub fn is_unknown_id(&self) -> bool {
        self.kind == Kind::UnknownId
    }

    /// The prompt does not fit the context. The code is `Arg`; [`Error::is_context_length`] distinguishes it.
    pub fn context_length(message: impl Into<String>) -> Self {
        Self { kind: Kind::ContextLength, ..Self::arg(message) }
    }

    /// Whether the prompt does not fit the context.
    pub fn is_context_length(&self) -> bool {
        self.kind == Kind::ContextLength
    }

    /// The request ran into its time limit. The code is `Busy`; [`Error::is_time_limit`] distinguishes it.
    pub fn time_limit(message: impl Into<String>) -> Self {
        Self { kind: Kind::TimeLimit, ..Self::busy(message) }
    }

    /// Whether the request ran into its time limit. Retrying soon does not help.
    pub fn is_time_limit(&self) -> bool {
        self.kind == Kind::TimeLimit
    }

    /// The class of the failure.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What went wrong, in one sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prefixes the message with what was being done: `opening base.gguf: file is truncated`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        match e {
            // With RUST_BACKTRACE, candle's sentences end with one.
            candle_core::Error::WithBacktrace { inner, .. } => (*inner).into(),
            e => match e.to_string() {
                text if text.contains("CUDA_ERROR_OUT_OF_MEMORY") => Error::nomem("the CUDA device has no memory left"),
                text => Error::train(text),
            },
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            std::io::ErrorKind::OutOfMemory => Error::nomem(e.to_string()),
            std::io::ErrorKind::StorageFull => Error::io("the disk is full"),
            _ => Error::io(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::backtrace::Backtrace;

    #[test]
    fn what_candle_says_is_told_without_a_backtrace() {
        let traced = |text: &str| candle_core::Error::WithBacktrace {
            inner: Box::new(candle_core::Error::Msg(text.to_owned())),
            backtrace: Box::new(Backtrace::force_capture()),
        };
        assert_eq!(Error::from(traced("no such thing")).message(), "no such thing");
        assert_eq!(Error::from(traced("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"..\")")).code(), Code::NoMem);
    }
}
