//! What the heuristics of the doc analyzer see of a document on its way, told with its end.

use crate::analyze::duplicates::Signature;
use crate::analyze::{self, NearDuplicate};
use crate::format::Extracted;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// What can be seen of a document.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct About {
    /// What kind of document it is.
    pub document_type: &'static str,
    /// ISO 639-3 code of its language.
    pub language: &'static str,
    /// How often it holds what looks like personal data, by its kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub personal_data: BTreeMap<&'static str, usize>,
    /// A document of the same job that says nearly the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near_duplicate_of: Option<NearDuplicate>,
    /// What it is compared with others by.
    #[serde(skip)]
    pub signature: Option<Signature>,
}

impl About {
    /// Looks at a document.
    pub fn of(document: &Extracted) -> Self {
        let analysis = analyze::analyze(document, None);
        Self {
            document_type: analysis.document_type,
            language: analysis.language.code,
            personal_data: analysis.personal_data.iter().map(|found| (found.kind, found.count)).collect(),
            near_duplicate_of: None,
            signature: Signature::of(&document.text),
        }
    }
}
