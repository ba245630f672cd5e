//! The configuration in force: flags and environment over the file over the defaults, checked before anything runs.

use crate::args::Options;
use crate::device::Identity;
use crate::health::Limits;
use principium_api::gpu::GpuMemory;
use principium_api::gpu_node::Injection;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Xids that blame an application and not the card: what NVIDIA's own plugin ignores.
const APPLICATION_XIDS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// Temperatures in °C that can be limits at all.
const LIMIT_RANGE: std::ops::RangeInclusive<u32> = 30..=120;

/// The configuration of a run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node in Kubernetes.
    pub node_name: String,
    /// The driver's management library.
    pub nvml_library: PathBuf,
    /// Directory of the kubelet's registration socket.
    pub device_plugins_dir: PathBuf,
    /// The kubelet's pod resources socket.
    pub pod_resources_socket: PathBuf,
    /// Directory of the plugin's own memory.
    pub state_dir: PathBuf,
    /// Directory of CDI specifications.
    pub cdi_dir: PathBuf,
    /// Address of the HTTP endpoints.
    pub listen: SocketAddr,
    /// Whether the GPUs are simulated.
    pub simulated: bool,
    /// Time between two measurements.
    pub interval: Duration,
    /// How containers receive their GPUs.
    pub injection: Injection,
    /// Whether the Node is labelled.
    pub node_labels: bool,
    /// Namespace of the Lease.
    pub lease_namespace: Option<String>,
    /// Xids that are no failure of the card.
    pub ignored_xids: Vec<u64>,
    /// GPUs that stand in the generic view.
    pub generic_gpus: Vec<GpuSelector>,
    foreign_tolerance_mib: u64,
    limits: TemperatureRule,
    products: Vec<ProductRule>,
}

/// The configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    interval: Option<Period>,
    withhold_temperature: Option<u32>,
    restore_temperature: Option<u32>,
    dwell: Option<Period>,
    injection: Option<InjectionMode>,
    /// Memory that processes outside Kubernetes may use.
    foreign_tolerance: Option<GpuMemory>,
    /// In place of the default list.
    ignored_xids: Option<Vec<u64>>,
    /// GPUs of the generic pool, by index or UUID.
    generic_gpus: Vec<GpuSelector>,
    /// Other temperatures for some products.
    products: Vec<ProductFile>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProductFile {
    /// Text that the product's name contains, in any case.
    product: String,
    withhold_temperature: Option<u32>,
    restore_temperature: Option<u32>,
    dwell: Option<Period>,
}

/// A GPU in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum GpuSelector {
    /// By index.
    Index(u32),
    /// By UUID.
    Uuid(String),
}

/// How containers receive their GPUs, as the command line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum InjectionMode {
    /// By CDI device names.
    Cdi,
    /// By device nodes and the NVIDIA container runtime.
    Legacy,
}

/// A span of time as people write it: `500ms`, `10s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

#[derive(Clone, Copy, Debug)]
struct TemperatureRule {
    withhold: u32,
    restore: u32,
    dwell: Duration,
}

#[derive(Clone, Debug)]
struct ProductRule {
    /// In lower case.
    product: String,
    rule: TemperatureRule,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not what it must be.
    #[error("the configuration file {path} is not valid: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_yaml::Error,
    },
    /// Values that can't be.
    #[error("{0}")]
    Invalid(String),
}

impl File {
    /// Reads the file, if there is to be one.
    ///
    /// # Errors
    /// If it cannot be read, or has unknown keys or values.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_yaml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
    }
}

