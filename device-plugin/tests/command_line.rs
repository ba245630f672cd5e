//! The program as it is called: where values come from, and what is said about those that can't be.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

/// What `check` says about the configuration.
fn configuration(file: Option<&Path>, variables: &[(&str, &str)], flags: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_principium-device-plugin"));
    command.env_clear().args(["check", "--node-name", "n", "--nvml-library", "/nowhere/libnvidia-ml.so.1"]);
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    let output = command.args(flags).envs(variables.iter().copied()).output().unwrap();
    assert!(!output.status.success(), "there is no driver, so something is bad");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("configuration:"));
    line.map_or_else(|| String::from_utf8(output.stderr).unwrap(), str::to_owned)
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, "withholdTemperature: 81\nrestoreTemperature: 71\ndwell: 11s\n").unwrap();
    let variables = [("PRINCIPIUM_WITHHOLD_TEMPERATURE", "82"), ("PRINCIPIUM_RESTORE_TEMPERATURE", "72")];
    let said = configuration(Some(&file), &variables, &["--withhold-temperature=83"]);
    assert!(said.contains("withheld at 83 °C and offered again after 11 s below 72 °C"), "{said}");
}

#[test]
fn what_can_not_be_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, "withholdTemprature: 80\n").unwrap();
    for (file, variables, flags, part) in [
        (Some(file.as_path()), &[][..], &[][..], "withholdTemprature"),
        (Some(Path::new("/nowhere.yaml")), &[], &[], "/nowhere.yaml"),
        (None, &[("PRINCIPIUM_RESTORE_TEMPERATURE", "90")], &[], "must be below"),
        (None, &[("PRINCIPIUM_IGNORED_XIDS", "many")], &[], "invalid digit"),
    ] {
        let said = configuration(file, variables, flags);
        assert!(said.contains(part), "{said}");
    }
}
