//! Which classes of transformers are computed, and as what. The one table that the error about all others is made from.

use super::plan::Plan;
use super::{bert_config, decoders, encoders, nomic};

/// Models that differ in their weights' names and sizes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    Roberta,
    DistilBert,
    NomicBert,
    ModernBert,
    Gte,
    Jina,
    Qwen3,
    Gemma3,
}

/// What stands on top of the encoder, as far as the class says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Top {
    /// Nothing: the sentence-transformers files say how states become a vector.
    Bare,
    /// Weights of words, where no pooling is configured: SPLADE.
    MaskedLm,
    /// Labels.
    Classifier,
    /// One vector a token.
    Colbert,
}

/// How the hidden states are computed.
#[derive(Debug, Clone)]
pub(super) enum Backbone {
    Bert(bert_config::BertConfig),
    Transformer(Plan),
}

const CLASSES: &[(&str, Family, Top)] = &[
    ("BertModel", Family::Bert, Top::Bare),
    ("BertForMaskedLM", Family::Bert, Top::MaskedLm),
    ("BertForSequenceClassification", Family::Bert, Top::Classifier),
    ("HF_ColBERT", Family::Bert, Top::Colbert),
    ("RobertaModel", Family::Roberta, Top::Bare),
    ("RobertaForMaskedLM", Family::Roberta, Top::MaskedLm),
    ("RobertaForSequenceClassification", Family::Roberta, Top::Classifier),
    ("XLMRobertaModel", Family::Roberta, Top::Bare),
    ("XLMRobertaForMaskedLM", Family::Roberta, Top::MaskedLm),
    ("XLMRobertaForSequenceClassification", Family::Roberta, Top::Classifier),
    ("CamembertModel", Family::Roberta, Top::Bare),
    ("CamembertForMaskedLM", Family::Roberta, Top::MaskedLm),
    ("CamembertForSequenceClassification", Family::Roberta, Top::Classifier),
    ("DistilBertModel", Family::DistilBert, Top::Bare),
    ("DistilBertForMaskedLM", Family::DistilBert, Top::MaskedLm),
    ("DistilBertForSequenceClassification", Family::DistilBert, Top::Classifier),
    ("NomicBertModel", Family::NomicBert, Top::Bare),
    ("ModernBertModel", Family::ModernBert, Top::Bare),
    ("ModernBertForMaskedLM", Family::ModernBert, Top::MaskedLm),
    ("ModernBertForSequenceClassification", Family::ModernBert, Top::Classifier),
    ("NewModel", Family::Gte, Top::Bare),
    ("NewForSequenceClassification", Family::Gte, Top::Classifier),
    ("GteModel", Family::Gte, Top::Bare),
    ("GteForSequenceClassification", Family::Gte, Top::Classifier),
    ("JinaBertModel", Family::Jina, Top::Bare),
    ("JinaBertForMaskedLM", Family::Jina, Top::Bare),
    ("JinaBertForSequenceClassification", Family::Jina, Top::Classifier),
    ("Qwen3Model", Family::Qwen3, Top::Bare),
    ("Qwen3ForCausalLM", Family::Qwen3, Top::Bare),
    ("Gemma3TextModel", Family::Gemma3, Top::Bare),
];

/// The classes that are computed, for the error about any other one.
pub fn supported() -> String {
    CLASSES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
}

/// What a class of transformers is; `None` for one that is not computed.
pub(super) fn class(name: &str) -> Option<(Family, Top)> {
    CLASSES.iter().find(|(known, ..)| *known == name).map(|(_, family, top)| (*family, *top))
}

impl Family {
    /// The backbone that a `config.json` describes; in words what of it is not computed.
    pub(super) fn backbone(self, config: &serde_json::Value) -> Result<Backbone, String> {
        match self {
            Self::Bert => bert_config::bert(config).map(Backbone::Bert),
            Self::Roberta => bert_config::roberta(config).map(Backbone::Bert),
            Self::DistilBert => bert_config::distilbert(config).map(Backbone::Bert),
            Self::NomicBert => nomic::nomic_bert(config).map(Backbone::Transformer),
            Self::ModernBert => encoders::modern_bert(config).map(Backbone::Transformer),
            Self::Gte => encoders::gte(config).map(Backbone::Transformer),
            Self::Jina => encoders::jina(config).map(Backbone::Transformer),
            Self::Qwen3 => decoders::qwen3(config).map(Backbone::Transformer),
            Self::Gemma3 => decoders::gemma3(config).map(Backbone::Transformer),
        }
    }

    /// Where checkpoints with something on top keep the encoder.
    pub(super) fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Bert | Self::Jina => &["bert"],
            Self::Roberta => &["roberta"],
            Self::DistilBert => &["distilbert"],
            Self::NomicBert => &["nomic_bert", "bert"],
            Self::ModernBert | Self::Qwen3 | Self::Gemma3 => &["model"],
            Self::Gte => &["new", "gte"],
        }
    }
}

impl Backbone {
    /// The table of words among the encoder's weights.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Bert(_) => "embeddings.word_embeddings.weight".to_owned(),
            Self::Transformer(plan) => format!("{}.weight", plan.names.words),
        }
    }

    /// Width of the hidden states.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Bert(config) => config.hidden_size,
            Self::Transformer(plan) => plan.width,
        }
    }

    /// The most tokens that the weights can take.
    pub(super) fn positions(&self) -> usize {
        match self {
            Self::Bert(config) => config.max_position_embeddings - config.first_position,
            Self::Transformer(plan) => plan.positions,
        }
    }

    /// Added to the variance in layer normalization.
    pub(super) fn epsilon(&self) -> f64 {
        match self {
            Self::Bert(config) => config.layer_norm_eps,
            Self::Transformer(plan) => plan.epsilon,
        }
    }
}
