//! The configuration in force: flags and environment over the file over the defaults, checked before anything runs.

mod temperature;

pub use temperature::{Period, ProductTemperatures};

use crate::args::Options;
use crate::device::Identity;
use crate::health::Limits;
use principium_api::gpu::GpuMemory;
use principium_api::gpu_node::Injection;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use temperature::{LIMIT_RANGE, ProductRule, TemperatureRule};

/// Xids that blame an application and not the card: what NVIDIA's own plugin ignores.
const APPLICATION_XIDS: [u64; 6] = [13, 31, 43, 45, 68, 109];

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
    generic_gpus: Option<Vec<GpuSelector>>,
    /// Other temperatures for some products. The first that fits is in force.
    products: Vec<ProductTemperatures>,
    /// What is different on some nodes, by their names.
    nodes: BTreeMap<String, File>,
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

impl FromStr for GpuSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(index) => Ok(Self::Index(index)),
            Err(_) if text.starts_with("GPU-") || text.starts_with("MIG-") => Ok(Self::Uuid(text.to_owned())),
            Err(_) => Err(format!("{text:?} is no GPU: give an index or a UUID (GPU-… or MIG-…)")),
        }
    }
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

impl File {
    /// The file as it is for one node: what is told for the node wins.
    fn of_node(mut self, node_name: &str) -> Result<Self, ConfigError> {
        for (node, of_node) in &self.nodes {
            if !of_node.nodes.is_empty() {
                return Err(invalid(format!(
                    "`nodes` of the node {node:?} has `nodes` itself; only the file has"
                )));
            }
            // A mistake about another node is found here too, not when that node's plugin starts.
            let rule = of_node
                .rule(self.rule(TemperatureRule::DEFAULT))
                .checked(&format!(" for the node {node:?}"))?;
            for product in self.products.iter().chain(&of_node.products) {
                product.rule(rule)?;
            }
        }
        let Some(of_node) = self.nodes.remove(node_name) else { return Ok(self) };
        Ok(Self {
            interval: of_node.interval.or(self.interval),
            withhold_temperature: of_node.withhold_temperature.or(self.withhold_temperature),
            restore_temperature: of_node.restore_temperature.or(self.restore_temperature),
            dwell: of_node.dwell.or(self.dwell),
            injection: of_node.injection.or(self.injection),
            foreign_tolerance: of_node.foreign_tolerance.or(self.foreign_tolerance),
            ignored_xids: of_node.ignored_xids.or(self.ignored_xids),
            generic_gpus: of_node.generic_gpus.or(self.generic_gpus),
            products: of_node.products.into_iter().chain(self.products).collect(),
            nodes: BTreeMap::new(),
        })
    }