impl Config {
    /// The configuration in force.
    ///
    /// # Errors
    /// If values contradict each other or make no sense.
    pub fn new(options: Options, file: File) -> Result<Self, ConfigError> {
        let Options {
            node_name,
            nvml_library,
            config: _,
            kubelet_dir,
            pod_resources_dir,
            state_dir,
            cdi_dir,
            listen,
            simulated,
            interval,
            withhold_temperature,
            restore_temperature,
            dwell,
            injection,
            node_labels,
            lease_namespace,
        } = options;
        if node_name.is_empty() {
            return Err(invalid("the name of this node is not known: set --node-name or NODE_NAME"));
        }
        let interval = interval.or(file.interval).map_or(Duration::from_secs(1), |Period(period)| period);
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&interval) {
            return Err(invalid(format!(
                "the interval must be between 100ms and 60s, and it is {interval:?}"
            )));
        }
        let injection = match injection.or(file.injection).unwrap_or(InjectionMode::Cdi) {
            InjectionMode::Cdi => Injection::Cdi,
            InjectionMode::Legacy if simulated => {
                return Err(invalid(
                    "simulated GPUs have no device nodes on the host, so they are injected by CDI only",
                ));
            }
            InjectionMode::Legacy => Injection::Legacy,
        };
        let limits = TemperatureRule {
            withhold: withhold_temperature.or(file.withhold_temperature).unwrap_or(85),
            restore: restore_temperature.or(file.restore_temperature).unwrap_or(75),
            dwell: dwell.or(file.dwell).map_or(Duration::from_secs(10), |Period(period)| period),
        }
        .checked("")?;
        let products =
            file.products.into_iter().map(|product| product.rule(limits)).collect::<Result<_, _>>()?;
        let device_plugins_dir = kubelet_dir.join("device-plugins");
        Ok(Self {
            node_name,
            nvml_library,
            pod_resources_socket: pod_resources_dir
                .unwrap_or_else(|| kubelet_dir.join("pod-resources"))
                .join("kubelet.sock"),
            // The kubelet empties this directory of files when it starts, but leaves directories alone.
            state_dir: state_dir.unwrap_or_else(|| device_plugins_dir.join("principium")),
            device_plugins_dir,
            cdi_dir,
            listen,
            simulated,
            interval,
            injection,
            node_labels,
            lease_namespace: lease_namespace.filter(|namespace| !namespace.is_empty()),
            ignored_xids: file.ignored_xids.unwrap_or_else(|| APPLICATION_XIDS.to_vec()),
            generic_gpus: file.generic_gpus,
            foreign_tolerance_mib: file.foreign_tolerance.map_or(512, |memory| memory.mib()),
            limits,
            products,
        })
    }

    /// The limits in force for this GPU: the product's own or the node's, but never above where the card slows down.
    #[must_use]
    pub fn limits_for(&self, identity: &Identity) -> Limits {
        let product = identity.product.to_lowercase();
        let rule = self
            .products
            .iter()
            .find(|candidate| product.contains(&candidate.product))
            .map_or(self.limits, |candidate| candidate.rule);
        let slowdown = identity.slowdown_temperature.filter(|slowdown| LIMIT_RANGE.contains(slowdown));
        let withhold = slowdown.map_or(rule.withhold, |slowdown| rule.withhold.min(slowdown));
        Limits {
            withhold,
            restore: rule.restore.min(withhold.saturating_sub(1)),
            dwell: rule.dwell,
            foreign_tolerance_mib: self.foreign_tolerance_mib,
        }
    }

    /// Whether the configuration gives this GPU to the generic pool.
    #[must_use]
    pub fn is_generic(&self, index: u32, uuid: &str) -> bool {
        self.generic_gpus.iter().any(|selector| match selector {
            GpuSelector::Index(wanted) => *wanted == index,
            GpuSelector::Uuid(wanted) => wanted == uuid,
        })
    }
}

impl ProductFile {
    fn rule(self, default: TemperatureRule) -> Result<ProductRule, ConfigError> {
        let rule = TemperatureRule {
            withhold: self.withhold_temperature.unwrap_or(default.withhold),
            restore: self.restore_temperature.unwrap_or(default.restore),
            dwell: self.dwell.map_or(default.dwell, |Period(period)| period),
        }
        .checked(&format!(" for the product {:?}", self.product))?;
        Ok(ProductRule { product: self.product.to_lowercase(), rule })
    }
}

