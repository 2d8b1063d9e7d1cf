//! What is recorded while the database is away that servers share: answers and feedback wait in a file of the data
//! folder, synced before anyone is told, and are recorded in their order once it answers. Bounded. Never used beside a
//! ledger in a file.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use super::db::Db;
use super::limits::Rules;
use super::writer::Writer;
use super::{rows, said, write};
use crate::error::{Code, Error, Result};
use crate::files::private_file;
use crate::lock::lock;
use crate::types::*;

const FILE: &str = "spool.jsonl";
/// Most bytes that wait.
pub(super) const MOST: u64 = 64 << 20;
/// Most entries that are recorded at a time.
const GROUP: usize = 256;
/// The time between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// Answers whose versions are known without the database: the newest.
const KNOWN: usize = 1 << 14;

/// What waits in the file, one to a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Entry {
    /// An answer, and the one whose words its prompt repeats.
    Answer(Box<Generation>, Option<GenerationId>),
    /// Feedback, and the identity by which it is known again.
    Feedback(Box<NewFeedback>, String),
}

impl Entry {
    /// Records it, unless it is on record: what failed before may have been written all the same.
    fn record(&self, db: &Db, rules: &Rules) -> Result<()> {
        match self {
            Entry::Answer(generation, _) if rows::answer(db, &generation.id)?.is_some() => Ok(()),
            Entry::Answer(generation, None) => write::record(db, generation),
            // The other may have been forgotten meanwhile.
            Entry::Answer(generation, Some(origin)) => write::record_from(db, generation, origin).map(drop),
            Entry::Feedback(_, identity) if rows::feedback_by_identity(db, identity)?.is_some() => Ok(()),
            Entry::Feedback(feedback, identity) => said::insert_feedback(db, feedback, rules, identity).map(drop),
        }
    }
}

/// What waits for the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spooled {
    /// Answers and pieces of feedback.
    pub entries: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What is called when more waits, and with nothing once nothing does.
type Hook = Box<dyn Fn(Spooled) + Send>;

/// The file, and what this process knows without the database.
pub(super) struct Spool {
    path: PathBuf,
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
}

struct State {
    file: File,
    waiting: Spooled,
    /// Bytes at the file's beginning whose entries are on record.
    done: u64,
    versions: HashMap<GenerationId, PolicyVersion>,
    /// Their ids, the oldest first.
    order: VecDeque<GenerationId>,
}

impl State {
    fn note(&mut self, id: &GenerationId, version: PolicyVersion) {
        if self.versions.insert(id.clone(), version).is_some() {
            return;
        }
        if self.order.len() == KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.versions.remove(&oldest);
        }
        self.order.push_back(id.clone());
    }
}

