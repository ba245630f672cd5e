//! The program on local files: `embed`, `rerank`, `bench`.

use super::fixture::Fixture;
use super::models::{first_state, folder, unnormalized};
use super::server::{cosine, floats};
use principium_embedder::model::{Truncation, normalize};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_principium-embedder")).args(arguments).output().unwrap()
}

/// Lines of the output, and what was said beside it.
#[track_caller]
fn lines(arguments: &[&str]) -> (Vec<String>, String) {
    let output = run(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect(), said)
}

/// Lines of the output for what is put in on standard input.
#[track_caller]
fn fed(arguments: &[&str], input: &str) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It is closed behind that, so that the program sees its end.
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = String::from_utf8(output.stdout).unwrap();
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn files_become_vectors_in_the_order_of_their_texts() {
    let model = folder("bge-m3").display().to_string();
    let expected = std::fs::read_to_string(folder("bge-m3").join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let expected = expected["references"].as_array().unwrap();
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    let texts: Vec<&str> = expected.iter().map(|row| row["text"].as_str().unwrap()).collect();
    // More than one chunk, in two files of different kinds.
    std::fs::write(path("a.txt"), texts.join("\n\n")).unwrap();
    let json: Vec<String> =
        (0..150).map(|index| json!({ "text": texts[index % texts.len()] }).to_string()).collect();
    std::fs::write(path("b.jsonl"), json.join("\n")).unwrap();
    let (_, said) = lines(&[
        "embed",
        "--model",
        &model,
        "--output",
        &path("out"),
        "--with-text",
        &path("a.txt"),
        &path("b.jsonl"),
    ]);
    assert!(said.contains("154 texts, ") && said.contains("tokens/s"), "{said}");
    let found: Vec<Value> = std::fs::read_to_string(path("out"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(found.len(), 154);
    assert_eq!((&found[1]["source"], &found[1]["line"]), (&json!(path("a.txt")), &json!(3)));
    for (index, line) in found.iter().enumerate() {
        let row = &expected[index % texts.len()];
        assert_eq!(line["text"], row["text"], "line {index}");
        let off = floats(&line["dense"])
            .iter()
            .zip(floats(&row["vector"]))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(off < 1e-4, "line {index} is off by {off}");
        assert!(line["sparse"]["indices"].is_array() && line["multi_vector"].is_array());
    }
    let (dense, _) =
        lines(&["embed", "--model", &model, "--outputs", "dense", "--dimensions", "4", &path("a.txt")]);
    let line: Value = serde_json::from_str(&dense[0]).unwrap();
    assert_eq!((floats(&line["dense"]).len(), line.get("sparse"), line.get("text")), (4, None, None));
    for (arguments, says) in [
        (vec!["embed", "--model", &model, "/no/such/file"], "opening /no/such/file"),
        (vec!["embed", "--model", "/no/such/model", &path("a.txt")], "/no/such/model/config.json"),
        (
            vec!["embed", "--model", &model, "--outputs", "colour", &path("a.txt")],
            "\"colour\" is none of dense",
        ),
        (vec!["rerank", "--model", &model, "--query", "a", &path("a.txt")], "needs a model with labels"),
        (vec!["embed", "--model", &model], "<FILES>..."),
    ] {
        let output = run(&arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(says), "{arguments:?}: {said}");
    }
}

#[test]
fn vectors_have_the_length_that_the_model_or_the_last_flag_says() {
    let expected = std::fs::read_to_string(folder("modernbert").join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let row = &expected["references"][0];
    let (unit, own) = (floats(&row["vector"]), first_state(row));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), row["text"].as_str().unwrap()).unwrap();
    let copy = unnormalized("cosine");
    let path = |path: &std::path::Path| path.display().to_string();
    let (without, with, texts) = (path(copy.path()), path(&folder("modernbert")), path(file.path()));
    for (model, flags, expected) in [
        (&without, &["--normalize"][..], &unit),
        (&without, &[], &own),
        (&without, &["--normalize", "--no-normalize"], &own),
        (&with, &[], &unit),
        (&with, &["--no-normalize"], &own),
        (&with, &["--no-normalize", "--normalize"], &unit),
    ] {
        let arguments = [&["embed", "--model", model.as_str()][..], flags, &[texts.as_str()]].concat();
        let line: Value = serde_json::from_str(&lines(&arguments).0[0]).unwrap();
        let found = floats(&line["dense"]);
        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(found.len() == expected.len() && off < 1e-4, "{arguments:?} is off by {off}");
    }
}

#[test]
fn texts_have_the_prompt_of_their_side_or_the_one_that_is_named() {
    let fixture = Fixture::load("nomic-bert");
    let vector = |prompt: &str| {
        let input = fixture.tokenizer.prompted(prompt, "a hot card", Truncation::DropEnd).unwrap();
        let mut vector = fixture.run(&[input]).remove(0).vector;
        normalize(&mut vector);
        json!(vector)
    };
    let (query, document) = (vector("search query : "), vector("search document : "));
    assert!(cosine(&floats(&query), &floats(&document)) < 0.999, "the test would see no difference");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a hot card").unwrap();
    let (model, text) = (folder("nomic-bert").display().to_string(), file.path().display().to_string());
    let cases: [(&[&str], &Value); 5] = [
        (&[], &document),
        (&["--query"], &query),
        (&["--prompt-name", "query"], &query),
        (&["--prompt-name", "document"], &document),
        (&["--query", "--prompt-name", "document"], &document),
    ];
    for (flags, expected) in cases {
        let arguments = [&["embed", "--model", model.as_str()][..], flags, &[text.as_str()]].concat();
        let line: Value = serde_json::from_str(&lines(&arguments).0[0]).unwrap();
        let found: Vec<f32> = serde_json::from_value(line["dense"].clone()).unwrap();
        fixture.close(&format!("vectors with {flags:?}"), &found, expected);
    }
    let output = run(&["embed", "--model", &model, "--prompt-name", "x", &text]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("the model has no prompt \"x\""), "{said}");
}

#[test]
fn numbers_are_of_the_format_that_the_flag_or_the_variable_names() {
    let expected = std::fs::read_to_string(folder("bert").join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let row = &expected["references"][0];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), row["text"].as_str().unwrap()).unwrap();
    let embed = |flags: &[&str], variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
        command.args(["embed", "--model"]).arg(folder("bert")).args(flags).arg(file.path());
        command.env("PRINCIPIUM_DTYPE", variable).output().unwrap()
    };
    let cases: [(&[&str], &str, bool); 4] = [
        (&[], "", true),
        (&["--dtype", "int8"], "", false),
        (&[], "int8", false),
        (&["--dtype", "f32"], "int8", true),
    ];
    for (flags, variable, exact) in cases {
        let output = embed(flags, variable);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (found, expected) = (floats(&line["dense"]), floats(&row["vector"]));
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(cosine(&found, &expected) > 0.98, "{flags:?} {variable}: {found:?}");
        assert_eq!(off < 1e-4, exact, "{flags:?} {variable}: off by {off}");
    }
    let output = embed(&["--dtype", "f16"], "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("choose f32, bf16 or int8"), "{said}");
}

#[test]
fn a_hyphen_is_standard_input() {
    let (embedder, reranker) =
        (folder("bert").display().to_string(), folder("xlm-roberta-reranker").display().to_string());
    let embed = ["embed", "--model", &embedder, "--with-text"];
    let text = "a hot card\n\na cold drink\n";
    let objects = "{\"body\":\"a hot card\"}\n{\"body\":\"a cold drink\"}\n";
    let rerank = ["rerank", "--model", &reranker, "--query", "hot", "--json", "-"];
    let hot = (Some(1), "a hot card");
    let cold = |line: u64| (Some(line), "a cold drink");
    for (arguments, input, expected) in [
        ([&embed[..], &["-"]].concat(), text, vec![hot, cold(3)]),
        ([&embed[..], &["--field", "body", "-"]].concat(), objects, vec![hot, cold(2)]),
        ([&embed[..], &["--whole-files", "-"]].concat(), text, vec![(None, text)]),
        (rerank.to_vec(), text, vec![hot, cold(3)]),
    ] {
        let mut found = fed(&arguments, input);
        // Those of `rerank` come in the order of their scores.
        found.sort_by_key(|line| line["line"].as_u64());
        assert!(found.iter().all(|line| line["source"] == "-"), "{arguments:?}: {found:?}");
        let texts: Vec<_> =
            found.iter().map(|line| (line["line"].as_u64(), line["text"].as_str().unwrap())).collect();
        assert_eq!(texts, expected, "{arguments:?}");
    }
}

#[test]
fn files_are_ranked_by_a_query() {
    let model = folder("xlm-roberta-reranker").display().to_string();
    let expected = std::fs::read_to_string(folder("xlm-roberta-reranker").join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    // The first two pairs have the same query.
    let pairs = &expected["references"].as_array().unwrap()[..2];
    let texts: Vec<&str> = pairs.iter().map(|row| row["pair"][1].as_str().unwrap()).collect();
    std::fs::write(file.path(), texts.join("\n")).unwrap();
    let path = file.path().display().to_string();
    let query = pairs[0]["pair"][0].as_str().unwrap();
    let (found, _) = lines(&["rerank", "--model", &model, "--query", query, "--json", &path]);
    let found: Vec<Value> = found.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let score = |row: &Value| row["score"].as_f64().unwrap();
    assert!(found.len() == 2 && score(&found[0]) >= score(&found[1]), "{found:?}");
    for line in &found {
        let row = &pairs[usize::try_from(line["line"].as_u64().unwrap()).unwrap() - 1];
        let logit = row["logits"][0].as_f64().unwrap();
        assert!((score(line) - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-4, "{line}");
    }
    let (best, _) = lines(&["rerank", "--model", &model, "--query", query, "--top", "1", &path]);
    assert!(best.len() == 1 && best[0].contains(&format!("{path}:")), "{best:?}");
}

#[test]
fn who_reads_only_the_beginning_is_no_failure() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a hot card\na cold drink\n").unwrap();
    let path = file.path().display().to_string();
    let (embedder, reranker) =
        (folder("bert").display().to_string(), folder("xlm-roberta-reranker").display().to_string());
    for arguments in [
        vec!["embed", "--model", &embedder, &path],
        vec!["rerank", "--model", &reranker, "--query", "hot", &path],
        vec!["rerank", "--model", &reranker, "--query", "hot", "--json", &path],
        vec!["bench", "--model", &embedder, "--tokens", "8", "--texts", "2", "--seconds", "0"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
        let mut child =
            command.args(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn on_a_terminal_a_bar_shows_how_far_it_is_and_is_gone_at_the_end() {
    let (embedder, reranker) =
        (folder("bert").display().to_string(), folder("xlm-roberta-reranker").display().to_string());
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    let (few, many, vectors) = (path("few.txt"), path("many.txt"), path("vectors"));
    std::fs::write(&few, "a hot card\na cold drink\na warm day\n").unwrap();
    // A thread draws the bars of `rerank` and `bench`: with less to do they could be gone before it begins.
    std::fs::write(&many, ("a pod asks for units of memory . ".repeat(8) + "\n").repeat(4000)).unwrap();
    // What is run, by what its bar is known, what that shows in the end, and what is left.
    let cases: [(&[&str], &str, &str, &str); 3] = [
        (
            &["embed", "--model", &embedder, "--output", &vectors, &few],
            " left",
            "35 B/35 B, 3 texts, ",
            "3 texts, ",
        ),
        (
            &["rerank", "--model", &reranker, "--query", "hot", "--top", "1", &many],
            " left",
            "/4000 texts, ",
            "4000 texts, ",
        ),
        (
            &["bench", "--model", &embedder, "--tokens", "8", "--texts", "64", "--seconds", "1"],
            "many texts",
            "/1 s, many texts",
            "one text of 8 tokens alone, ",
        ),
    ];
    for (arguments, known, shows, stays) in cases {
        let mut line = format!("'{}'", env!("CARGO_BIN_EXE_principium-embedder"));
        line.extend(arguments.iter().map(|argument| format!(" '{argument}'")));
        // It runs the command on a pseudo-terminal, and repeats what is written to that.
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::null());
        let output = terminal.env("TERM", "xterm").output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{shown:?}");
        let erased = "\x1b[2K";
        let (before, after) =
            shown.rsplit_once(erased).unwrap_or_else(|| panic!("nothing was erased: {shown:?}"));
        let bar = before.rsplit(erased).find(|drawn| drawn.contains(known));
        assert!(bar.is_some_and(|bar| bar.contains(shows)), "{shown:?}");
        assert!(after.contains(stays) && after.contains("tokens/s") && !after.contains(known), "{shown:?}");
    }
    let (_, said) = lines(&["embed", "--model", &embedder, "--output", &vectors, &few]);
    assert!(said.contains("3 texts, ") && !said.contains(" left"), "{said}");
}

#[test]
fn a_model_is_measured() {
    let (embedder, reranker) =
        (folder("modernbert").display().to_string(), folder("xlm-roberta-reranker").display().to_string());
    let bench = |model: &str, more: &[&str]| {
        let arguments = ["bench", "--model", model, "--tokens", "40", "--texts", "16", "--seconds", "0"];
        run(&[&arguments[..], more].concat())
    };
    let measured: [(&str, &[&str]); 2] = [(&embedder, &[]), (&reranker, &["--reranker"])];
    for (model, more) in measured {
        let output = bench(model, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && !said.contains("many texts"), "{said}");
        let text = String::from_utf8(output.stdout).unwrap();
        let found: Vec<&str> = text.lines().collect();
        let whole = found[0].starts_with("16 texts, 640 tokens in ") && found[0].ends_with(" tokens/s");
        assert!(whole, "{found:?}");
        assert!(found[1].starts_with("one text of 40 tokens alone, 20 times: p50 "), "{found:?}");
    }
    let refused: [(&str, &[&str], &str); 2] = [
        (&embedder, &["--reranker"], "needs a model with labels"),
        (&reranker, &[], "needs a model that embeds texts"),
    ];
    for (model, more, says) in refused {
        let output = bench(model, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(says), "{said}");
    }
}