    fn rule(&self, default: TemperatureRule) -> TemperatureRule {
        TemperatureRule {
            withhold: self.withhold_temperature.unwrap_or(default.withhold),
            restore: self.restore_temperature.unwrap_or(default.restore),
            dwell: self.dwell.map_or(default.dwell, |Period(period)| period),
        }
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
            product_temperatures,
            foreign_tolerance,
            ignored_xids,
            generic_gpus,
            injection,
            node_labels,
            lease_namespace,
        } = options;
        if node_name.is_empty() {
            return Err(invalid("the name of this node is not known: set --node-name or NODE_NAME"));
        }
        let file = file.of_node(&node_name)?;
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
        let of_file = file.rule(TemperatureRule::DEFAULT);
        let limits = TemperatureRule {
            withhold: withhold_temperature.unwrap_or(of_file.withhold),
            restore: restore_temperature.unwrap_or(of_file.restore),
            dwell: dwell.map_or(of_file.dwell, |Period(period)| period),
        }
        .checked("")?;
        let products = product_temperatures
            .iter()
            .chain(&file.products)
            .map(|product| product.rule(limits))
            .collect::<Result<_, _>>()?;
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
            ignored_xids: ignored_xids.or(file.ignored_xids).unwrap_or_else(|| APPLICATION_XIDS.to_vec()),
            generic_gpus: generic_gpus.or(file.generic_gpus).unwrap_or_default(),
            foreign_tolerance_mib: foreign_tolerance
                .or(file.foreign_tolerance)
                .map_or(512, |memory| memory.mib()),
            limits,
            products,
        })
    }

    /// The limits in force for this GPU: the product's own or the node's, but never above where the card slows down or
    /// switches itself off.
    #[must_use]
    pub fn limits_for(&self, identity: &Identity) -> Limits {
        let product = identity.product.to_lowercase();
        let rule = self
            .products
            .iter()
            .find(|candidate| product.contains(&candidate.product))
            .map_or(self.limits, |candidate| candidate.rule);
        let own = [identity.slowdown_temperature, identity.shutdown_temperature];
        let own = own.into_iter().flatten().filter(|own| LIMIT_RANGE.contains(own));
        let withhold = own.fold(rule.withhold, u32::min);
        Limits {
            withhold,
            restore: rule.restore.min(withhold.saturating_sub(1)),
            dwell: rule.dwell,
            foreign_tolerance_mib: self.foreign_tolerance_mib,
        }
    }

    /// The most important values in force, for people.
    #[must_use]
    pub fn in_words(&self) -> String {
        let TemperatureRule { withhold, restore, dwell } = self.limits;
        format!(
            "free units are withheld at {withhold} °C and offered again after {} s below {restore} °C, {} rules for \
             products, measured every {:?}",
            dwell.as_secs(),
            self.products.len(),
            self.interval
        )
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

fn invalid(message: impl Into<String>) -> ConfigError {
    ConfigError::Invalid(message.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    pub(crate) fn config(flags: &[&str], yaml: &str) -> Result<Config, String> {
        let mut cli = Cli::try_parse_from(["plugin"].iter().chain(flags)).map_err(|e| e.to_string())?;
        if !flags.iter().any(|flag| flag.starts_with("--node-name=")) {
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
        let only_shutdown = Identity { shutdown_temperature: Some(80), ..card("NVIDIA A100", None) };
        assert_eq!(config.limits_for(&only_shutdown).withhold, 80);
    }

    #[test]
    fn a_node_has_its_own_values_and_a_product_on_it_too() {
        let yaml = "
withholdTemperature: 80
foreignTolerance: 1Gi
products: [{product: A100, withholdTemperature: 82}]
nodes:
  n: {withholdTemperature: 78, restoreTemperature: 60, genericGpus: [7], products: [{product: A100, dwell: 1m}]}
  other: {withholdTemperature: 90}
";
        let of = |flags: &[&str], product: &str| {
            let config = config(flags, yaml).unwrap();
            let Limits { withhold, restore, dwell, foreign_tolerance_mib } =
                config.limits_for(&card(product, None));
            (withhold, restore, dwell.as_secs(), foreign_tolerance_mib, config.is_generic(7, ""))
        };
        assert_eq!(of(&[], "A40"), (78, 60, 10, 1024, true));
        assert_eq!(of(&[], "A100"), (78, 60, 60, 1024, true));
        assert_eq!(of(&["--node-name=other", "--dwell=2s"], "A100"), (82, 75, 2, 1024, false));
        let flags = [
            "--product-temperatures=A100=70/50/5s,A40=71/51",
            "--generic-gpus=1,GPU-x",
            "--foreign-tolerance=2Gi",
        ];
        assert_eq!(of(&flags, "A100"), (70, 50, 5, 2048, false));
        assert_eq!(of(&flags, "A40"), (71, 51, 10, 2048, false));
    }

    #[test]
    fn ignored_xids_are_configuration() {
        for (flags, yaml, expected) in [
            (&[][..], "", &APPLICATION_XIDS[..]),
            (&[], "ignoredXids: [13, 31]", &[13, 31]),
            (&["--ignored-xids=79"], "ignoredXids: [13, 31]", &[79]),
        ] {
            assert_eq!(config(flags, yaml).unwrap().ignored_xids, expected);
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
            (&[], "nodes: {other: {withholdTemperature: 60}}", "\"other\""),
            (&[], "nodes: {other: {nodes: {n: {}}}}", "only the file has"),
            (&[], "nodes: {other: {dwel: 1s}}", "dwel"),
            (&["--product-temperatures=A100"], "", "A100=80/70/30s"),
            (&["--product-temperatures=A100=70/80"], "", "must be below"),
            (&["--generic-gpus=six"], "", "GPU-"),
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
