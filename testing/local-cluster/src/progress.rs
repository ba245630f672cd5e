//! Progress on the terminal: a line for each step, with its time when it took any.

use anyhow::Result;
use console::{Term, style};
use std::time::{Duration, Instant};

/// Steps shorter than this are printed without their time.
const WORTH_TELLING: Duration = Duration::from_millis(500);

/// Does one step and prints a line about it.
///
/// # Errors
/// What the step returns.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let terminal = Term::stdout();
    let live = terminal.is_term();
    if live {
        let _ = terminal.write_str(&format!("    {} {what} …", style("·").cyan()));
    }
    let started = Instant::now();
    let outcome = work();
    let took = started.elapsed();
    if live {
        let _ = terminal.clear_line();
    }
    let mark = if outcome.is_ok() { style("✓").green() } else { style("✗").red() };
    let time = if took >= WORTH_TELLING {
        format!(" {}", style(format!("{:.1} s", took.as_secs_f64())).dim())
    } else {
        String::new()
    };
    let _ = terminal.write_line(&format!("    {mark} {what}{time}"));
    outcome
}
