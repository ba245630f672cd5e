//! Files made to do harm, read by the real program: each is a failure of its own, told in words, and what stands beside it in
//! the job is done.

use super::ollama::{Behavior, instance};
use super::program::Program;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use principium_embedder::format::RESERVE;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// A PDF of these objects, numbered from 1, of which the first is the catalog.
fn pdf(objects: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"%PDF-1.7\n".to_vec();
    let mut places = Vec::new();
    for (number, object) in (1..).zip(objects) {
        places.push(file.len());
        file.extend(format!("{number} 0 obj\n").bytes());
        file.extend(object);
        file.extend(b"\nendobj\n");
    }
    let start = file.len();
    file.extend(format!("xref\n0 {}\n0000000000 65535 f \n", places.len() + 1).bytes());
    for place in &places {
        file.extend(format!("{place:010} 00000 n \n").bytes());
    }
    let size = places.len() + 1;
    file.extend(format!("trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n").bytes());
    file
}

fn stream(entries: &str, content: &[u8]) -> Vec<u8> {
    let mut object = format!("<< {entries} /Length {} >>\nstream\n", content.len()).into_bytes();
    object.extend(content);
    object.extend(b"\nendstream");
    object
}

/// A document of one page, whose content is object 4 and whose forms are those behind it.
fn one_page(content: Vec<u8>, forms: &[Vec<u8>]) -> Vec<u8> {
    let names: Vec<String> =
        (0..forms.len()).map(|number| format!("/F{number} {} 0 R", number + 5)).collect();
    let page = format!(
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /XObject << {} >> >> >>",
        names.join(" ")
    );
    let objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_vec(),
        page.into_bytes(),
        content,
    ];
    pdf(&[&objects, forms].concat())
}

fn form(resources: &str, content: &[u8]) -> Vec<u8> {
    let resources = format!("<< /XObject << {resources} >> >>");
    stream(&format!("/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources {resources}"), content)
}

fn deflated(content: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    for part in content {
        encoder.write_all(&part).unwrap();
    }
    encoder.finish().unwrap()
}

/// Three gibibytes of spaces, which are a few kilobytes once they are packed twice.
fn packed() -> Vec<u8> {
    let once = deflated((0..3 << 10).map(|_| vec![b' '; 1 << 20]));
    let twice = deflated(std::iter::once(once));
    assert!(twice.len() < 100 << 10, "{}", twice.len());
    one_page(stream("/Filter [/FlateDecode /FlateDecode]", &twice), &[])
}

/// Forms that each show the next one ten times: 10^39 of the last.
fn multiplying() -> Vec<u8> {
    let showing = |next: usize| {
        form(&format!("/F{next} {} 0 R", next + 5), format!("/F{next} Do ").repeat(10).as_bytes())
    };
    let forms: Vec<Vec<u8>> = (1..40).map(showing).chain([form("", b" ")]).collect();
    one_page(stream("", b"/F0 Do"), &forms)
}

#[tokio::test]
async fn a_bomb_is_a_failure_of_its_own_file() {
    let deep = [vec![b'['; 1 << 20], vec![b']'; 1 << 20]].concat();
    let nested = one_page(stream("", &[b"BT ", deep.as_slice(), b" TJ ET"].concat()), &[]);
    let itself = one_page(stream("", b"/F0 Do"), &[form("/F0 5 0 R", b"/F0 Do")]);
    let kids: String = (0..20_001).map(|number| format!("{} 0 R ", number + 3)).collect();
    let mut objects = vec![
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        format!("<< /Type /Pages /Kids [{kids}] /Count 20001 >>").into_bytes(),
    ];
    objects.resize(20_003, b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>".to_vec());
    let pages = pdf(&objects);
    let bombs = [("packed", packed()), ("nested", nested), ("itself", itself), ("pages", pages)];
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(folder.path());
    let mut documents: Vec<Value> = bombs
        .iter()
        .map(|(name, bytes)| json!({ "id": name, "format": "pdf", "data": STANDARD.encode(bytes) }))
        .collect();
    documents.push(json!({ "id": "good", "text": "The Vasa sank in 1628." }));
    let job = program.run_job(&json!({ "documents": documents })).await;
    assert_eq!(
        (&job["state"], &job["progress"]["documents_done"]),
        (&json!("succeeded"), &json!(1)),
        "{job}"
    );
    let why = |id: &str| {
        let failures = job["failures"].as_array().unwrap();
        let failure = failures.iter().find(|failure| failure["document_id"] == id);
        failure.unwrap_or_else(|| panic!("{id} did not fail: {job}"))["error"].as_str().unwrap().to_owned()
    };
    assert!(why("packed").contains("more than 1024 MiB of memory"), "{}", why("packed"));
    assert!(why("pages").contains("it has 20001 pages, and at most 20000 are read"), "{}", why("pages"));
    for id in ["nested", "itself"] {
        assert!(why(id).starts_with("reading it as pdf"), "{id}: {}", why(id));
    }
}

/// A DOCX too long to be sent whole to a language model, whose heading has a style of a level as deep as can be named.
fn deep() -> Vec<u8> {
    const STYLES: &str =
        r#"<w:styles><w:style w:styleId="s"><w:name w:val="heading 1000000000000000"/></w:style></w:styles>"#;
    let paragraph =
        |n: usize| format!("<w:p><w:r><w:t>Card {n} is moved to the cool node.</w:t></w:r></w:p>");
    let paragraphs: String = (0..1000).map(paragraph).collect();
    let heading = r#"<w:p><w:pPr><w:pStyle w:val="s"/></w:pPr><w:r><w:t>Deep</w:t></w:r></w:p>"#;
    let document = format!("<w:document><w:body>{heading}{paragraphs}</w:body></w:document>");
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [("word/document.xml", document.as_str()), ("word/styles.xml", STYLES)] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content.as_bytes()).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[tokio::test]
async fn a_heading_as_deep_as_can_be_named_is_put_in_context_like_any_other_text() {
    let (url, _) = instance(Behavior::Well(0)).await;
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start_with(folder.path(), |command| {
        command.args(["--ollama-url", &url, "--ollama-model", "small"])
    });
    let document = json!({ "id": "deep", "format": "docx", "data": STANDARD.encode(deep()) });
    let job = program.run_job(&json!({ "documents": [document] })).await;
    assert_eq!(
        (&job["state"], &job["progress"]["documents_done"], &job["progress"]["chunks_without_context"]),
        (&json!("succeeded"), &json!(1), &json!(0)),
        "{job}"
    );
}

#[test]
fn a_file_that_takes_for_ever_is_ended_by_its_processor_time() {
    use std::os::unix::process::ExitStatusExt as _;
    // What the reading process was given is less than the minute that it takes for itself.
    let mut reader = Command::new("sh")
        .args(["-c", "ulimit -t 2; exec \"$0\" read pdf", env!("CARGO_BIN_EXE_principium-embedder")])
        .env(RESERVE.0, RESERVE.1)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    reader.stdin.take().unwrap().write_all(&multiplying()).unwrap();
    let output = reader.wait_with_output().unwrap();
    assert!(output.stdout.is_empty(), "it has nothing to say yet");
    // SIGXCPU, by which the server knows why; SIGKILL would say nothing.
    assert_eq!(output.status.signal(), Some(24), "{:?}", output.status);
}
