//! The model on local files, without a server and without Kubernetes: `embed`, `rerank`, `bench`.

mod bench;
mod embed;
mod rerank;
mod texts;

use std::io::{ErrorKind, IsTerminal as _};
use std::sync::Arc;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub use bench::bench;
pub use embed::embed;
pub use rerank::rerank;

use crate::args::{ModelFlags, Role, ServeArgs};
use crate::http::Served;
use crate::serve;

/// Texts that are tokenized and handed to the engine together.
const CHUNK: usize = 64;
/// Chunks under way at once: while one is computed, others are tokenized and written.
const CHUNKS: usize = 4;

/// Loads a model as `serve` would.
async fn load(flags: &ModelFlags, role: Role) -> anyhow::Result<Arc<Served>> {
    let mut args = ServeArgs::defaults();
    args.role = role;
    args.model = Some(flags.model.clone());
    args.model_revision.clone_from(&flags.model_revision);
    args.model_cache.clone_from(&flags.model_cache);
    args.max_batch_tokens = flags.max_batch_tokens;
    args.dtype = flags.dtype;
    let spinner = bar(None, "{spinner} loading {msg}");
    spinner.set_message(flags.model.clone());
    let served =
        tokio::task::spawn_blocking(move || serve::load_model(&args)).await.context("loading the model")?;
    spinner.finish_and_clear();
    served
}

/// A progress bar on the terminal; nothing where the errors go elsewhere.
fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(length, target);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}

/// Whether somebody still reads what is `written`. Who has seen enough, as `head` has, is no failure.
fn is_read(written: std::io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).context("writing the results"),
    }
}

/// What was done, in one line.
fn summary(texts: usize, tokens: usize, seconds: f64) -> String {
    let rate = |count: usize| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    format!(
        "{texts} texts, {tokens} tokens in {seconds:.1} s: {:.1} texts/s, {:.0} tokens/s",
        rate(texts),
        rate(tokens)
    )
}
