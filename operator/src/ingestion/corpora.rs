//! Ingestions that fill one corpus, and whether they say the same of where its chunks go: a corpus has one sink, that of its last
//! job, so that two of them would take it from one another at every run.

use crate::conditions::{SINK_AGREED, Verdict, reason};
use crate::observed::Observed;
use principium_api::ingestion::Ingestion;
use std::collections::BTreeMap;

/// All Ingestions by the corpus that they fill.
pub struct Corpora<'a>(BTreeMap<Corpus<'a>, Vec<&'a Ingestion>>);

/// A corpus by namespace, DataFactory and name.
type Corpus<'a> = (&'a str, &'a str, &'a str);

impl<'a> Corpora<'a> {
    pub fn read(observed: &'a Observed) -> Self {
        let mut found: BTreeMap<_, Vec<&Ingestion>> = BTreeMap::new();
        for resource in observed.ingestions.iter().filter(|it| it.metadata.deletion_timestamp.is_none()) {
            found.entry(corpus(resource)).or_default().push(resource);
        }
        Self(found)
    }

    /// Whether the others that fill the corpus of an Ingestion name its sink; nothing where none of them names one.
    pub fn sink(&self, resource: &Ingestion) -> Option<Verdict> {
        let own = resource.spec.sink.as_ref()?;
        let (_, _, corpus) = corpus(resource);
        let all = self.0.get(&self::corpus(resource))?;
        let others = || all.iter().filter(|other| other.metadata.name != resource.metadata.name);
        let named = || others().filter_map(|other| Some((other, other.spec.sink.as_ref()?)));
        let name = |other: &Ingestion| other.metadata.name.clone().unwrap_or_default();
        let verdict = |status, reason, message| {
            Some(Verdict { type_: SINK_AGREED, status: Some(status), reason, message })
        };
        match named().find(|(_, sink)| *sink != own) {
            Some((other, _)) => verdict(
                false,
                reason::OTHER_SINK,
                format!(
                    "Ingestion {} fills the corpus {corpus:?} too, and names another sink: the corpus has that of the last run, \
                     and all of it is sent there anew; name the same sink in both, or another corpus",
                    name(other)
                ),
            ),
            None => named().next().and_then(|(other, _)| {
                let message =
                    format!("Ingestion {} fills the corpus {corpus:?} too, with the same sink", name(other));
                verdict(true, reason::SAME_SINK, message)
            }),
        }
    }
}

fn corpus(resource: &Ingestion) -> Corpus<'_> {
    let name = resource.metadata.name.as_deref().unwrap_or_default();
    let spec = &resource.spec;
    (
        resource.metadata.namespace.as_deref().unwrap_or_default(),
        &spec.data_factory_ref.name,
        spec.corpus.as_deref().unwrap_or(name),
    )
}
