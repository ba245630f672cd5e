//! The command line: the only place that reads flags and environment variables.

use crate::config::{GpuSelector, InjectionMode, Period, ProductTemperatures};
use clap::{ArgAction, Args, Parser, Subcommand};
use principium_api::gpu::GpuMemory;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Offers a node's GPUs to the kubelet in units of memory, and withholds the hot and the failed ones.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What else to do than to run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of a run.
    #[command(flatten)]
    pub options: Options,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at what the plugin needs on this node, say what is missing, and exit.
    Check(Options),
}

/// Options. A flag wins over its environment variable, which wins over the configuration file.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME", default_value = "", hide_default_value = true)]
    pub node_name: String,

    /// The driver's management library.
    #[arg(long, env = "PRINCIPIUM_NVML_LIBRARY", default_value = "libnvidia-ml.so.1")]
    pub nvml_library: PathBuf,

    /// Configuration file in YAML.
    #[arg(long, env = "PRINCIPIUM_CONFIG")]
    pub config: Option<PathBuf>,

    /// Directory of the kubelet, with `device-plugins` and `pod-resources` in it.
    #[arg(long, env = "PRINCIPIUM_KUBELET_DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,

    /// Directory of the kubelet's pod resources socket, where it is not in the kubelet's directory.
    #[arg(long, env = "PRINCIPIUM_POD_RESOURCES_DIR")]
    pub pod_resources_dir: Option<PathBuf>,

    /// Directory for the plugin's own memory of indices and failures; default: `device-plugins/principium` in the
    /// kubelet's directory.
    #[arg(long, env = "PRINCIPIUM_STATE_DIR")]
    pub state_dir: Option<PathBuf>,

    /// Directory that the container runtime reads CDI specifications from.
    #[arg(long, env = "PRINCIPIUM_CDI_DIR", default_value = "/var/run/cdi")]
    pub cdi_dir: PathBuf,

    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "PRINCIPIUM_LISTEN", default_value = "0.0.0.0:9401")]
    pub listen: SocketAddr,

    /// The GPUs are simulated: the plugin describes their device nodes to the container runtime itself.
    #[arg(long, env = "PRINCIPIUM_SIMULATED")]
    pub simulated: bool,

    /// Time between two measurements, for example 1s [default: 1s]
    #[arg(long, env = "PRINCIPIUM_INTERVAL")]
    pub interval: Option<Period>,

    /// Withhold a GPU's free units at this temperature and above, in °C [default: 85]
    #[arg(long, env = "PRINCIPIUM_WITHHOLD_TEMPERATURE", value_name = "C")]
    pub withhold_temperature: Option<u32>,

    /// Offer them again below this temperature, in °C [default: 75]
    #[arg(long, env = "PRINCIPIUM_RESTORE_TEMPERATURE", value_name = "C")]
    pub restore_temperature: Option<u32>,

    /// How long a GPU must stay below the lower limit, for example 10s [default: 10s]
    #[arg(long, env = "PRINCIPIUM_DWELL")]
    pub dwell: Option<Period>,

    /// Other temperatures for some products, in place of the file's for them: text that the product's name contains, the
    /// two limits in °C and the dwell time, for example 'A100=80/70/30s'. Several are separated by commas.
    #[arg(long, env = "PRINCIPIUM_PRODUCT_TEMPERATURES", value_name = "RULES", value_delimiter = ',')]
    pub product_temperatures: Vec<ProductTemperatures>,

    /// Memory of a GPU that processes outside of Kubernetes may use [default: 512Mi]
    #[arg(long, env = "PRINCIPIUM_FOREIGN_TOLERANCE", value_name = "AMOUNT")]
    pub foreign_tolerance: Option<GpuMemory>,

    /// Xids that are no failure of the card [default: 13,31,43,45,68,109]
    #[arg(long, env = "PRINCIPIUM_IGNORED_XIDS", value_name = "CODES", value_delimiter = ',')]
    pub ignored_xids: Option<Vec<u64>>,

    /// GPUs of the generic pool, by index or UUID [default: none]
    #[arg(long, env = "PRINCIPIUM_GENERIC_GPUS", value_name = "GPUS", value_delimiter = ',')]
    pub generic_gpus: Option<Vec<GpuSelector>>,

    /// How containers receive their GPUs [default: cdi]
    #[arg(long, env = "PRINCIPIUM_INJECTION", value_enum)]
    pub injection: Option<InjectionMode>,

    /// Label the Node with what GPUs it has.
    #[arg(long, env = "PRINCIPIUM_NODE_LABELS", default_value_t = true, action = ArgAction::Set)]
    pub node_labels: bool,

    /// Namespace of the Lease that shows that this plugin lives; without one there is no Lease.
    #[arg(long, env = "POD_NAMESPACE")]
    pub lease_namespace: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn check_takes_the_same_options() {
        let cli = Cli::try_parse_from(["plugin", "check", "--cdi-dir", "/etc/cdi"]).unwrap();
        let Some(Command::Check(options)) = cli.command else { panic!("{cli:?}") };
        assert_eq!(options.cdi_dir, PathBuf::from("/etc/cdi"));
    }
}
