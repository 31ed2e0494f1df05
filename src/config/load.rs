//! From a file and the environment to a valid [`Config`], or to all of their faults.
//!
//! The steps, each in a file of its own: YAML to a tree, overrides, `${VAR}`, structs, valid values.

use std::path::Path;

use serde_yaml::Value;

use super::Config;
use super::compile::compile;
use super::environment::{self, Environment};
use super::fault::{Faults, Report};
use super::key_path::KeyPath;
use super::location::{Location, Locations};
use super::structure;
use crate::base::files::read_text;

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Reads the configuration in the file at `path` and in `environment`.
///
/// # Errors
/// Every fault that can be found at once; a file that cannot be read is one.
pub fn load(path: &Path, environment: &Environment) -> Result<Config, Faults> {
    let name = path.display().to_string();
    let text = read_text(path, MAX_FILE)
        .map_err(|error| Faults::of_file(&name, format!("cannot be read: {error}")))?;
    parse(&text, &name, environment)
}

/// Reads the configuration in `text`, which faults call `file_name`, and in `environment`.
///
/// # Errors
/// Every fault that can be found at once. After a YAML syntax error, that is the only one.
pub fn parse(text: &str, file_name: &str, environment: &Environment) -> Result<Config, Faults> {
    let mut report = Report::new(Locations::of(text));
    let Some(mut tree) = tree(text, &mut report) else {
        return report.finish(file_name, None);
    };
    environment::override_keys(&mut tree, environment, &mut report);
    structure::plain(&mut tree, &KeyPath::root(), &mut report);
    environment::expand(&mut tree, &KeyPath::root(), environment, &mut report);
    let file = structure::read(tree, &mut report);
    let config = compile(file, &mut report);
    report.finish(file_name, config)
}

/// The values of a YAML text; reports why there are none.
fn tree(text: &str, report: &mut Report) -> Option<Value> {
    let error = match serde_yaml::from_str::<Option<Value>>(text) {
        Ok(tree) => return Some(tree.unwrap_or(Value::Null)),
        Err(error) => error,
    };
    let duplicates = report.locations.duplicates().to_vec();
    if error.to_string().contains("duplicate entry") && !duplicates.is_empty() {
        for (path, location) in duplicates {
            report.at(location, &path, "is written twice; write each key once");
        }
    } else {
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let message = format!("is not YAML: {}", environment::syntax(&error));
        report.at(Location::File { line, column }, &KeyPath::root(), message);
    }
    None
}
