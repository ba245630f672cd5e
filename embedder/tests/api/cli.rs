//! The program on local files: `embed`, `rerank`, `bench`.

use super::models::folder;
use super::server::floats;
use serde_json::{Value, json};
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
    let (program, model) = (env!("CARGO_BIN_EXE_principium-embedder"), folder("bert").display().to_string());
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    std::fs::write(path("a.txt"), "a hot card\na cold drink\na warm day\n").unwrap();
    let embed =
        format!("'{program}' embed --model '{model}' --output '{}' '{}'", path("vectors"), path("a.txt"));
    // It runs the command on a pseudo-terminal, and repeats what is written to that.
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &embed, "/dev/null"]).stdin(Stdio::null());
    let output = terminal.env("TERM", "xterm").output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown:?}");
    let erased = "\x1b[2K";
    let (before, left) = shown.rsplit_once(erased).unwrap_or_else(|| panic!("nothing was erased: {shown:?}"));
    let bar = before.rsplit(erased).find(|drawn| drawn.contains(" left"));
    assert!(bar.is_some_and(|bar| bar.contains("35 B/35 B, 3 texts, ")), "{shown:?}");
    assert!(left.contains("3 texts, ") && left.contains("tokens/s") && !left.contains(" left"), "{shown:?}");
    let (_, said) = lines(&["embed", "--model", &model, "--output", &path("vectors"), &path("a.txt")]);
    assert!(said.contains("3 texts, ") && !said.contains(" left"), "{said}");
}

#[test]
fn a_model_is_measured() {
    let model = folder("modernbert").display().to_string();
    let arguments = ["bench", "--model", &model, "--tokens", "40", "--texts", "16", "--seconds", "0"];
    let (found, _) = lines(&arguments);
    assert!(found[0].starts_with("16 texts, 640 tokens in ") && found[0].ends_with(" tokens/s"), "{found:?}");
    assert!(found[1].starts_with("one text of 40 tokens alone, 20 times: p50 "), "{found:?}");
}
