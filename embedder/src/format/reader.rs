//! Reading documents beside the threads that serve. PDF and DOCX are read in a process of their own, which may not take more
//! than so much time and memory: a file made to do harm, or one at which a parser fails, costs that process alone.

use super::{Extracted, Format, ReadError, Record, detect, read};
use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

/// How long one document may be read.
const TIME: Duration = Duration::from_secs(60);
/// Processor time of a reading process, in seconds.
const PROCESSOR: u64 = 60;
/// Memory of a reading process, in bytes.
const MEMORY: u64 = 1 << 30;
/// Its stack, in bytes: parsers go down into what is nested.
const STACK: usize = 64 << 20;

/// Keeps the allocator of a reading process from setting address space aside at its start: the limit of memory counts that.
pub const RESERVE: (&str, &str) = ("MIMALLOC_ARENA_RESERVE", "0");

/// What a reading process answers.
type Answer = Result<Extracted, ReadError>;

/// Reads documents, as many at once as there are processors.
#[derive(Clone, Debug)]
pub struct Reader {
    /// This program, for the processes that read; in this process where absent.
    program: Option<PathBuf>,
    room: Arc<Semaphore>,
}

impl Reader {
    /// A reader whose processes run `program`.
    pub fn new(program: Option<PathBuf>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { program, room: Arc::new(Semaphore::new(processors)) }
    }

    /// How many documents it reads at once.
    pub fn at_once(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// The documents in some bytes, as `format` or as what they are.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn read(
        &self,
        bytes: Bytes,
        format: Option<Format>,
    ) -> Result<Vec<Result<Record, ReadError>>, ReadError> {
        // The semaphore is never closed.
        let _room = self.room.acquire().await;
        let format = match format {
            Some(format) => format,
            None => detect::detect(&bytes)?,
        };
        match (&self.program, format) {
            (Some(program), Format::Pdf | Format::Docx) => {
                Ok(vec![Ok(read_apart(program, format, &bytes).await?.into())])
            }
            _ => {
                let reading = tokio::task::spawn_blocking(move || read(&bytes, Some(format)));
                reading.await.unwrap_or_else(|_| Err(failed(format, "its reader failed")))
            }
        }
    }
}

fn failed(format: Format, message: &str) -> ReadError {
    ReadError::Malformed { format, message: message.to_owned() }
}

async fn read_apart(program: &PathBuf, format: Format, bytes: &[u8]) -> Answer {
    let mut command = tokio::process::Command::new(program);
    command.args(["read", format.name()]).env(RESERVE.0, RESERVE.1).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let started = command.spawn();
    let mut child =
        started.map_err(|error| failed(format, &format!("starting {}: {error}", program.display())))?;
    let input = child.stdin.take();
    let feed = async {
        if let Some(mut input) = input {
            // A process that has given up reads no more; how it ended says why.
            let _ = input.write_all(bytes).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match tokio::time::timeout(TIME, both).await {
        Ok(output) => output.map_err(|error| failed(format, &format!("its reader: {error}")))?,
        Err(_) => return Err(failed(format, &format!("it took more than {} s", TIME.as_secs()))),
    };
    match serde_json::from_slice::<Answer>(&output.stdout) {
        Ok(answer) => answer,
        Err(_) => Err(failed(format, &ended(output.status))),
    }
}

/// Why a process has ended without an answer.
fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status.signal() {
        Some(24) => format!("it took more than {PROCESSOR} s of processor time"),
        Some(6) => format!("it needs more than {} MiB of memory, or its reader failed", MEMORY >> 20),
        Some(signal) => {
            format!("its reader was ended by signal {signal}: it is damaged or nested too deeply")
        }
        None => format!("its reader failed ({status})"),
    }
}

/// The work of a reading process: one document from standard input, what it says to standard output.
///
/// # Errors
/// When the pipes are broken.
pub fn serve_one(format: Format) -> std::io::Result<()> {
    // The signal at the limit of processor time tells why; the one a second later, at the limit of that limit, does not.
    for (resource, most, more) in
        [(Resource::As, MEMORY, 0), (Resource::Cpu, PROCESSOR, 1), (Resource::Core, 0, 0)]
    {
        // The limits that the process was given may be lower already.
        let maximum = getrlimit(resource).maximum.map_or(most + more, |maximum| maximum.min(most + more));
        setrlimit(resource, Rlimit { current: Some(maximum.saturating_sub(more)), maximum: Some(maximum) })?;
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let reading = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        let records: Answer = read(&bytes, Some(format)).and_then(|mut records| match records.pop() {
            Some(record) => record.map(|record: Record| record.content),
            None => Err(ReadError::Empty { hint: String::new() }),
        });
        records
    })?;
    let answer = reading.join().unwrap_or_else(|_| Err(failed(format, "its reader failed")));
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}
