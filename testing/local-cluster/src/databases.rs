//! The database server that tests of sinks use: the content of a Python package, pinned by its digest.

use crate::command::run;
use crate::models::{Package, once, unpack};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// PostgreSQL 16 with pgvector 0.6.
const POSTGRES: Package = Package {
    name: "pgserver",
    version: "0.1.4",
    archive: "pgserver-0.1.4-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    digest: "d595789b47624a3d963aa9aa6359da9be31beb7e61f1a45541953242068b8813",
    // All of it: the programs look for their libraries beside the folder that they are in.
    folder: "",
};

/// Downloads, verifies and unpacks PostgreSQL where it is missing; returns its folder, with the programs in
/// `pgserver/pginstall/bin`.
///
/// # Errors
/// When the package can't be had or is not what was pinned.
pub fn fetch_postgres(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("databases/postgres-pgserver-0.1.4");
    once(&folder, "pgserver/pginstall/bin/postgres", |partial| {
        unpack(&POSTGRES, cache, partial)?;
        // The archive's modes are lost where it is unpacked.
        run(Command::new("chmod").args(["-R", "a+rX"]).arg(partial))?;
        run(Command::new("chmod").args(["-R", "a+x"]).arg(partial.join("pgserver/pginstall/bin"))).map(drop)
    })?;
    Ok(folder)
}
