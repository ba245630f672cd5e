//! Puts the simulated driver where another container finds it: how a chart brings it to a node without a GPU.

use crate::LIBRARY_NAME;
use crate::store::SimError;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the program that is installed beside the library.
const PROGRAM_NAME: &str = "principium-gpu-sim";

/// Copies `library` as `libnvidia-ml.so.1` and `program` as `principium-gpu-sim` to `directory`, replacing older ones.
/// Returns what was written.
///
/// # Errors
/// If a file cannot be read or written.
pub fn install(library: &Path, program: &Path, directory: &Path) -> Result<Vec<PathBuf>, SimError> {
    fs::create_dir_all(directory).map_err(SimError::file("create the directory", directory))?;
    [(library, LIBRARY_NAME), (program, PROGRAM_NAME)]
        .into_iter()
        .map(|(source, name)| {
            let target = directory.join(name);
            let new = directory.join(format!(".{name}.new"));
            // By a rename, so that a program that has the old library open keeps its copy.
            fs::copy(source, &new).map_err(SimError::file("copy", source))?;
            fs::rename(&new, &target).map_err(SimError::file("replace", &target))?;
            Ok(target)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_installation_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let [library, program] = ["library.so", "program"].map(|name| directory.path().join(name));
        let target = directory.path().join("target");
        for content in ["old", "new"] {
            fs::write(&library, content).unwrap();
            fs::write(&program, content).unwrap();
            install(&library, &program, &target).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [LIBRARY_NAME, PROGRAM_NAME]);
        assert_eq!(fs::read_to_string(target.join(LIBRARY_NAME)).unwrap(), "new");
    }

    #[test]
    fn a_missing_library_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none.so");
        let error = install(&missing, &missing, directory.path()).unwrap_err().to_string();
        assert!(error.contains("none.so"), "{error}");
    }
}
