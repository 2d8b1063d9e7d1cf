//! A Postgres of Debian's package for tests: one for each process of tests, on a free port, gone with the process.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(super) const ROLE: &str = "apa";
pub(super) const PASSWORD: &str = "s3cret/of?apa";
/// The same in a URL.
const WRITTEN: &str = "s3cret%2Fof%3Fapa";

/// A server.
pub(super) struct Server {
    programs: PathBuf,
    folder: PathBuf,
    pub(super) port: u16,
    tls: bool,
    databases: AtomicU32,
    /// Stops the server when this process ends, however it does: its input ends then.
    guard: Child,
}

/// That of all tests of a process which don't stop it.
pub(super) fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    SHARED.get_or_init(Server::start).as_ref()
}

/// Debian's programs, the newest.
fn programs() -> Option<PathBuf> {
    let found = fs::read_dir("/usr/lib/postgresql").ok()?;
    let of = |version: fs::DirEntry| version.path().join("bin");
    found.flatten().map(of).filter(|programs| programs.join("initdb").exists()).max()
}

/// A program of Postgres's, which root must not run.
fn program(path: &Path) -> Command {
    if !rustix::process::getuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(path).current_dir("/");
    command
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An authority, and a certificate of its for 127.0.0.1, in a folder.
fn certify(folder: &Path) {
    let openssl = |words: &str| run(Command::new("openssl").args(words.split(' ')).current_dir(folder));
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=authority -days 2");
    openssl("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server");
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile names");
}

/// The folders of the processes that a process has started.
fn children(pid: &str) -> Vec<PathBuf> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|one| Some(one.ok()?.path()));
    // Its number, its name in parentheses, its state, its parent.
    let parent = |stat: String| Some(stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned());
    let of = |process: &PathBuf| fs::read_to_string(process.join("stat")).ok().and_then(parent);
    all.filter(|process| of(process).as_deref() == Some(pid)).collect()
}

impl Server {
    pub(super) fn start() -> Option<Self> {
        Self::start_with(false)
    }

    /// One that knows TLS; none without openssl, either.
    pub(super) fn start_with_tls() -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            println!("left out: it needs openssl");
            return None;
        }
        Self::start_with(true)
    }

    /// The certificate of who certified it.
    pub(super) fn authority(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    fn start_with(tls: bool) -> Option<Self> {
        let Some(programs) = programs() else {
            println!("left out: it needs Postgres, Debian's package postgresql");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("apa-postgres").tempdir().unwrap().keep();
        let password = folder.join("password");
        fs::write(&password, PASSWORD).unwrap();
        if tls {
            certify(&folder);
        }
        if rustix::process::getuid().is_root() {
            run(Command::new("chown").arg("-R").arg("postgres").arg(&folder));
        }
        let stop = "cat > /dev/null; \"$0\" -D \"$1/data\" -m immediate stop > /dev/null 2>&1; rm -rf \"$1\"";
        let guard = program(Path::new("/bin/sh"))
            .args(["-c", stop])
            .args([&programs.join("pg_ctl"), &folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let make = ["-E", "UTF8", "--locale=C", "-A", "scram-sha-256", "-N", "-U", ROLE];
        let initdb = programs.join("initdb");
        run(program(&initdb).arg("-D").arg(folder.join("data")).args(make).arg("--pwfile").arg(&password));
        // Taken by another process in between, it is another try.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { programs, folder, port: free(), tls, databases: AtomicU32::new(0), guard };
        for _ in 0..5 {
            if server.try_run() {
                return Some(server);
            }
            server.port = free();
        }
        panic!("Postgres did not start: {}", fs::read_to_string(server.folder.join("log")).unwrap_or_default());
    }

    fn try_run(&self) -> bool {
        let mut options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200 -c fsync=on",
            self.port
        );
        if self.tls {
            let place = |name: &str| self.folder.join(name).display().to_string();
            let (certificate, key) = (place("server.crt"), place("server.key"));
            options += &format!(" -c ssl=on -c ssl_cert_file={certificate} -c ssl_key_file={key}");
        }
        let mut command = program(&self.programs.join("pg_ctl"));
        command.arg("-D").arg(self.folder.join("data")).arg("-l").arg(self.folder.join("log"));
        command.args(["-w", "-t", "30", "-o", &options, "start"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    /// Kills it without warning, and starts it again.
    pub(super) fn kill_and_restart(&self) {
        self.kill();
        self.restart();
    }

    pub(super) fn kill(&self) {
        let lines = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        let pid = lines.lines().next().unwrap().to_owned();
        let theirs = children(&pid);
        run(Command::new("kill").args(["-9", &pid]));
        // Those that serve a connection may write on for a moment.
        while theirs.iter().any(|process| process.exists()) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it after it was killed.
    pub(super) fn restart(&self) {
        // Those of its processes that are left keep the next one from starting, for a moment.
        let until = Instant::now() + Duration::from_secs(60);
        while !self.try_run() {
            assert!(Instant::now() < until, "Postgres did not start again");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The URL of a new database.
    pub(super) fn database(&self) -> String {
        let name = format!("ledger_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut make = Command::new(self.programs.join("createdb"));
        run(make.env("PGPASSWORD", PASSWORD).args([
            "-h",
            "127.0.0.1",
            "-U",
            ROLE,
            "-p",
            &self.port.to_string(),
            &name,
        ]));
        self.url(&name)
    }

    pub(super) fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}:{WRITTEN}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