impl Spool {
    /// Opens the file of a data folder; it is made if missing.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let open = || -> Result<State> {
            let file = private_file().open(&path)?;
            let waiting = Spooled { entries: 0, bytes: 0 };
            let mut state = State { file, waiting, done: 0, versions: HashMap::new(), order: VecDeque::new() };
            for (entry, bytes) in entries(&path, 0, usize::MAX)? {
                if let Entry::Answer(generation, _) = entry {
                    state.note(&generation.id, generation.policy_version);
                }
                state.waiting.entries += 1;
                state.waiting.bytes += bytes;
            }
            // What a crash left half written was told to nobody.
            state.file.set_len(state.waiting.bytes)?;
            Ok(state)
        };
        let state = open().map_err(|e| e.context(path.display()))?;
        Ok(Self { path, state: Mutex::new(state), hook: Mutex::default() })
    }

    pub(super) fn set_hook(&self, hook: impl Fn(Spooled) + Send + 'static) {
        hook(self.waiting());
        *lock(&self.hook) = Some(Box::new(hook));
    }

    pub(super) fn waiting(&self) -> Spooled {
        lock(&self.state).waiting
    }

    /// Whether something waits, which what comes later must not overtake.
    pub(super) fn holds(&self) -> bool {
        self.waiting().entries > 0
    }

    /// Notes which version made an answer that is on record.
    pub(super) fn note(&self, id: &GenerationId, version: PolicyVersion) {
        lock(&self.state).note(id, version);
    }

    /// The version that made an answer, as far as this process knows.
    pub(super) fn version_of(&self, id: &GenerationId) -> Option<PolicyVersion> {
        lock(&self.state).versions.get(id).copied()
    }

    /// Has an entry wait; it is on disk when this returns.
    pub(super) fn keep(&self, entry: &Entry) -> Result<()> {
        let json = serde_json::to_string(entry).map_err(|e| Error::io(format!("{FILE}: {e}")))?;
        let line = json + "\n";
        let mut state = lock(&self.state);
        let (from, bytes) = (state.waiting.bytes, line.len() as u64);
        if from + bytes > MOST {
            return Err(Error::busy(format!("{} is full, as the database is away for long", self.path.display())));
        }
        let mut written = || -> std::io::Result<()> {
            state.file.seek(SeekFrom::Start(from))?;
            state.file.write_all(line.as_bytes())?;
            state.file.sync_data()
        };
        if let Err(error) = written() {
            state.file.set_len(from)?;
            return Err(Error::from(error).context(self.path.display()));
        }
        if let Entry::Answer(generation, _) = entry {
            state.note(&generation.id, generation.policy_version);
        }
        state.waiting.entries += 1;
        state.waiting.bytes += bytes;
        let waiting = state.waiting;
        drop(state);
        self.tell(waiting);
        Ok(())
    }

    fn tell(&self, waiting: Spooled) {
        if let Some(hook) = &*lock(&self.hook) {
            hook(waiting);
        }
    }

    /// Records what waits, as far as the database takes it.
    fn drain(&self, writer: &Writer, rules: &Arc<Rules>) -> Result<()> {
        while self.holds() {
            let from = lock(&self.state).done;
            let batch = entries(&self.path, from, GROUP)?;
            let (sender, told) = bounded(batch.len());
            for (entry, _) in &batch {
                let (entry, rules, sender) = (entry.clone(), rules.clone(), sender.clone());
                let done = move |written: Result<()>| drop(sender.send(written));
                writer.submit(move |db| entry.record(db, &rules), done)?;
            }
            drop(sender);
            for (entry, bytes) in batch {
                let written = told.recv().map_err(|_| Error::panic("the ledger's thread gave no answer"))?;
                match written {
                    Ok(()) => {}
                    Err(error) if matches!(error.code(), Code::Io | Code::Busy | Code::NoMem | Code::Closed) => {
                        return Err(error);
                    }
                    Err(error) => tracing::error!(%error, kind = entry.kind(), "what waited can't be recorded"),
                }
                self.settle(bytes)?;
            }
        }
        Ok(())
    }

    /// Takes note that the first entry is on record. After the last one nothing of them stays on disk.
    fn settle(&self, bytes: u64) -> Result<()> {
        let mut state = lock(&self.state);
        state.done += bytes;
        state.waiting.entries -= 1;
        if state.done < state.waiting.bytes {
            return Ok(());
        }
        state.file.seek(SeekFrom::Start(0))?;
        let zeros = std::io::copy(&mut std::io::Read::take(std::io::repeat(0), state.done), &mut state.file);
        zeros.and_then(|_| state.file.sync_data()).and_then(|()| state.file.set_len(0))?;
        (state.done, state.waiting) = (0, Spooled { entries: 0, bytes: 0 });
        let waiting = state.waiting;
        drop(state);
        self.tell(waiting);
        Ok(())
    }
}

impl Entry {
    fn kind(&self) -> &'static str {
        match self {
            Entry::Answer(..) => "answer",
            Entry::Feedback(..) => "feedback",
        }
    }
}

/// At most `most` entries from an offset on, each with its bytes.
fn entries(path: &Path, from: u64, most: usize) -> Result<Vec<(Entry, u64)>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut lines = BufReader::new(std::io::Read::take(file, MOST));
    let (mut found, mut line) = (Vec::new(), String::new());
    while found.len() < most {
        line.clear();
        let bytes = lines.read_line(&mut line)? as u64;
        if !line.ends_with('\n') {
            break;
        }
        let entry =
            serde_json::from_str(&line).map_err(|e| Error::io(format!("{} is damaged: {e}", path.display())))?;
        found.push((entry, bytes));
    }
    Ok(found)
}

/// The thread that records what waits; ends when it is dropped.
pub(super) struct Drainer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drainer {
    pub(super) fn start(spool: Arc<Spool>, writer: Arc<Writer>, rules: Arc<Rules>) -> Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = std::thread::Builder::new().name("apa-spool".into()).spawn(move || {
            loop {
                if let Err(error) = spool.drain(&writer, &rules) {
                    tracing::debug!(%error, "what waits for the database waits on");
                }
                if stopped.recv_timeout(AGAIN) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A callback that drops the last handle runs on that thread's behalf.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            drop(thread.join());
        }
    }
}
