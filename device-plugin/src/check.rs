//! `principium-device-plugin check`: looks at what the plugin needs on a node and says what is missing and what to do.

use crate::args::Options;
use crate::config::{Config, ConfigError, File};
use crate::nvml::{Reader, Report};
use principium_api::gpu_node::Injection;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the driver may take to answer.
const DRIVER: Duration = Duration::from_secs(20);

/// The outcome of one look.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// As it must be.
    Good(String),
    /// It works, but somebody should know.
    Note(String),
    /// The plugin can't do its work.
    Bad(String),
}

/// Prints every finding; fails if one of them is bad.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let config = File::read(options.config.as_deref()).and_then(|file| Config::new(options.clone(), file));
    let findings = [
        ("configuration", configuration(&config)),
        ("driver", driver(options)),
        ("kubelet", socket(&options.kubelet_dir.join("device-plugins/kubelet.sock"), "registers nothing")),
        ("pod resources", socket(&pod_resources(options), "knows no holders and withholds nothing")),
        ("injection", injection(options, config.as_ref().ok().map(|config| config.injection))),
        ("other GPU plugins", other_plugins(&options.kubelet_dir.join("device-plugins"))),
    ];
    let mut code = ExitCode::SUCCESS;
    for (what, finding) in findings {
        let (sign, text) = match finding {
            Finding::Good(text) => ("ok  ", text),
            Finding::Note(text) => ("note", text),
            Finding::Bad(text) => {
                code = ExitCode::FAILURE;
                ("BAD ", text)
            }
        };
        println!("{sign}  {what}: {text}");
    }
    code
}

fn configuration(config: &Result<Config, ConfigError>) -> Finding {
    match config {
        Ok(config) => {
            Finding::Good(format!("valid, for the node {}: {}", config.node_name, config.in_words()))
        }
        Err(error) => Finding::Bad(error.to_string()),
    }
}

fn driver(options: &Options) -> Finding {
    let reader = Reader { library: options.nvml_library.clone(), interval: DRIVER };
    let (report, mut reports) = mpsc::channel(1);
    // Not joined: a driver that hangs must not hang the check.
    std::thread::spawn(move || reader.run(&report));
    let deadline = std::time::Instant::now() + DRIVER;
    let report = loop {
        match reports.try_recv() {
            Ok(report) => break Some(report),
            Err(mpsc::error::TryRecvError::Disconnected) => break None,
            Err(mpsc::error::TryRecvError::Empty) if std::time::Instant::now() >= deadline => break None,
            Err(mpsc::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    match report {
        Some(Report::Sample(sample)) if sample.gpus.is_empty() => {
            Finding::Note(format!("version {} answers and has no GPU", sample.driver_version))
        }
        Some(Report::Sample(sample)) => {
            let products: std::collections::BTreeSet<_> =
                sample.gpus.iter().map(|gpu| gpu.identity.product.as_str()).collect();
            let products: Vec<_> = products.into_iter().collect();
            Finding::Good(format!(
                "version {}, {} GPUs ({})",
                sample.driver_version,
                sample.gpus.len(),
                products.join(", ")
            ))
        }
        Some(Report::Unavailable(reason) | Report::Died(reason)) => Finding::Bad(reason),
        None => Finding::Bad(format!("no answer within {} s: a call hangs", DRIVER.as_secs())),
    }
}

fn pod_resources(options: &Options) -> std::path::PathBuf {
    let directory =
        options.pod_resources_dir.clone().unwrap_or_else(|| options.kubelet_dir.join("pod-resources"));
    directory.join("kubelet.sock")
}

fn socket(path: &Path, without: &str) -> Finding {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Finding::Good(format!("{} answers", path.display())),
        Err(error) => Finding::Bad(format!(
            "{} does not answer ({error}): without it the plugin {without}; is the kubelet running, and its directory \
             mounted?",
            path.display()
        )),
    }
}

fn injection(options: &Options, mode: Option<Injection>) -> Finding {
    if mode == Some(Injection::Legacy) {
        return Finding::Note(
            "legacy: containers need the NVIDIA container runtime as their runtime".to_owned(),
        );
    }
    let directory = &options.cdi_dir;
    if options.simulated {
        return match fs::create_dir_all(directory).and_then(|()| fs::read_dir(directory)) {
            Ok(_) => {
                Finding::Good(format!("the plugin writes its CDI specification to {}", directory.display()))
            }
            Err(error) => Finding::Bad(format!("{} can't be used ({error})", directory.display())),
        };
    }
    let directories = [directory.as_path(), Path::new("/etc/cdi")];
    let specification =
        directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten().find(
            |entry| {
                fs::read_to_string(entry.path())
                    .is_ok_and(|text| text.contains("nvidia.com/gpu") && text.contains("GPU-"))
            },
        );
    match specification {
        Some(entry) => Finding::Good(format!("CDI specification {} names GPUs by UUID", entry.path().display())),
        None => Finding::Bad(
            "no CDI specification names GPUs by UUID: run `nvidia-ctk cdi generate --device-name-strategy=uuid \
             --output=/var/run/cdi/nvidia.yaml`, or use --injection=legacy"
                .to_owned(),
        ),
    }
}

fn other_plugins(directory: &Path) -> Finding {
    let names = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("nvidia") && name.ends_with(".sock"));
    let others: Vec<_> = names.collect();
    if others.is_empty() {
        Finding::Good("none".to_owned())
    } else {
        Finding::Note(format!(
            "{} in {}: two plugins that offer the same GPUs give one GPU to two pods; leave the GPUs to one of them",
            others.join(", "),
            directory.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_serves_is_bad_and_says_what_follows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubelet.sock");
        assert!(matches!(socket(&path, "x"), Finding::Bad(text) if text.contains("kubelet.sock")));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(socket(&path, "x"), Finding::Good(_)));
    }

    #[test]
    fn another_plugin_is_noted() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(other_plugins(directory.path()), Finding::Good(_)));
        fs::write(directory.path().join("nvidia-gpu.sock"), "").unwrap();
        assert!(
            matches!(other_plugins(directory.path()), Finding::Note(text) if text.contains("nvidia-gpu.sock"))
        );
    }
}
