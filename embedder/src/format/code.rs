//! Source code: which language it is in, by its words, and what it defines, by its grammar.

use super::{Extracted, Format, Heading, Markup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tree_sitter::{Language, Node, Parser};

/// Longest source that is parsed, in bytes; a longer one is cut as text.
const PARSED: usize = 2 << 20;
/// Deepest definition that is named.
const DEEPEST: usize = 6;
/// Longest name of a definition, in bytes.
const NAME: usize = 120;

/// A programming language whose grammar is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CodeLanguage {
    /// C, and what of C++ looks like it.
    C,
    /// Go.
    Go,
    /// Java.
    Java,
    /// JavaScript.
    JavaScript,
    /// Python.
    Python,
    /// Rust.
    Rust,
    /// TypeScript.
    TypeScript,
}

impl CodeLanguage {
    /// All of them.
    const ALL: [Self; 7] =
        [Self::C, Self::Go, Self::Java, Self::JavaScript, Self::Python, Self::Rust, Self::TypeScript];

    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::Go => "go",
            Self::Java => "java",
            Self::JavaScript => "javascript",
            Self::Python => "python",
            Self::Rust => "rust",
            Self::TypeScript => "typescript",
        }
    }

    /// Its grammar.
    pub fn grammar(self) -> Language {
        match self {
            Self::C => tree_sitter_c::LANGUAGE,
            Self::Go => tree_sitter_go::LANGUAGE,
            Self::Java => tree_sitter_java::LANGUAGE,
            Self::JavaScript => tree_sitter_javascript::LANGUAGE,
            Self::Python => tree_sitter_python::LANGUAGE,
            Self::Rust => tree_sitter_rust::LANGUAGE,
            Self::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT,
        }
        .into()
    }

    /// Beginnings of lines that this language has.
    fn beginnings(self) -> &'static [&'static str] {
        match self {
            Self::C => &[
                "#include ",
                "#define ",
                "#ifdef ",
                "#ifndef ",
                "#endif",
                "#pragma ",
                "typedef ",
                "static ",
                "struct ",
                "int ",
                "void ",
                "char ",
                "unsigned ",
                "const char ",
                "size_t ",
                "return ",
                "extern ",
                "printf(",
                "free(",
            ],
            Self::Go => &[
                "package ",
                "import (",
                "import \"",
                "func ",
                "type ",
                "var ",
                "const (",
                "if err != nil",
                "defer ",
                "go ",
                "return ",
                "for ",
                "case ",
                "switch ",
            ],
            Self::Java => &[
                "package ",
                "import java",
                "import org.",
                "import com.",
                "public ",
                "private ",
                "protected ",
                "@Override",
                "final ",
                "return ",
                "throw new ",
                "this.",
                "System.out",
                "class ",
                "interface ",
            ],
            Self::JavaScript => &[
                "const ",
                "let ",
                "var ",
                "function ",
                "async function ",
                "import ",
                "export ",
                "module.exports",
                "return ",
                "class ",
                "console.",
                "await ",
                "document.",
                "window.",
                "'use strict'",
                "\"use strict\"",
            ],
            Self::Python => &[
                "def ",
                "class ",
                "import ",
                "from ",
                "elif ",
                "return ",
                "self.",
                "@",
                "if __name__",
                "with ",
                "try:",
                "except",
                "else:",
                "raise ",
                "print(",
                "async def ",
                "for ",
                "while ",
                "yield ",
                "\"\"\"",
            ],
            Self::Rust => &[
                "use ",
                "fn ",
                "pub ",
                "impl",
                "let ",
                "match ",
                "#[",
                "#![",
                "//!",
                "///",
                "mod ",
                "struct ",
                "enum ",
                "trait ",
                "async fn ",
                "return ",
                "println!",
                "assert",
                "const ",
                "where",
                "Ok(",
                "Some(",
                "Self",
            ],
            Self::TypeScript => &[
                "const ",
                "let ",
                "function ",
                "async function ",
                "import ",
                "export ",
                "interface ",
                "type ",
                "return ",
                "class ",
                "enum ",
                "private ",
                "public ",
                "readonly ",
                "declare ",
                "namespace ",
                "await ",
            ],
        }
    }

    /// What only this language has, anywhere in a line.
    fn marks(self) -> &'static [&'static str] {
        match self {
            Self::C => &["#include <", "#include \"", "->", "int main(", "NULL", "sizeof(", "*)", "printf("],
            Self::Go => &[":= ", "func (", "err != nil", "chan ", "struct {", "map[", "fmt.", "package main"],
            Self::Java => &[
                "public class ",
                "public static void",
                "@Override",
                "System.out.",
                "import java",
                " extends ",
                "new ",
            ],
            Self::JavaScript => {
                &["=> ", "===", "require(", "module.exports", "function(", "console.log", "document."]
            }
            Self::Python => &["self.", "self,", "):", "__init__", "__name__", " is None", "elif ", "import "],
            Self::Rust => {
                &["::", "&mut ", "fn ", "let mut ", "-> ", "impl ", ".unwrap()", "&self", "#[", "pub "]
            }
            Self::TypeScript => &[
                ": string",
                ": number",
                ": boolean",
                "interface ",
                "export type",
                "Promise<",
                " as ",
                "private ",
                ": void",
            ],
        }
    }
}

