//! Writing a list entry the way it stands in a file, to be pasted into it. This file does not know the meaning of the
//! entry.

use serde_json::Value;
use serde_yaml::Mapping;

/// The YAML of a list whose only element has these `members`, in their order; each line indented by four spaces.
///
/// # Errors
/// The message of the YAML library about a value that YAML cannot hold.
pub fn list_entry<'a>(
    members: impl IntoIterator<Item = (&'a str, &'a Value)>,
) -> Result<String, String> {
    let yaml = |error: serde_yaml::Error| format!("writing YAML: {error}");
    let mut entry = Mapping::new();
    for (name, value) in members {
        entry.insert(name.into(), serde_yaml::to_value(value).map_err(yaml)?);
    }
    let text = serde_yaml::to_string(&[entry]).map_err(yaml)?;
    Ok(text.lines().map(|line| format!("    {line}\n")).collect())
}
