//! Running other programs, with errors that say what was run and what it said.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// How much of a failed program's output an error carries, in characters.
const TAIL: usize = 3000;

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it can't be started or fails; the error ends with what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {shown}"))?;
    printed(&shown, output)
}

/// Runs a program that reads this text from its standard input, and returns its standard output.
///
/// # Errors
/// When it can't be started or fails; the error ends with what it printed.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let shown = show(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // Beside the reading: a program may print before it has read everything. One that ends early says why itself.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    printed(&shown, output.with_context(|| format!("waiting for {shown}"))?)
}

fn printed(shown: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let skipped = text.chars().count().saturating_sub(TAIL);
        bail!(
            "{shown} ended with {}:\n{}",
            output.status,
            text.chars().skip(skipped).collect::<String>().trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that talks to the user itself.
///
/// # Errors
/// When it can't be started or fails.
pub fn run_visibly(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// Whether a program succeeds; for questions whose answer may be no.
#[must_use]
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A `cargo` that works in a folder as a user's would.
#[must_use]
pub fn cargo(folder: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(folder);
    // What `cargo run` told this program about itself. Build scripts that look at such variables would run again, and what
    // depends on them be compiled again, each time that cargo is called by hand and from here in turn.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "LD_LIBRARY_PATH"
        {
            command.env_remove(name);
        }
    }
    command.env_remove("CARGO");
    command
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
