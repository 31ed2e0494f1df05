//! `tollgate token list`: the records, page by page.
//!
//! No more than one page is in memory: there may be millions.

use clap::Args;

use super::record;
use super::session::StoreArguments;
use crate::cli::{Failure, say, tell};
use crate::store::PageMark;
use crate::tokens::{CredentialKind, FoundRecord};

/// Arguments of `tollgate token list`.
#[derive(Args, Debug)]
pub struct ListArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print a JSON array, a record a line
    #[arg(long)]
    json: bool,
    /// Stop when at least N records were listed, and print on standard error where the rest starts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    page_size: Option<u64>,
    /// Go on where an earlier list said
    #[arg(long, value_name = "WHERE")]
    start: Option<PageMark>,
}

/// Lists the records: first those of the configuration, then those of the store.
///
/// # Errors
/// [`Failure::Unavailable`] when the store does not answer, be it in the middle.
pub fn run(arguments: &ListArguments) -> Result<String, Failure> {
    let session = arguments.store.open(None)?;
    let tokens = &session.tokens;
    let mut listing = Listing::new(arguments.json);
    let most = arguments.page_size.unwrap_or(u64::MAX);
    if arguments.start.is_none() {
        listing.add(&tokens.configured())?;
    }
    let mut start = tokens.first_page().map(|first| arguments.start.clone().unwrap_or(first));
    while let Some(mark) = &start {
        if listing.listed >= most {
            break;
        }
        let wanted = usize::try_from(most - listing.listed).unwrap_or(usize::MAX);
        let page = session
            .wait(tokens.page(mark, wanted))
            .map_err(|error| session.store_failure(&error))?;
        start = page.next;
        if !listing.add(&page.records)? {
            return Ok(String::new());
        }
    }
    say(&listing.end())?;
    if let Some(start) = start {
        tell(&format!("there may be more: add --start {start}\n"));
    }
    Ok(String::new())
}

/// The state of the listing.
struct Listing {
    json: bool,
    listed: u64,
    widths: Option<[usize; COLUMNS.len()]>,
}

const COLUMNS: [&str; 9] =
    ["API KEY", "KIND", "EXPIRES", "PLAN", "ORGANIZATION", "LIMITS", "ROUTES", "NAME", "KEPT IN"];

impl Listing {
    fn new(json: bool) -> Self {
        Self { json, listed: 0, widths: None }
    }

    /// Prints a page. Returns whether standard output is still read.
    fn add(&mut self, found: &[FoundRecord]) -> Result<bool, Failure> {
        let text = if self.json { self.members(found) } else { self.rows(found) };
        self.listed += found.len() as u64;
        say(&text)
    }

    /// A line for each record, in columns as wide as the first page needs them.
    fn rows(&mut self, found: &[FoundRecord]) -> String {
        let mut rows: Vec<_> = found.iter().map(row).collect();
        if rows.is_empty() {
            return String::new();
        }
        if self.widths.is_none() {
            rows.insert(0, COLUMNS.map(str::to_owned));
        }
        let widths = *self.widths.get_or_insert_with(|| {
            std::array::from_fn(|i| {
                rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)
            })
        });
        let line = |row: &[String; COLUMNS.len()]| {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            format!("{}\n", cells.join("  ").trim_end())
        };
        rows.iter().map(line).collect()
    }

    /// The next members of the array.
    fn members(&self, found: &[FoundRecord]) -> String {
        let member = |(nth, found): (usize, &FoundRecord)| {
            let before = if self.listed == 0 && nth == 0 { "[" } else { "," };
            format!("{before}\n{}", record::to_json(found))
        };
        found.iter().enumerate().map(member).collect()
    }

    /// The text after the last record.
    fn end(&mut self) -> String {
        match (self.json, self.listed) {
            (true, 0) => "[]\n".into(),
            (true, _) => "\n]\n".into(),
            (false, 0) => format!("{}\n", COLUMNS.join("  ")),
            (false, _) => String::new(),
        }
    }
}

fn row(found: &FoundRecord) -> [String; COLUMNS.len()] {
    let limits = ["limits", "rate_limit"].map(|field| record::text(found, field)).concat();
    let [expires, plan, organization, routes, name] =
        ["expires_at", "plan", "organization_id", "allowed_routes", "name"]
            .map(|field| record::text(found, field));
    let row = [
        record::public_id(found),
        CredentialKind::of(&found.id).name().into(),
        expires,
        plan,
        organization,
        limits,
        routes,
        name,
        record::kept_in(found).into(),
    ];
    row.map(|cell| if cell.is_empty() { "-".into() } else { cell })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoredRecord;
    use serde_json::Value;

    fn found(id: &str, fields: &[(&str, &str)]) -> FoundRecord {
        let fields = fields.iter().map(|&(name, text)| (name.to_owned(), text.to_owned()));
        FoundRecord::stored(id, &StoredRecord::Fields(fields.collect()))
    }

    #[test]
    fn the_table_lines_up_over_pages_and_cannot_steer_the_terminal() {
        let mut listing = Listing::new(false);
        assert_eq!(listing.rows(&[]), "");
        let first = [("rate_limit", "100"), ("name", "a\u{1b}[2Jb"), ("plan", "basic")];
        assert_eq!(
            listing.rows(&[found("k1", &first)]),
            "API KEY  KIND  EXPIRES  PLAN   ORGANIZATION  LIMITS  ROUTES  NAME    KEPT IN\n\
             k1       jwt   -        basic  -             100     -       a\u{fffd}[2Jb  redis\n"
        );
        assert_eq!(
            listing.rows(&[found(&"ab".repeat(32), &[])]),
            "abababababababab  key   -        -      -             -       -       -       redis\n"
        );
    }

    #[test]
    fn the_array_is_whole_however_many_pages_it_has() {
        for pages in [vec![], vec![0], vec![0, 2, 0, 1]] {
            let mut listing = Listing::new(true);
            let mut text = String::new();
            let mut ids = Vec::new();
            for page in pages {
                let entries: Vec<_> =
                    (0..page).map(|nth| found(&format!("{page}-{nth}"), &[])).collect();
                text += &listing.members(&entries);
                listing.listed += page;
                ids.extend(entries.into_iter().map(|entry| entry.id));
            }
            text += &listing.end();
            let array: Vec<Value> = serde_json::from_str(&text).unwrap();
            assert!(array.iter().map(|entry| &entry["api_key"]).eq(&ids), "{text}");
        }
    }
}