impl TemperatureRule {
    fn checked(self, whose: &str) -> Result<Self, ConfigError> {
        let Self { withhold, restore, .. } = self;
        if !LIMIT_RANGE.contains(&withhold) || !LIMIT_RANGE.contains(&restore) {
            return Err(invalid(format!(
                "temperature limits{whose} must be between {} and {} °C, and they are {withhold} and {restore} °C",
                LIMIT_RANGE.start(),
                LIMIT_RANGE.end()
            )));
        }
        if restore >= withhold {
            return Err(invalid(format!(
                "restoreTemperature{whose} ({restore} °C) must be below withholdTemperature ({withhold} °C): \
                 a GPU that is withheld must cool down before it is offered again"
            )));
        }
        Ok(self)
    }
}

fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::Invalid(message.into())
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|duration| Duration::try_from(duration).ok())
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no span of time: write for example 500ms, 10s or 2m"))
    }
}

impl TryFrom<String> for Period {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    pub(crate) fn config(flags: &[&str], yaml: &str) -> Result<Config, String> {
        let mut cli = Cli::try_parse_from(["plugin"].iter().chain(flags)).map_err(|e| e.to_string())?;
        if !flags.contains(&"--node-name=") {
            cli.options.node_name = "n".into();
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, yaml).unwrap();
        let file = File::read(Some(&path)).map_err(|error| error.to_string())?;
        Config::new(cli.options, file).map_err(|error| error.to_string())
    }

    fn card(product: &str, slowdown: Option<u32>) -> Identity {
        Identity { product: product.into(), slowdown_temperature: slowdown, ..Identity::default() }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let limits = |flags: &[&str], yaml| {
            let limits = config(flags, yaml).unwrap().limits_for(&card("A", None));
            (limits.withhold, limits.restore, limits.dwell.as_secs())
        };
        assert_eq!(limits(&[], ""), (85, 75, 10));
        assert_eq!(limits(&[], "withholdTemperature: 80\ndwell: 1m"), (80, 75, 60));
        assert_eq!(limits(&["--withhold-temperature=90"], "withholdTemperature: 80"), (90, 75, 10));
    }

    #[test]
    fn a_product_has_its_own_limits_and_no_card_is_offered_where_it_slows_down() {
        let config =
            config(&[], "products: [{product: rtx 3060, withholdTemperature: 80, restoreTemperature: 70}]")
                .unwrap();
        for (product, slowdown, expected) in [
            ("NVIDIA GeForce RTX 3060 Ti", Some(95), (80, 70)),
            ("NVIDIA A100", Some(95), (85, 75)),
            ("NVIDIA A100", Some(82), (82, 75)),
            ("NVIDIA A100", Some(70), (70, 69)),
            ("NVIDIA A100", Some(0), (85, 75)),
        ] {
            let limits = config.limits_for(&card(product, slowdown));
            assert_eq!((limits.withhold, limits.restore), expected, "{product} {slowdown:?}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (flags, yaml, part) in [
            (&["--restore-temperature=90"][..], "", "must be below"),
            (&["--withhold-temperature=500"], "", "between 30 and 120"),
            (&["--interval=1h"], "", "between 100ms and 60s"),
            (&["--dwell=soon"], "", "500ms"),
            (&["--simulated", "--injection=legacy"], "", "CDI only"),
            (&[], "withholdTemprature: 80", "withholdTemprature"),
            (&[], "products: [{product: A, restoreTemperature: 99}]", "\"A\""),
            (&[], "dwell: soon", "500ms"),
        ] {
            let error = config(flags, yaml).unwrap_err();
            assert!(error.contains(part), "{flags:?} {yaml}: {error}");
        }
        let unnamed = config(&["--node-name="], "").unwrap_err();
        assert!(unnamed.contains("NODE_NAME"), "{unnamed}");
    }

    #[test]
    fn the_generic_pool_is_named_by_index_or_uuid() {
        let config = config(&[], "genericGpus: [6, GPU-abc]").unwrap();
        for (index, uuid, generic) in [(6, "GPU-x", true), (0, "GPU-abc", true), (0, "GPU-x", false)] {
            assert_eq!(config.is_generic(index, uuid), generic, "{index} {uuid}");
        }
    }
}
