//! Glob patterns: `*` stays within a folder, `**` does not.

use super::Filter;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// A filter of patterns; without any to include, everything is.
pub fn filter(include: &[String], exclude: &[String]) -> Result<Filter, String> {
    let include = if include.is_empty() { None } else { Some(set("source.include", include)?) };
    Ok(Filter { include, exclude: set("source.exclude", exclude)? })
}

fn set(field: &str, patterns: &[String]) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(glob.map_err(|error| format!("{field} has {pattern:?}: {}", error.kind()))?);
    }
    set.build().map_err(|error| format!("{field}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_by_path() {
        let strings = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (include, exclude, name, taken) in [
            (&[][..], &[][..], "a/b.md", true),
            (&["*.md"], &[], "a.md", true),
            (&["*.md"], &[], "a/b.md", false),
            (&["**/*.md"], &[], "a/b/c.md", true),
            (&["**/*.md"], &[], "c.md", true),
            (&["**/*.{md,txt}"], &["drafts/**"], "drafts/x.md", false),
            (&[], &["**/.*"], "a/.hidden", false),
        ] {
            let filter = filter(&strings(include), &strings(exclude)).unwrap();
            assert_eq!(filter.takes(name), taken, "{include:?} {exclude:?} {name}");
        }
    }
}
