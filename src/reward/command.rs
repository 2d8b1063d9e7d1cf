//! A reward command: JSON lines in, JSON lines out, within a time. Never interprets what an answer says.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use serde::Deserialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::types::{Generation, PromptText};

/// Largest output, in bytes per answer.
const LINE_BYTES: usize = 1 << 16;
/// How many of the last bytes of stderr are kept.
const KEPT_COMPLAINT: usize = 4096;
/// How often a wait checks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Deserialize)]
struct Line {
    score: f64,
}

/// One score per answer from one run of the command, all finite. Errors call the command `who`.
///
/// # Errors
/// `Callback` if the command dies, takes too long, or answers anything but scores; `Closed` if `stop` is set meanwhile.
pub fn scores(
    command: &str,
    who: &str,
    answers: &[(&PromptText, &Generation)],
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<Vec<f64>> {
    let mut input = String::new();
    for (prompt, answer) in answers {
        input += &json!({"prompt": prompt, "response": answer.text}).to_string();
        input.push('\n');
    }
    let limit = Limit { who, deadline: Instant::now() + timeout, timeout, stop };
    let output = run(command, input.into_bytes(), answers.len() * LINE_BYTES, &limit)?;
    parse(&output, who, answers.len())
}

/// How long a command may run, and what errors call it.
struct Limit<'a> {
    who: &'a str,
    deadline: Instant,
    timeout: Duration,
    stop: &'a AtomicBool,
}

fn parse(output: &[u8], who: &str, expected: usize) -> Result<Vec<f64>> {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut scores = Vec::with_capacity(expected);
    for (index, line) in lines.iter().take(expected).enumerate() {
        match serde_json::from_str(line) {
            Ok(Line { score }) => scores.push(score),
            Err(_) => {
                let shown: String = line.chars().take(60).collect();
                let number = index + 1;
                return Err(Error::callback(format!(
                    "line {number} of {who} is {shown:?}, expected {{\"score\": number}}"
                )));
            }
        }
    }
    if lines.len() != expected {
        let found = lines.len();
        return Err(Error::callback(format!("{who} gave {found} lines, expected one an answer, {expected}")));
    }
    Ok(scores)
}

/// What the command writes to its output, once it has ended well.
fn run(command: &str, input: Vec<u8>, most: usize, limit: &Limit) -> Result<Vec<u8>> {
    let who = limit.who;
    let failed = |e: std::io::Error| Error::callback(format!("{who} can't be started: {e}"));
    // A group of its own: what it starts must end with it, and Ctrl-C is ours to handle.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).process_group(0);
    let child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let mut child = Group(child);
    let (stdin, stdout, stderr) = (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take());
    thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            // A command that doesn't read all of it may still answer.
            let _ = stdin.write_all(&input);
        }
    });
    let output = reader(stdout, move |from| {
        let mut bytes = Vec::new();
        from.take(most as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let complaint = reader(stderr, last_bytes);

    let bytes = wait(&output, limit)?;
    let status = child.end(limit)?;
    if !status.success() {
        let complaint = complaint.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
        let complaint = String::from_utf8_lossy(&complaint);
        let last = complaint.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
        return Err(Error::callback(format!("{who} ended with {status}: {last}")));
    }
    Ok(bytes)
}

/// Reads on a thread, so that the wait for it has an end.
fn reader<R: Read + Send + 'static>(
    from: Option<R>,
    read: impl FnOnce(R) -> std::io::Result<Vec<u8>> + Send + 'static,
) -> Receiver<Vec<u8>> {
    let (sender, receiver) = bounded(1);
    thread::spawn(move || {
        let bytes = from.map(read).and_then(|read| read.ok()).unwrap_or_default();
        let _ = sender.send(bytes);
    });
    receiver
}

fn last_bytes(mut from: impl Read) -> std::io::Result<Vec<u8>> {
    let (mut kept, mut buffer) = (Vec::new(), [0; KEPT_COMPLAINT]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(kept),
            n => kept.extend_from_slice(&buffer[..n]),
        }
        kept.drain(..kept.len().saturating_sub(KEPT_COMPLAINT));
    }
}

