//! `cargo xtask generate`: the API crate's own generator, which knows the types; xtask does not compile them.

use anyhow::Result;

/// Writes the generated files, or fails where one differs.
pub fn run(check: bool) -> Result<()> {
    let mut cargo = crate::cargo();
    cargo.args(["run", "--quiet", "--package", "principium-api", "--example", "generate", "--"]);
    if check {
        cargo.arg("--check");
    }
    crate::run(&mut cargo)
}
