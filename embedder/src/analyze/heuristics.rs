//! What can be seen of a document without understanding it. Pure.

use crate::format::Markup;
use schemars::JsonSchema;
use serde::Serialize;

/// The kinds of documents that are told apart.
pub const TYPES: [&str; 9] =
    ["article", "code", "contract", "email", "faq", "letter", "log", "manual", "table"];

/// How a document is built.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Structure {
    /// Characters.
    pub characters: usize,
    /// Words.
    pub words: usize,
    /// Paragraphs: blocks between empty lines.
    pub paragraphs: usize,
    /// Markdown headings.
    pub headings: usize,
    /// Items of lists.
    pub list_items: usize,
    /// Rows of tables.
    pub table_rows: usize,
    /// Blocks of fenced code.
    pub code_blocks: usize,
    /// Share of the lines that are code, from 0 to 1.
    pub code_share: f64,
    /// Share of the lines that are rows of tables, from 0 to 1.
    pub table_share: f64,
}

/// How to cut a document.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Chunking {
    /// By what: a `chunker` of `/v1/process`.
    pub strategy: &'static str,
    /// Most tokens of a chunk.
    pub max_tokens: usize,
    /// Tokens that neighbors share.
    pub overlap: usize,
    /// Why.
    pub why: &'static str,
}

/// Counts what a text is made of.
#[allow(clippy::cast_precision_loss)]
pub fn structure(text: &str) -> Structure {
    let mut found = Structure {
        characters: text.chars().count(),
        words: text.split_whitespace().count(),
        ..Structure::default()
    };
    let (mut fenced, mut in_paragraph, mut lines, mut code) = (false, false, 0_usize, 0_usize);
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            in_paragraph = false;
            continue;
        }
        lines += 1;
        if !in_paragraph {
            in_paragraph = true;
            found.paragraphs += 1;
        }
        if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
            found.code_blocks += usize::from(!fenced);
            fenced = !fenced;
        } else if fenced || looks_like_code(line) {
            code += 1;
        } else if is_heading(trimmed) {
            found.headings += 1;
        } else if is_list_item(trimmed) {
            found.list_items += 1;
        } else if trimmed.matches('|').count() >= 2
            || trimmed.matches('\t').count() >= 2
            || trimmed.matches(';').count() >= 3
        {
            found.table_rows += 1;
        }
    }
    let share = |part: usize| if lines == 0 { 0.0 } else { part as f64 / lines as f64 };
    (found.code_share, found.table_share) = (share(code), share(found.table_rows));
    found
}

/// The kind of a document, from its words and its structure.
pub fn document_type(text: &str, filename: Option<&str>, structure: &Structure) -> &'static str {
    const CODE: [&str; 14] =
        ["rs", "py", "go", "c", "h", "cpp", "java", "js", "ts", "sh", "sql", "rb", "cs", "kt"];
    let extension =
        filename.and_then(|name| name.rsplit_once('.')).map(|(_, extension)| extension.to_ascii_lowercase());
    let beginning: String = text.chars().take(2000).collect::<String>().to_lowercase();
    let any = |words: &[&str]| words.iter().filter(|word| beginning.contains(**word)).count();
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count().max(1);
    let starting = |test: &dyn Fn(&str) -> bool| text.lines().filter(|line| test(line.trim())).count();

    if extension.as_deref().is_some_and(|extension| CODE.contains(&extension)) || structure.code_share > 0.5 {
        "code"
    } else if extension.as_deref() == Some("log") || starting(&is_log_line) * 2 > lines {
        "log"
    } else if extension.as_deref() == Some("csv") || structure.table_rows * 2 > lines {
        "table"
    } else if starting(&|line| {
        ["from:", "to:", "subject:", "von:", "an:", "betreff:"]
            .iter()
            .any(|h| line.to_lowercase().starts_with(h))
    }) >= 2
    {
        "email"
    } else if any(&[
        "hereinafter",
        "the parties",
        "this agreement",
        "vertragspartei",
        "§ 1",
        "shall be governed",
    ]) >= 2
    {
        "contract"
    } else if any(&[
        "dear ",
        "sincerely",
        "kind regards",
        "sehr geehrte",
        "freundlichen grüßen",
        "hochachtungsvoll",
    ]) >= 2
    {
        "letter"
    } else if starting(&|line| line.ends_with('?')) >= 3
        && any(&["faq", "frequently asked", "q:", "häufig"]) >= 1
    {
        "faq"
    } else if any(&[
        "install",
        "configure",
        "usage",
        "step 1",
        "warning:",
        "troubleshooting",
        "how to",
        "anleitung",
    ]) >= 2
    {
        "manual"
    } else {
        "article"
    }
}

