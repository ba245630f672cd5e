//! Every architecture and every head against its reference implementation, on the small models with random weights that
//! `fixtures/make_models.py` writes; and what of a model's files is refused.

use super::fixture::{CLASSIFIERS, FAMILIES, Fixture, MARKED, WORDS};
use super::server::{cosine, start};
use principium_embedder::model::{
    Input, Model, ModelFiles, Precision, Side, Similarity, Truncation, Wants, load_tokenizer, normalize,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokenizers::{TruncationDirection, TruncationParams};

pub use super::fixture::folder;

#[test]
fn hidden_states_and_vectors_are_those_of_the_reference() {
    for name in FAMILIES {
        let fixture = Fixture::load(name);
        let together = fixture.run(&fixture.inputs(Wants::STATES));
        for (output, row) in together.iter().zip(&fixture.references) {
            fixture.close("states", &output.states.concat(), &row["states"]);
        }
        for (mut output, row) in fixture.run(&fixture.prompted()).into_iter().zip(&fixture.references) {
            assert_eq!(output.vector.len(), fixture.files.heads.dense.as_ref().unwrap().width);
            normalize(&mut output.vector);
            fixture.close("vectors", &output.vector, &row["vector"]);
            assert!(output.states.is_empty() && output.sparse.is_empty() && output.multi.is_empty());
        }
    }
}

#[test]
fn smaller_number_formats_keep_the_directions_of_every_architecture() {
    for (precision, least) in [(Precision::Bf16, 0.999), (Precision::Int8, 0.98)] {
        for name in FAMILIES {
            let fixture = Fixture::load(name);
            let coarse = Model::load(&fixture.files, None, precision).unwrap();
            let inputs = fixture.inputs(Wants::VECTOR);
            let coarse = coarse.run(&inputs.iter().collect::<Vec<_>>()).unwrap();
            for (coarse, exact) in coarse.iter().zip(fixture.run(&inputs)) {
                let [one, two] = [&coarse.vector, &exact.vector]
                    .map(|vector| vector.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                let cosine = cosine(&one, &two);
                assert!(cosine > least, "{name} in {}: cosine {cosine}", precision.name());
            }
        }
    }
}

#[test]
fn logits_are_those_of_the_reference() {
    for (name, labels) in CLASSIFIERS {
        let fixture = Fixture::load(name);
        assert_eq!(fixture.files.heads.labels.as_deref().unwrap(), labels);
        for (output, row) in fixture.run(&fixture.inputs(Wants::VECTOR)).iter().zip(&fixture.references) {
            fixture.close("logits", &output.vector, &row["logits"]);
        }
    }
}

#[test]
fn weights_of_words_are_those_of_the_reference() {
    for name in WORDS {
        let fixture = Fixture::load(name);
        for (output, row) in fixture.run(&fixture.inputs(Wants::SPARSE)).iter().zip(&fixture.references) {
            let expected = row["sparse"].as_array().unwrap();
            // A weight that is zero but for rounding may be there or not.
            let found: Vec<&(u32, f32)> = output.sparse.iter().filter(|(_, weight)| *weight > 1e-6).collect();
            let expected: Vec<&Value> =
                expected.iter().filter(|pair| pair[1].as_f64().unwrap() > 1e-6).collect();
            let ids: Vec<u32> = found.iter().map(|(id, _)| *id).collect();
            assert_eq!(json!(ids), expected.iter().map(|pair| pair[0].clone()).collect::<Value>(), "{name}");
            let weights: Vec<f32> = found.iter().map(|(_, weight)| *weight).collect();
            fixture.close("weights", &weights, &expected.iter().map(|pair| pair[1].clone()).collect());
        }
    }
}

#[test]
fn camembert_is_roberta_by_another_name() {
    for (name, class, wants) in [
        ("roberta-classifier", "CamembertForSequenceClassification", Wants::VECTOR),
        ("splade-roberta", "CamembertForMaskedLM", Wants::SPARSE),
    ] {
        let fixture = Fixture::load(name);
        let copy = changed(name, "config.json", |it| {
            it["architectures"] = json!([class]);
            it["model_type"] = json!("camembert");
        });
        let files = ModelFiles::read(copy.path()).unwrap();
        assert_eq!(files.architecture, class);
        let model = Model::load(&files, None, Precision::F32).unwrap();
        let inputs = fixture.inputs(wants);
        let found = model.run(&inputs.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(found, fixture.run(&inputs), "{class}");
        assert!(found.iter().any(|output| !output.vector.is_empty() || !output.sparse.is_empty()), "{class}");
    }
}

#[test]
fn vectors_of_tokens_are_those_of_the_reference() {
    let fixture = Fixture::load("bge-m3");
    for (output, row) in fixture.run(&fixture.inputs(Wants::MULTI)).iter().zip(&fixture.references) {
        fixture.close("vectors of tokens", &output.multi.concat(), &row["multi"]);
    }
    for name in MARKED {
        let fixture = Fixture::load(name);
        for (side, field) in [(Side::Query, "query"), (Side::Document, "document")] {
            for (kept, row) in fixture.tokens(side).iter().zip(&fixture.references) {
                fixture.close(field, kept, &row[field]);
            }
        }
    }
}

#[test]
fn one_pass_gives_all_that_is_wanted_and_to_each_what_it_wants() {
    let fixture = Fixture::load("bge-m3");
    let mut inputs = fixture.inputs(Wants::VECTOR | Wants::SPARSE | Wants::MULTI);
    inputs[1].wants = Wants::SPARSE;
    let outputs = fixture.run(&inputs);
    assert!(outputs[1].vector.is_empty() && outputs[1].multi.is_empty() && !outputs[1].sparse.is_empty());
    for index in [0, 2, 3] {
        let alone = fixture.run(&[Input { wants: Wants::VECTOR, ..inputs[index].clone() }]).remove(0);
        assert_eq!(alone.vector.len(), outputs[index].vector.len());
        let off =
            alone.vector.iter().zip(&outputs[index].vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-4, "a text has the same vector in any company, off by {off}");
        assert_eq!(outputs[index].multi.len(), inputs[index].len() - 1);
        assert!(!outputs[index].sparse.is_empty());
    }
}

#[test]
fn a_marked_text_is_as_long_as_its_side_says() {
    let fixture = Fixture::load("colbert");
    let tokenizer = &fixture.tokenizer;
    let long = "hot ".repeat(300);
    for (side, text, length, unseen) in [
        (Side::Document, long.as_str(), fixture.files.max_input_length, 0),
        (Side::Query, &long, 16, 0),
        (Side::Query, "hot", 16, 12),
        (Side::Query, "", 16, 13),
    ] {
        let marked = tokenizer.marked("", text, side, Truncation::DropEnd).unwrap();
        assert_eq!((marked.len(), marked.unseen), (length, unseen), "{side:?}");
        assert_eq!(
            (marked.ids[0], marked.ids[1]),
            (2, if side == Side::Query { 5 } else { 6 }),
            "the marker"
        );
        assert_eq!(marked.ids[length - unseen - 1], 3, "the end");
        assert!(marked.ids[length - unseen..].iter().all(|id| *id == 4), "masks behind it");
    }
    let refused = tokenizer.marked("", &long, Side::Query, Truncation::Refuse).unwrap_err().to_string();
    assert!(refused.contains("303 tokens, and the model takes 16"), "{refused}");
}

#[test]
fn of_a_long_text_the_same_tokens_stay_as_when_the_library_cuts_all_of_it() {
    for name in ["bert", "roberta", "modernbert", "gemma3", "bge-m3", "qwen3", "xlm-roberta-reranker"] {
        let files = ModelFiles::read(&folder(name)).unwrap();
        let tokenizer = load_tokenizer(&files).unwrap();
        let maximum = tokenizer.maximum();
        let text = |word: &str, lines: usize| -> String {
            (0..lines).map(|number| format!("{word} {number} läuft, 热卡\n")).collect()
        };
        // Each line has more than one token, and more than 16 bytes.
        let (long, other, short) = (text("a hot card", maximum), text("cool", maximum), text("warm", 1));
        for (truncation, direction) in [
            (Truncation::DropEnd, TruncationDirection::Right),
            (Truncation::DropStart, TruncationDirection::Left),
        ] {
            let mut library = (*tokenizer.plain()).clone();
            let params = TruncationParams { direction, max_length: maximum, ..TruncationParams::default() };
            library.with_truncation(Some(params)).unwrap();
            let expected = library.encode_fast(long.as_str(), true).unwrap();
            let found = tokenizer.text(&long, truncation).unwrap();
            assert!(found.ids == expected.get_ids(), "{name}, {truncation:?}");
            assert_eq!(found.type_ids, expected.get_type_ids(), "{name}, {truncation:?}");
            for (one, two) in [(&short, &long), (&long, &short), (&long, &other), (&short, &short)] {
                let expected = library.encode_fast((one.as_str(), two.as_str()), true).unwrap();
                let found = tokenizer.pair(one, two, truncation).unwrap();
                assert!(found.ids == expected.get_ids(), "a pair of {name}, {truncation:?}");
                assert_eq!(found.type_ids, expected.get_type_ids(), "a pair of {name}, {truncation:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_text_without_any_token_is_refused_and_its_neighbors_are_told_why() {
    // Without the special tokens that are put around every text.
    let copy = changed("bert", "tokenizer.json", |it| it["post_processor"] = Value::Null);
    let tokenizer = load_tokenizer(&ModelFiles::read(copy.path()).unwrap()).unwrap();
    let says = "an input has no tokens";
    for refused in [
        tokenizer.text("", Truncation::DropEnd),
        tokenizer.prompted("", " ", Truncation::Refuse),
        tokenizer.pair("", "", Truncation::DropStart),
        tokenizer.marked("", "", Side::Document, Truncation::DropEnd),
    ] {
        assert!(refused.unwrap_err().to_string().contains(says));
    }
    assert_eq!(tokenizer.text("hot", Truncation::DropEnd).unwrap().len(), 1);
    let server = start(&["--model", &copy.path().display().to_string()]);
    for inputs in [json!(""), json!(["hot", ""]), json!([[2]])] {
        server.post("/embed", &json!({ "inputs": inputs })).await.refused(422, "Validation", says);
    }
    assert_eq!(server.post("/embed", &json!({ "inputs": ["hot", "card"] })).await.status, 200);
}

#[test]
fn texts_are_put_into_lower_case_where_sentence_transformers_would() {
    let ids = |files: &ModelFiles, text: &str| {
        load_tokenizer(files).unwrap().text(text, Truncation::DropEnd).unwrap().ids
    };
    let own = ModelFiles::read(&folder("bert")).unwrap();
    assert_ne!(ids(&own, "a HOT Card"), ids(&own, "a hot card"));
    let copy = changed("bert", "sentence_bert_config.json", |it| it["do_lower_case"] = json!(true));
    let lower = ModelFiles::read(copy.path()).unwrap();
    assert_eq!(ids(&lower, "a HOT Card"), ids(&own, "a hot card"));
}

#[test]
fn pickled_weights_are_those_of_safetensors() {
    let (pickled, safe) = (Fixture::load("bert-pickled"), Fixture::load("bert"));
    let inputs = safe.inputs(Wants::VECTOR | Wants::STATES);
    assert_eq!(pickled.run(&inputs), safe.run(&inputs));
    assert_ne!(pickled.files.weights_digest, safe.files.weights_digest, "the digest is that of the file");

    let copy = changed("bert-pickled", "config.json", |_| ());
    let of_copy = |name: &str| copy.path().join(name);
    std::fs::rename(of_copy("pytorch_model.bin"), of_copy("pytorch_model-00001-of-00001.bin")).unwrap();
    std::fs::write(of_copy("pytorch_model.bin.index.json"), "{}").unwrap();
    let error = ModelFiles::read(copy.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("weights pickled into several files"), "{error}");
}

/// Copies a model, with some fields of one of its files changed.
pub fn changed(name: &str, file: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in walk(&folder(name)) {
        let target = copy.path().join(entry.strip_prefix(folder(name)).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&entry, target).unwrap();
    }
    let path = copy.path().join(file);
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
    copy
}

/// A model that pools the first token's state and has no module behind that, with the similarity that its files name.
pub fn unnormalized(similarity: &str) -> tempfile::TempDir {
    let copy = changed("modernbert", "modules.json", |it| {
        it.as_array_mut().unwrap().retain(|module| !module["type"].as_str().unwrap().ends_with(".Normalize"));
    });
    let file = json!({ "similarity_fn_name": similarity });
    std::fs::write(copy.path().join("config_sentence_transformers.json"), file.to_string()).unwrap();
    copy
}

/// What `SentenceTransformer.encode()` gives of [`unnormalized`] for a row of the references: the first token's state as it is.
pub fn first_state(row: &Value) -> Vec<f64> {
    let states = row["states"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap());
    states.take(row["vector"].as_array().unwrap().len()).collect()
}

#[test]
fn a_model_without_a_normalization_has_the_length_and_the_similarity_that_its_files_say() {
    let read = |path: &Path| {
        let files = ModelFiles::read(path).unwrap();
        (files.heads.dense.unwrap().normalized, files.similarity)
    };
    for (named, similarity) in
        [("dot", Similarity::Dot), ("cosine", Similarity::Cosine), ("euclidean", Similarity::Cosine)]
    {
        let copy = unnormalized(named);
        assert_eq!(read(copy.path()), (false, similarity), "{named}");
        // Without any modules it is as sentence-transformers would make it, and vectors have length 1.
        std::fs::remove_file(copy.path().join("modules.json")).unwrap();
        assert_eq!(read(copy.path()), (true, Similarity::Cosine), "{named}");
    }
    let copy = unnormalized("dot");
    std::fs::copy(folder("modernbert").join("modules.json"), copy.path().join("modules.json")).unwrap();
    assert_eq!(read(copy.path()), (true, Similarity::Cosine), "at length 1 both are the same");
}

/// All files below a folder.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn weights_in_several_files_are_one_model() {
    let whole = Fixture::load("nomic-bert");
    let copy = changed("nomic-bert", "config.json", |_| ());
    let single = copy.path().join("model.safetensors");
    let all = candle_core::safetensors::load(&single, &candle_core::Device::Cpu).unwrap();
    let mut map = serde_json::Map::new();
    for number in [0, 1] {
        let file = format!("model-0000{number}-of-00002.safetensors");
        let part: HashMap<_, _> =
            all.clone().into_iter().filter(|(name, _)| name.len() % 2 == number).collect();
        assert!(!part.is_empty());
        map.extend(part.keys().map(|name| (name.clone(), json!(file))));
        candle_core::safetensors::save(&part, copy.path().join(file)).unwrap();
    }
    std::fs::remove_file(single).unwrap();
    let index = copy.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let files = ModelFiles::read(copy.path()).unwrap();
    assert_ne!(files.weights_digest, whole.files.weights_digest, "the digest is that of the files");
    let parts = Model::load(&files, None, Precision::F32).unwrap();
    let inputs = whole.inputs(Wants::VECTOR);
    assert_eq!(parts.run(&inputs.iter().collect::<Vec<_>>()).unwrap(), whole.run(&inputs));
    std::fs::remove_file(index).unwrap();
    let error = ModelFiles::read(copy.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the model has no") && error.contains("model.safetensors"), "{error}");
}

#[test]
fn what_would_be_computed_wrongly_is_refused_by_name() {
    type Change = fn(&mut Value);
    let cases: &[(&str, &str, Change, &str)] = &[
        ("bert", "config.json", |it| it["hidden_act"] = json!("relu"), "the activation \"relu\""),
        ("bert", "config.json", |it| it["num_attention_heads"] = json!(5), "5 heads for a width of 32"),
        (
            "bert",
            "config.json",
            |it| it["position_embedding_type"] = json!("relative_key"),
            "\"relative_key\"",
        ),
        ("nomic-bert", "config.json", |it| it["prenorm"] = json!(true), "norms before the branches"),
        (
            "jina-v2",
            "config.json",
            |it| {
                it["auto_map"]["AutoModel"] = json!("jinaai/jina-bert-v2-other--modeling_bert.JinaBertModel");
            },
            "the code \"jina-bert-v2-other\"",
        ),
        (
            "gte",
            "config.json",
            |it| it["rope_scaling"]["type"] = json!("yarn"),
            "the rotary scaling \"yarn\"",
        ),
        ("jina-v2", "config.json", |it| it["position_embedding_type"] = json!("absolute"), "only \"alibi\""),
        ("qwen3", "config.json", |it| it["use_sliding_window"] = json!(true), "a sliding window"),
        ("gemma3", "2_Dense/config.json", |it| it["use_residual"] = json!(true), "a residual"),
        ("roberta", "modules.json", |it| it[1]["type"] = json!("models.LSTM"), "module LSTM"),
        (
            "splade-sum",
            "1_SpladePooling/config.json",
            |it| it["pooling_strategy"] = json!("mean"),
            "the sparse pooling \"mean\"",
        ),
        (
            "splade-log",
            "1_SpladePooling/config.json",
            |it| it["activation_function"] = json!("log"),
            "the activation \"log\" of a sparse pooling",
        ),
        (
            "modernbert",
            "config.json",
            |it| it["architectures"] = json!(["MambaModel"]),
            "\"MambaModel\"; supported are BertModel, ",
        ),
    ];
    for (name, file, change, says) in cases {
        let copy = changed(name, file, change);
        let error = ModelFiles::read(copy.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error:?} does not say {says:?}");
    }
}
