//! Progress on the terminal: a line for each step, with its time when it took any.

use anyhow::Result;
use console::{Term, style};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Steps shorter than this are printed without their time.
const WORTH_TELLING: Duration = Duration::from_millis(500);

/// How often a terminal shows how long a step has been at it, and how often a log does.
const TICKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Does one step and prints a line about it; while it lasts, says so.
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
    let outcome = std::thread::scope(|scope| {
        let (done, over) = channel::<()>();
        let terminal = &terminal;
        scope.spawn(move || show_time(terminal, what, started, &over));
        let outcome = work();
        drop(done);
        outcome
    });
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

/// Until `over` is closed, says now and then for how long the step has been running.
fn show_time(terminal: &Term, what: &str, started: Instant, over: &Receiver<()>) {
    let live = terminal.is_term();
    let tick = if live { TICKS.0 } else { TICKS.1 };
    while over.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
        let line = format!("    {} {what} … {} s", style("·").cyan(), started.elapsed().as_secs());
        if live {
            let _ = terminal.clear_line();
            let _ = terminal.write_str(&line);
        } else {
            let _ = terminal.write_line(&line);
        }
    }
}