/// Source code with what it defines.
pub fn read(text: String) -> Extracted {
    let language = language(&text);
    let headings = language.map(|language| definitions(&text, language)).unwrap_or_default();
    let markup = language.filter(|_| text.len() <= PARSED).map_or(Markup::Plain, Markup::Code);
    Extracted { format: Format::Code, encoding: None, title: None, text, markup, headings, pages: Vec::new() }
}

/// The programming language of a text; `None` where it is no code, or in none that is known.
pub fn language(text: &str) -> Option<CodeLanguage> {
    let first = text.lines().next().unwrap_or_default();
    if let Some(program) = first.strip_prefix("#!") {
        return match () {
            () if program.contains("python") => Some(CodeLanguage::Python),
            () if program.contains("node") || program.contains("deno") => Some(CodeLanguage::JavaScript),
            () => None,
        };
    }
    let lines: Vec<&str> = text.lines().take(400).map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() < 2 {
        return None;
    }
    let of = |language: CodeLanguage| {
        let begins = lines.iter().filter(|line| {
            // A sentence may begin with such a word, but it ends like a sentence.
            language.beginnings().iter().any(|word| line.starts_with(word))
                && !line.ends_with(['.', '!', '?'])
        });
        let begins = begins.count();
        let marks: usize = language.marks().iter().filter(|mark| text.contains(**mark)).count();
        (begins, marks)
    };
    let ends = |line: &&&str| {
        line.ends_with(['{', '}', ';', ':', ')', ',', '(', '[', ']']) || line.starts_with("//")
    };
    let code_like = lines.iter().filter(ends).count();
    let scored = CodeLanguage::ALL.into_iter().map(|language| {
        let (begins, marks) = of(language);
        (language, begins, marks)
    });
    let likely = scored.filter(|(_, begins, marks)| *begins >= 2 && *marks >= 2 && begins * 6 >= lines.len());
    // The last of equals: TypeScript has all that JavaScript has.
    let (language, _, _) =
        likely.max_by_key(|(_, begins, marks)| begins + marks * lines.len() / 8 + marks)?;
    (code_like * 5 >= lines.len() * 2).then_some(language)
}

/// What a source defines, the outer before the inner.
fn definitions(text: &str, language: CodeLanguage) -> Vec<Heading> {
    let mut parser = Parser::new();
    if text.len() > PARSED || parser.set_language(&language.grammar()).is_err() {
        return Vec::new();
    }
    let Some(tree) = parser.parse(text, None) else { return Vec::new() };
    let mut found = Vec::new();
    let mut cursor = tree.walk();
    // Definitions around the node.
    let mut around: Vec<usize> = Vec::new();
    loop {
        let node = cursor.node();
        around.retain(|end| node.start_byte() < *end);
        if is_definition(node) && around.len() < DEEPEST {
            found.push(Heading {
                start: node.start_byte(),
                end: node.end_byte(),
                level: around.len() + 1,
                title: signature(&text[node.byte_range()]),
            });
            around.push(node.end_byte());
        }
        if cursor.goto_first_child() {
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                return found;
            }
        }
    }
}

fn is_definition(node: Node<'_>) -> bool {
    let kind = node.kind();
    node.is_named()
        && [
            "class_declaration",
            "class_definition",
            "class_specifier",
            "constructor_declaration",
            "enum_declaration",
            "enum_item",
            "enum_specifier",
            "function_declaration",
            "function_definition",
            "function_item",
            "impl_item",
            "interface_declaration",
            "macro_definition",
            "method_declaration",
            "method_definition",
            "mod_item",
            "record_declaration",
            "struct_item",
            "trait_item",
            "type_alias_declaration",
            "type_declaration",
            "type_item",
        ]
        .contains(&kind)
}

