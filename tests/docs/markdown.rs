//! The documentation as pages: fenced blocks, tables, headings and links. It knows the form of a page and nothing of
//! what a page says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A path of the repository.
pub fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One page of the documentation.
pub struct Page {
    /// Its path in the repository.
    pub path: String,
    text: String,
}

/// A fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The page and the line of its fence, for messages.
    pub place: String,
    /// The words after the fence; the first is the language.
    pub info: Vec<String>,
    /// What is between the fences.
    pub text: String,
}

impl Block {
    pub fn language(&self) -> &str {
        self.info.first().map_or("", String::as_str)
    }

    pub fn says(&self, word: &str) -> bool {
        self.info.iter().skip(1).any(|own| own == word)
    }

    /// The value of `name=value` after the fence.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.info.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The rows of the tables under one heading, a row as its cells.
pub type Rows = Vec<Vec<String>>;

impl Page {
    pub fn read(path: &str) -> Self {
        let text = fs::read_to_string(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { path: path.into(), text }
    }

    /// The README, then the pages that docs/SUMMARY.md lists, in its order.
    pub fn all() -> Vec<Self> {
        let listed = Self::read("docs/SUMMARY.md").links();
        let pages = listed.into_iter().map(|(_, page)| format!("docs/{page}"));
        ["README.md".to_owned()].into_iter().chain(pages).map(|path| Self::read(&path)).collect()
    }

    pub fn lines(&self) -> usize {
        self.text.lines().count()
    }

    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open = false;
        for (number, line) in self.text.lines().enumerate() {
            match (line.strip_prefix("```"), open) {
                (Some(info), false) => blocks.push(Block {
                    place: format!("{}:{}", self.path, number + 1),
                    info: info.split_whitespace().map(str::to_owned).collect(),
                    text: String::new(),
                }),
                (None, true) => {
                    let block = blocks.last_mut().unwrap();
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (Some(_), true) | (None, false) => {}
            }
            open ^= line.starts_with("```");
        }
        assert!(!open, "{}: a fence is not closed", self.path);
        blocks
    }

    /// The lines outside of fenced blocks, with their numbers.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut open = false;
        let mut prose = Vec::new();
        for (number, line) in self.text.lines().enumerate() {
            if line.starts_with("```") {
                open = !open;
            } else if !open {
                prose.push((number + 1, line));
            }
        }
        prose
    }

    /// The headings and the rows of the tables beneath each of them.
    pub fn sections(&self) -> Vec<(String, Rows)> {
        let mut sections = vec![(String::new(), Rows::new())];
        for (_, line) in self.prose() {
            let rows = &mut sections.last_mut().unwrap().1;
            if let Some(title) = heading(line) {
                sections.push((title.to_owned(), Rows::new()));
            } else if line.starts_with("| ---") {
                // The row before it is the head of the table.
                rows.pop();
            } else if let Some(row) = line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) {
                rows.push(row.split('|').map(|cell| cell.trim().to_owned()).collect());
            }
        }
        sections
    }

    /// The rows of the tables under `title`.
    pub fn rows(&self, title: &str) -> Rows {
        let found = self.sections().into_iter().find(|(own, _)| own == title);
        found.unwrap_or_else(|| panic!("{}: no heading `{title}`", self.path)).1
    }

    /// What links may name after `#`.
    pub fn anchors(&self) -> BTreeSet<String> {
        self.prose().into_iter().filter_map(|(_, line)| heading(line)).map(anchor).collect()
    }

    /// Where links lead, with their lines.
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (number, line) in self.prose() {
            let outside_of_code: String = line.split('`').step_by(2).collect();
            for rest in outside_of_code.split("](").skip(1) {
                let (target, _) = rest.split_once(')').expect("a link ends on its line");
                links.push((number, target.to_owned()));
            }
        }
        links
    }

    /// The texts in backquotes, outside of fenced blocks.
    pub fn code_spans(&self) -> Vec<String> {
        self.prose().into_iter().flat_map(|(_, line)| code(line)).collect()
    }
}

/// The texts of `line` in backquotes.
pub fn code(line: &str) -> Vec<String> {
    line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn heading(line: &str) -> Option<&str> {
    let title = line.trim_start_matches('#');
    (title.len() < line.len()).then(|| title.strip_prefix(' ')).flatten()
}

/// The anchor that GitHub and mdBook give a heading.
fn anchor(title: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    title.to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}