fn wait(output: &Receiver<Vec<u8>>, limit: &Limit) -> Result<Vec<u8>> {
    loop {
        match output.recv_timeout(LOOK) {
            Ok(bytes) => return Ok(bytes),
            Err(RecvTimeoutError::Timeout) => limit.check()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(Vec::new()),
        }
    }
}

impl Limit<'_> {
    fn check(&self) -> Result<()> {
        let who = self.who;
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::closed(format!("stopped while {who} was running")));
        }
        if Instant::now() >= self.deadline {
            let seconds = self.timeout.as_secs_f64();
            return Err(Error::callback(format!("{who} did not answer in {seconds} seconds")));
        }
        Ok(())
    }
}

/// A child and what it started; all of it ends when this is dropped.
struct Group(Child);

impl Group {
    /// Its exit status, once it has closed its output.
    fn end(&mut self, limit: &Limit) -> Result<ExitStatus> {
        loop {
            let ended = self.0.try_wait().map_err(|e| Error::callback(format!("{}: {e}", limit.who)))?;
            if let Some(status) = ended {
                return Ok(status);
            }
            limit.check()?;
            thread::sleep(LOOK / 10);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        // The shell's own kill: the standard library reaches the child alone, not what the child started.
        let kill = format!("kill -KILL -{}", self.0.id());
        let _ = Command::new("sh").arg("-c").arg(kill).stderr(Stdio::null()).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: &str = "the reward command";

    fn ask(command: &str, seconds: f64) -> Result<Vec<u8>> {
        let (timeout, stop) = (Duration::from_secs_f64(seconds), AtomicBool::new(false));
        let limit = Limit { who: WHO, deadline: Instant::now() + timeout, timeout, stop: &stop };
        run(command, b"in\n".to_vec(), 100, &limit)
    }

    fn message(command: &str, seconds: f64) -> String {
        ask(command, seconds).unwrap_err().message().to_owned()
    }

    #[test]
    fn a_command_answers_dies_and_hangs_in_time() {
        assert_eq!(ask("cat", 10.0).unwrap(), b"in\n");
        assert_eq!(ask("exec 0<&-; echo late", 10.0).unwrap(), b"late\n");
        let dead = message("echo first >&2; echo why >&2; exit 3", 10.0);
        assert_eq!(dead, "the reward command ended with exit status: 3: why");
        let began = Instant::now();
        // Its child holds the output open, and must end too.
        assert_eq!(message("sleep 60 | cat", 0.2), "the reward command did not answer in 0.2 seconds");
        assert_eq!(message("exec >&-; sleep 60", 0.2), "the reward command did not answer in 0.2 seconds");
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn endless_output_ends() {
        assert!(message("yes", 10.0).contains("ended with"));
    }

    #[test]
    fn garbage_is_shown_and_a_wrong_count_said() {
        let error = |output: &str, n| parse(output.as_bytes(), WHO, n).unwrap_err().message().to_owned();
        assert_eq!(
            error("{\"score\": 1}\nwell\n", 2),
            "line 2 of the reward command is \"well\", expected {\"score\": number}"
        );
        assert!(error("{\"score\": null}\n", 1).contains("expected"));
        assert!(error("{\"score\": 1e999}\n", 1).contains("expected"));
        assert!(error("{\"score\": 1}\n", 2).contains("gave 1 lines, expected one an answer, 2"));
        assert!(error("{\"score\": 1}\n{\"score\": 1}\n", 1).contains("gave 2 lines"));
        assert_eq!(parse(b"{\"score\": 1, \"why\": 2}\n\n{\"score\": -0.5}", WHO, 2).unwrap(), [1.0, -0.5]);
    }
}
