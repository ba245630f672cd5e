//! The operator's requests, from the API server's audit log.

use anyhow::{Context, Result};
use principium_local_cluster::control_plane::ControlPlane;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};

/// The audit log, read as it grows.
pub struct Audit(BufReader<File>);

/// Requests by verb and resource.
#[derive(Default)]
pub struct Requests(BTreeMap<String, usize>);

impl Audit {
    pub fn open(plane: &ControlPlane) -> Result<Self> {
        let path = plane.audit_log();
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut audit = Self(BufReader::new(file));
        audit.skip()?;
        Ok(audit)
    }

    /// Leaves out what has happened so far.
    pub fn skip(&mut self) -> Result<()> {
        self.count().map(drop)
    }

    /// What has happened since the last look. The leader's own Lease is left out: it is renewed whatever happens.
    pub fn count(&mut self) -> Result<Requests> {
        let mut found = Requests::default();
        let mut line = String::new();
        while self.0.read_line(&mut line)? > 0 {
            let event: Value = serde_json::from_str(&line)?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let object = &event["objectRef"];
            let resource = match text(&object["subresource"]) {
                none if none.is_empty() => text(&object["resource"]),
                subresource => format!("{}/{subresource}", text(&object["resource"])),
            };
            if resource != "leases" {
                *found.0.entry(format!("{} {resource}", text(&event["verb"]))).or_default() += 1;
            }
            line.clear();
        }
        Ok(found)
    }
}

impl Requests {
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    /// The requests for one of so many changes.
    pub fn each(&self, changes: usize) -> String {
        let share = |count: usize| count as f64 / changes.max(1) as f64;
        let parts: Vec<String> =
            self.0.iter().map(|(what, count)| format!("{:.1} {what}", share(*count))).collect();
        format!("{:.1} ({})", share(self.total()), parts.join(", "))
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(what, count)| format!("{count} {what}")).collect();
        write!(f, "{} ({})", self.total(), parts.join(", "))
    }
}
