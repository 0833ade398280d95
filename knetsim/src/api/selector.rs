//! Selectors: by labels, as in `app=web,tier!=db`, and by fields, as in `metadata.name=C0w1`.
//!
//! Source: Kubernetes documentation, "Labels and Selectors"; `apimachinery/pkg/labels/selector.go`, `pkg/fields/selector.go`.

use std::collections::BTreeSet;

use serde_json::Value;

/// A condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Absent(String),
}

/// A selector by labels: all its conditions must hold. The empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Vec<Requirement>);

impl Labels {
    /// Reads `app=web`, `app==web`, `app!=web`, `app in (a, b)`, `app notin (a, b)`, `app`, `!app`, joined by commas.
    ///
    /// # Errors
    ///
    /// A sentence that names the part that is none of these.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for part in split(text) {
            requirements.push(requirement(part.trim())?);
        }
        Ok(Self(requirements))
    }

    /// The selector of a Service: a map of labels.
    #[must_use]
    pub fn of_map<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        Self(labels.into_iter().map(|(key, value)| Requirement::In(key.clone(), [value.clone()].into())).collect())
    }

    /// The selector of a Deployment: `matchLabels` and `matchExpressions`.
    ///
    /// # Errors
    ///
    /// When an operator is unknown.
    pub fn of_object(selector: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            requirements.push(Requirement::In(key.clone(), [value.as_str().unwrap_or_default().to_owned()].into()));
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(match expression["operator"].as_str() {
                Some("In") => Requirement::In(key, values),
                Some("NotIn") => Requirement::NotIn(key, values),
                Some("Exists") => Requirement::Exists(key),
                Some("DoesNotExist") => Requirement::Absent(key),
                other => {
                    return Err(format!(
                        "operator {} is none of In, NotIn, Exists, DoesNotExist",
                        other.unwrap_or("(none)")
                    ));
                }
            });
        }
        Ok(Self(requirements))
    }

    /// Whether these labels, an object of strings, are selected.
    #[must_use]
    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels[key].as_str().is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels[key].as_str().is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels[key].is_string(),
            Requirement::Absent(key) => !labels[key].is_string(),
        })
    }
}

/// Splits at the commas that are in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let set = |list: &str| -> Option<BTreeSet<String>> {
        let inner = list.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    let wrong = || format!("{part:?} is no label selector; write app=web, app!=web, app in (a, b), app or !app");
    if let Some((key, list)) = part.split_once(" notin ") {
        return Ok(Requirement::NotIn(label(key).ok_or_else(wrong)?, set(list).ok_or_else(wrong)?));
    }
    if let Some((key, list)) = part.split_once(" in ") {
        return Ok(Requirement::In(label(key).ok_or_else(wrong)?, set(list).ok_or_else(wrong)?));
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(label(key).ok_or_else(wrong)?, [value.trim().to_owned()].into()));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(label(key).ok_or_else(wrong)?, [value.trim().to_owned()].into()));
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent(label(key).ok_or_else(wrong)?)),
        None => Ok(Requirement::Exists(label(part).ok_or_else(wrong)?)),
    }
}

fn label(key: &str) -> Option<String> {
    let key = key.trim();
    let fits = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
    (!key.is_empty() && key.chars().all(fits)).then(|| key.to_owned())
}

/// A selector by fields: each a path, and the value it must have or must not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// Reads `metadata.name=x,spec.clusterIP!=None`. Kubernetes knows a few fields of each kind; here every field can be used.
    ///
    /// # Errors
    ///
    /// A sentence that names the part that is no condition.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut conditions = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (path, value, wanted) =
                match (part.split_once("!="), part.split_once("==").or_else(|| part.split_once('='))) {
                    (Some((path, value)), _) => (path, value, false),
                    (None, Some((path, value))) => (path, value, true),
                    (None, None) => return Err(format!("{part:?} is no field selector; write metadata.name=web")),
                };
            conditions.push((path.trim().to_owned(), value.trim().to_owned(), wanted));
        }
        Ok(Self(conditions))
    }

    /// Whether an object is selected. A field that is not there is the empty text.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, value, wanted)| {
            let found = path.split('.').fold(object, |object, name| &object[name]);
            let found = match found {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            (found == *value) == *wanted
        })
    }

    /// The one name that is selected, if it is so: `metadata.name=web`.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.iter().find(|(path, _, wanted)| path == "metadata.name" && *wanted).map(|(_, name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_form_of_a_label_selector_is_understood() {
        let labels = json!({ "app": "web", "tier": "front" });
        let table = [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("tier,!gone", true),
            ("!app", false),
            ("!service.kubernetes.io/service-proxy-name", true),
            ("gone!=x", true),
        ];
        for (text, expected) in table {
            assert_eq!(Labels::parse(text).unwrap().matches(&labels), expected, "{text}");
        }
        for wrong in ["app in web", "=web", "a b"] {
            assert!(Labels::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_are_selected_by_their_paths() {
        let object = json!({ "metadata": { "name": "web" }, "spec": { "clusterIP": "None", "port": 8 } });
        for (text, expected) in
            [("metadata.name=web", true), ("spec.clusterIP!=None", false), ("spec.gone=", true), ("spec.port=8", true)]
        {
            assert_eq!(Fields::parse(text).unwrap().matches(&object), expected, "{text}");
        }
        assert_eq!(Fields::parse("metadata.name=web").unwrap().name(), Some("web"));
    }
}
