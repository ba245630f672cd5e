//! Processes that outlive the program that started them, and are recognized again by the next one.

use super::paths::Paths;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, OpenOptions};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Becomes the program of its arguments, without the files that whoever called us has left open: a daemon would hold them,
/// and the locks on them, for as long as it runs.
const CLOSE_FILES: &str =
    r#"for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || eval "exec $fd>&-"; done; exec "$@""#;

/// A running process: its id and, because ids are used again, when it started (clock ticks since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The process of a component, if it still runs.
    #[must_use]
    pub fn of(paths: &Paths, component: &str) -> Option<Self> {
        let text = fs::read_to_string(paths.process(component)).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let process = Self { pid: pid.parse().ok()?, started: started.parse().ok()? };
        (start_time(process.pid) == Some(process.started)).then_some(process)
    }

    /// Its id.
    #[must_use]
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Starts a component in a session of its own, its output appended to its log.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(paths: &Paths, component: &str, command: &mut Command) -> Result<Self> {
        let log = paths.log(component);
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .with_context(|| format!("opening {}", log.display()))
        };
        let child = detached(component, command).stdout(open()?).stderr(open()?).spawn();
        let pid = i32::try_from(child.with_context(|| format!("starting {component}"))?.id())?;
        let started = start_time(pid)
            .with_context(|| format!("{component} ended at once; its log is {}", log.display()))?;
        fs::write(paths.process(component), format!("{pid} {started}"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Ends it: politely, and after `patience` by force.
    ///
    /// # Errors
    /// When it does not even end by force.
    pub fn stop(self, patience: Duration) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        for (signal, limit) in [(Signal::TERM, patience), (Signal::KILL, Duration::from_secs(10))] {
            if !self.alive() {
                return Ok(());
            }
            let _ = kill_process(pid, signal);
            let deadline = Instant::now() + limit;
            while self.alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if self.alive() {
            bail!("process {} does not end", self.pid);
        }
        Ok(())
    }
}

/// The same command as a daemon.
fn detached(component: &str, command: &Command) -> Command {
    // setsid(1) and the shell become the program, so that the id stays the same; its own session keeps a closed terminal
    // from ending it.
    let mut detached = Command::new("setsid");
    detached.args(["bash", "-c", CLOSE_FILES, component]);
    detached.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            detached.env(name, value);
        }
    }
    detached.stdin(Stdio::null()).current_dir("/");
    detached
}

/// When a process started, from `/proc/<pid>/stat`; `None` for one that is gone or only waits to be reaped.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so the fields are counted from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_a_reaped_one_is_gone() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(me).is_some_and(|ticks| ticks > 0));
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
        assert!(!Process { pid: me, started: 1 }.alive(), "another process with the same id");
    }

    #[test]
    fn a_daemon_holds_no_file_of_whoever_started_it() {
        // As a shell leaves a file open for its children, for example to hold a lock.
        let inherited = fs::File::open("/dev/zero").unwrap();
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
        let mut child = detached("sleeper", Command::new("sleep").arg("60")).spawn().unwrap();
        let of_child = |file: &str| format!("/proc/{}/{file}", child.id());
        while fs::read_to_string(of_child("comm")).unwrap().trim() != "sleep" {
            std::thread::sleep(Duration::from_millis(10));
        }
        let held =
            fs::read_dir(of_child("fd")).unwrap().map(|file| fs::read_link(file.unwrap().path()).unwrap());
        let held: Vec<_> = held.filter(|path| path.ends_with("zero")).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(held, Vec::<std::path::PathBuf>::new());
    }
}
