//! Flags and environment: the only place that reads them.

use clap::{Parser, Subcommand};
use std::net::SocketAddr;

/// Turns DataFactory, Reranker and OllamaPool resources into pods with exact GPUs, and sees that Ingestions are done
#[derive(Clone, Debug, Parser)]
#[command(name = "principium-operator", version, about)]
pub struct Args {
    /// What else to do than to run
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Image of DataFactory, Reranker and doc analyzer pods whose resource names none
    #[arg(long, env = "PRINCIPIUM_EMBEDDER_IMAGE", default_value = concat!("ghcr.io/principium-ai/principium-embedder:", env!("CARGO_PKG_VERSION")))]
    pub embedder_image: String,

    /// Image of OllamaPool pods whose resource names none
    #[arg(long, env = "PRINCIPIUM_OLLAMA_IMAGE", default_value = "ollama/ollama:0.17.4")]
    pub ollama_image: String,

    /// Image of this program, which also pulls models beside Ollama
    #[arg(long, env = "PRINCIPIUM_PULLER_IMAGE", default_value = concat!("ghcr.io/principium-ai/principium-operator:", env!("CARGO_PKG_VERSION")))]
    pub puller_image: String,

    /// Resources that don't say otherwise are Ready only when they compute on their GPUs
    #[arg(long, env = "PRINCIPIUM_REQUIRE_ACCELERATION", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub require_acceleration: bool,

    /// Look after the resources of this namespace only
    #[arg(long, env = "PRINCIPIUM_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,

    /// Address of /metrics, /healthz and /readyz
    #[arg(long, env = "PRINCIPIUM_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Take part in an election, so that of several operators one works
    #[arg(long, env = "PRINCIPIUM_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_election: bool,

    /// Namespace of the operator and of the device plugins: their Leases are there
    #[arg(long, env = "POD_NAMESPACE", default_value = "principium-system")]
    pub namespace: String,

    /// Name of this operator among several
    #[arg(long, env = "POD_NAME", default_value = "principium-operator")]
    pub name: String,

    /// How much is logged: error, warn, info, debug, trace, or directives such as `principium_operator=debug`
    #[arg(long, env = "PRINCIPIUM_LOG", default_value = "info")]
    pub log: String,

    /// Log as JSON, one object a line
    #[arg(long, env = "PRINCIPIUM_LOG_JSON")]
    pub log_json: bool,
}

/// What else the program does.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look at whether the installation works, say what is wrong, and exit; changes nothing
    Check,
    /// Have an Ollama server pull a model, and say over HTTP how far it is; runs in pods of OllamaPools
    Pull(PullArgs),
}

/// Flags of `pull`.
#[derive(Clone, Debug, clap::Args)]
pub struct PullArgs {
    /// Base URL of the server
    #[arg(long, default_value = "http://127.0.0.1:11434")]
    pub server: String,
    /// Address of /progress
    #[arg(long)]
    pub progress: SocketAddr,
    /// Name of the model
    pub model: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_take_their_values_with_and_without_an_equals_sign() {
        Args::command().debug_assert();
        let args = Args::parse_from(["x", "--leader-election=false", "--require-acceleration", "false"]);
        assert!(!args.leader_election && !args.require_acceleration);
        assert!(Args::parse_from(["x", "--leader-election"]).leader_election);
        let check = Args::parse_from(["x", "--watch-namespace=team", "check"]);
        assert!(matches!(check.command, Some(Command::Check)) && check.watch_namespace.is_some());
        let pull = Args::parse_from(["x", "pull", "--progress=0.0.0.0:1", "tiny"]);
        assert!(matches!(pull.command, Some(Command::Pull(PullArgs { model, .. })) if model == "tiny"));
    }
}