/// The first line of a definition, without what opens its body.
fn signature(text: &str) -> String {
    // Attributes and annotations stand before what they are about.
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with(['#', '@']))
        .unwrap_or_default();
    let line = line.trim_end_matches(['{', ':', '(', ' ']);
    line[..line.floor_char_boundary(NAME)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUST: &str = "//! Ships.\n\nuse std::fmt;\n\n/// A ship.\npub struct Ship {\n    tons: u32,\n}\n\nimpl Ship {\n    /// A new one.\n    pub fn new(tons: u32) -> Self {\n        Self { tons }\n    }\n}\n\nfn main() {\n    let ship = Ship::new(1210);\n    println!(\"{}\", ship.tons);\n}\n";
    const PYTHON: &str = "import os\nfrom pathlib import Path\n\nclass Ship:\n    def __init__(self, tons):\n        self.tons = tons\n\n    def sink(self):\n        return self.tons > 1000\n\ndef main():\n    print(Ship(1210).sink())\n";
    const JAVASCRIPT: &str = "const fs = require('fs');\n\nfunction weigh(ship) {\n  return ship.tons === 0 ? null : ship.tons;\n}\n\nclass Ship {\n  sink() {\n    console.log('down');\n  }\n}\n\nmodule.exports = { weigh, Ship };\n";
    const TYPESCRIPT: &str = "import { Sea } from './sea';\n\nexport interface Ship {\n  name: string;\n  tons: number;\n}\n\nexport function weigh(ship: Ship): number {\n  const tons: number = ship.tons;\n  return tons;\n}\n\nexport type Fleet = Ship[];\n";
    const GO: &str = "package main\n\nimport \"fmt\"\n\ntype Ship struct {\n\tTons int\n}\n\nfunc (s *Ship) Sink() error {\n\tif err := s.flood(); err != nil {\n\t\treturn err\n\t}\n\treturn nil\n}\n\nfunc main() {\n\tship := &Ship{Tons: 1210}\n\tfmt.Println(ship)\n}\n";
    const JAVA: &str = "package org.example;\n\nimport java.util.List;\n\npublic class Ship {\n    private final int tons;\n\n    public Ship(int tons) {\n        this.tons = tons;\n    }\n\n    @Override\n    public String toString() {\n        return \"Ship \" + tons;\n    }\n}\n";
    const C: &str = "#include <stdio.h>\n#include <stdlib.h>\n\n#define MOST 1210\n\nstruct ship {\n    int tons;\n};\n\nstatic int weigh(const struct ship *ship)\n{\n    return ship->tons;\n}\n\nint main(void)\n{\n    struct ship *ship = malloc(sizeof(*ship));\n    printf(\"%d\\n\", weigh(ship));\n    free(ship);\n    return 0;\n}\n";

    #[test]
    fn the_words_tell_the_language() {
        for (text, expected) in [
            (RUST, Some(CodeLanguage::Rust)),
            (PYTHON, Some(CodeLanguage::Python)),
            (JAVASCRIPT, Some(CodeLanguage::JavaScript)),
            (TYPESCRIPT, Some(CodeLanguage::TypeScript)),
            (GO, Some(CodeLanguage::Go)),
            (JAVA, Some(CodeLanguage::Java)),
            (C, Some(CodeLanguage::C)),
            (
                "For a while we sailed.\nReturn to port was no choice.\nImport duties rose.\nClass mattered.\n",
                None,
            ),
            (
                "# Heading\n\nUse `fn main()` to start:\n\n```rust\nfn main() {}\n```\n\nThat is all there is to it.\n",
                None,
            ),
        ] {
            assert_eq!(language(text), expected, "{text}");
        }
    }

    #[test]
    fn a_place_in_code_has_the_definitions_around_it() {
        for (text, place, path) in [
            (RUST, "Self { tons }", vec!["impl Ship", "pub fn new(tons: u32) -> Self"]),
            (RUST, "println", vec!["fn main()"]),
            (RUST, "use std", vec![]),
            (PYTHON, "return self.tons", vec!["class Ship", "def sink(self)"]),
            (GO, "return nil", vec!["func (s *Ship) Sink() error"]),
            (JAVA, "this.tons", vec!["public class Ship", "public Ship(int tons)"]),
            (C, "return ship->tons", vec!["static int weigh(const struct ship *ship)"]),
            (TYPESCRIPT, "return tons", vec!["function weigh(ship: Ship): number"]),
            (JAVASCRIPT, "'down'", vec!["class Ship", "sink()"]),
        ] {
            let source = read(text.to_owned());
            assert_eq!(source.heading_path(text.find(place).unwrap()), path, "{place}");
        }
    }
}