/// How to cut a document of this structure and markup: as `auto` does, with the overlap that suits it.
pub fn chunking(structure: &Structure, markup: Markup) -> Chunking {
    let (strategy, overlap, why) = match markup {
        Markup::Markdown if structure.headings >= 2 => ("markdown", 0, "headings divide it into sections"),
        Markup::Markdown => ("markdown", 0, "lists, tables and blocks are kept whole"),
        Markup::Code(_) => ("code", 0, "definitions are kept whole by the language's grammar"),
        Markup::Plain if structure.code_share > 0.3 => {
            ("recursive", 40, "code has few sentence ends; overlap keeps definitions whole")
        }
        Markup::Plain if structure.paragraphs > 0 && structure.words / structure.paragraphs > 250 => {
            ("recursive", 30, "long paragraphs are cut inside; overlap keeps their thread")
        }
        Markup::Plain => ("recursive", 0, "paragraphs are short enough to be kept whole"),
    };
    Chunking { strategy, max_tokens: 200, overlap, why }
}

fn is_heading(line: &str) -> bool {
    let depth = line.len() - line.trim_start_matches('#').len();
    (1..=6).contains(&depth) && line[depth..].starts_with(' ')
}

fn is_list_item(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    ["- ", "* ", "+ ", "• "].iter().any(|mark| line.starts_with(mark))
        || (rest.len() < line.len() && (rest.starts_with(". ") || rest.starts_with(") ")))
}

fn looks_like_code(line: &str) -> bool {
    let trimmed = line.trim();
    let ends = ["{", "}", ";", "};", "):", ");", "->"].iter().any(|end| trimmed.ends_with(end));
    let begins = [
        "fn ", "def ", "class ", "import ", "#include", "func ", "return ", "public ", "const ", "let ",
        "if (", "for (",
    ];
    ends || begins.iter().any(|begin| {
        trimmed.starts_with(begin)
            && (trimmed.contains('(') || trimmed.contains('=') || trimmed.contains('<'))
    })
}

fn is_log_line(line: &str) -> bool {
    let dated = line.len() > 10
        && line.is_char_boundary(10)
        && line[..10].chars().filter(char::is_ascii_digit).count() >= 6;
    dated
        && ["INFO", "WARN", "ERROR", "DEBUG", "info", "warn", "error"]
            .iter()
            .any(|level| line.contains(level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::CodeLanguage;

    #[test]
    fn structure_is_counted() {
        let text = "# Title\n\nA paragraph\nof two lines.\n\n- one\n- two\n1. three\n\n| a | b |\n|---|---|\n\n```rust\nfn main() {}\n```\n";
        let found = structure(text);
        assert_eq!(
            (found.headings, found.list_items, found.table_rows, found.code_blocks, found.paragraphs),
            (1, 3, 2, 1, 5)
        );
        assert_eq!(structure(""), Structure::default());
    }

    #[test]
    fn documents_are_told_apart() {
        for (text, filename, kind) in [
            ("fn main() {\n    println!(\"hi\");\n}\n", None, "code"),
            ("x", Some("a.RS"), "code"),
            ("2026-01-01 12:00:00 INFO started\n2026-01-01 12:00:01 ERROR failed\n", None, "log"),
            ("a;b;c;d\n1;2;3;4\n", None, "table"),
            ("From: a@example.org\nTo: b@example.org\nSubject: hello\n\nHi.\n", None, "email"),
            ("This Agreement is made between the parties. It shall be governed by law.", None, "contract"),
            ("Dear Ms. Roe,\nthank you.\nKind regards\nA.", None, "letter"),
            ("# FAQ\n\nWhat is it?\nA.\nWhy is it?\nB.\nHow is it?\nC.\n", None, "faq"),
            ("How to install the pump. Usage: see below. Warning: hot.", None, "manual"),
            ("The ship sank in 1628.", None, "article"),
        ] {
            let found = document_type(text, filename, &structure(text));
            assert_eq!(found, kind, "{text}");
            assert!(TYPES.contains(&found));
        }
    }

    #[test]
    fn the_suggested_cut_follows_the_structure() {
        let of = |text: &str, markup| chunking(&structure(text), markup);
        assert_eq!(of("# A\n\na\n\n# B\n\nb\n", Markup::Markdown).why, "headings divide it into sections");
        assert_eq!(of("a\n\nb\n", Markup::Plain).strategy, "recursive");
        assert_eq!(of("def a():\n    pass\n", Markup::Code(CodeLanguage::Python)).strategy, "code");
        assert_eq!(of(&"word ".repeat(600), Markup::Plain).overlap, 30);
    }
}
