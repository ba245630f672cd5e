//! Whose the files of a corpus are. Several sources may fill one; each takes out what it no longer has, and nothing else.

use super::corpus::FileRecord;
use super::request::JobSpec;
use crate::sources::{Filter, SourceSpec};

/// Who looks after a file: a source by its place, or by the name that its job gave to it. Both are empty for an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// What tells the place from others. Versions hold in it, whatever the source is called.
    pub place: String,
    /// The source's name; empty where there is none.
    pub name: String,
}

impl Owner {
    /// The owner of what a job's source has.
    pub fn of(spec: &JobSpec) -> Self {
        Self {
            place: spec.source.as_ref().map(SourceSpec::identity).unwrap_or_default(),
            name: spec.source_id.clone().unwrap_or_default(),
        }
    }

    /// Whether a file goes from the corpus because this source does not list it. `filter` is what the source lets through.
    ///
    /// A file with a name goes by that alone, so that a source which has moved leaves nothing behind. One without a name was
    /// kept before its source had one, or by a job that gave none, and others may have filled the corpus from the same place.
    /// What a source with a name lists of these it adopts. What it does not list although its patterns let it through has gone
    /// from the place itself, whosever it was. Of the rest, and of any address of HTTP, nobody can tell whose it was: it stays,
    /// because one document too many can be deleted by its id, and one that was another's would be missing.
    pub fn loses(&self, id: &str, file: &FileRecord, filter: Option<&Filter>) -> bool {
        match (self.name.as_str(), file.source_id.as_str()) {
            ("", "") => file.source == self.place,
            (_, "") => file.source == self.place && filter.is_some_and(|filter| filter.takes(id)),
            (own, name) => own == name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_source_loses_what_is_its_own_and_of_what_is_nobodys_what_its_place_no_longer_has() {
        let source = json!({ "type": "folder", "path": "docs", "include": ["*.md"] });
        let source: SourceSpec = serde_json::from_value(source).unwrap();
        let filter = source.filter().unwrap();
        for (own, place, name, id, loses) in [
            ("", "p", "", "a.md", true),
            ("", "p", "", "a.txt", true),
            ("", "q", "", "a.md", false),
            ("", "", "", "upload.md", false),
            ("", "p", "one", "a.md", false),
            ("one", "p", "one", "a.md", true),
            ("one", "q", "one", "a.txt", true),
            ("one", "p", "two", "a.md", false),
            ("one", "p", "", "a.md", true),
            ("one", "p", "", "a.txt", false),
            ("one", "q", "", "a.md", false),
            ("one", "", "", "upload.md", false),
        ] {
            let owner = Owner { place: "p".to_owned(), name: own.to_owned() };
            let (source, source_id) = (place.to_owned(), name.to_owned());
            let file = FileRecord { source, source_id, ..FileRecord::default() };
            let case = format!("{own:?} {place:?} {name:?} {id:?}");
            assert_eq!(owner.loses(id, &file, filter.as_ref()), loses, "{case}");
        }
        let addresses = SourceSpec::Http { urls: vec!["http://a/b".to_owned()] };
        assert!(addresses.filter().unwrap().is_none());
        let owner = Owner { place: "p".to_owned(), name: "one".to_owned() };
        let file = FileRecord { source: "p".to_owned(), ..FileRecord::default() };
        assert!(!owner.loses("http://a/c", &file, None), "it may be another's");
    }

    #[test]
    fn a_file_that_was_kept_before_sources_had_names_has_none() {
        let kept = json!({ "digest": "d", "recipe": "r", "source": "s", "job": "j", "whole": true, "unchanged": 0, "documents": ["a"] });
        let file: FileRecord = serde_json::from_value(kept.clone()).unwrap();
        assert_eq!((file.source.as_str(), file.source_id.as_str()), ("s", ""));
        assert_eq!(serde_json::to_value(&file).unwrap(), kept, "an older program reads it");
    }
}
