//! Manifests: objects as a student writes them, in YAML or JSON, several to a file, each value with its place.
//!
//! A mistake is told with the number of the document, line, column and field, whoever finds it: the YAML parser, the check of
//! fields before anything is sent, or the API server, whose answers name fields only.

use std::{collections::BTreeMap, path::Path};

use saphyr::{LoadableYamlNode as _, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Number, Value};

use crate::api::{failure::Cause, kind::Kind, schema};

/// Where something stands: line and column, from 1 on.
pub type Place = (usize, usize);

/// One object of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its kind.
    pub kind: Kind,
    /// The object.
    pub object: Value,
    /// Which document of the file it is, from 1 on.
    number: usize,
    /// The file.
    file: String,
    /// Where each field stands, by its path.
    places: BTreeMap<String, Place>,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is no YAML.
    #[error("{file}:{line}:{column}: {message}")]
    Yaml {
        /// The file.
        file: String,
        /// From 1 on.
        line: usize,
        /// From 1 on.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// It holds nothing.
    #[error("{0}: there is no object in it")]
    Empty(String),
    /// One or more fields are wrong; a line for each.
    #[error("{}", .0.join("\n"))]
    Fields(Vec<String>),
}

/// Reads all objects of a manifest and checks their fields; nothing has been sent anywhere then. The items of a `List` count
/// as documents of their own.
///
/// # Errors
///
/// [`ManifestError`], with every wrong field of every document.
pub fn read(file: &Path, text: &str) -> Result<Vec<Document>, ManifestError> {
    let file = file.display().to_string();
    let nodes = MarkedYaml::load_from_str(text).map_err(|error| ManifestError::Yaml {
        file: file.clone(),
        line: error.marker().line(),
        column: error.marker().col() + 1,
        message: error.info().to_owned(),
    })?;
    let mut documents = Vec::new();
    let mut wrong = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let mut places = BTreeMap::new();
        match convert(node, "", &mut places) {
            Ok(Value::Null) => {}
            Ok(object) if object["kind"] == "List" => {
                for (item, object) in object["items"].as_array().into_iter().flatten().enumerate() {
                    let prefix = format!("items[{item}]");
                    let places = places.iter().filter_map(|(path, place)| {
                        Some((path.strip_prefix(&prefix)?.trim_start_matches('.').to_owned(), *place))
                    });
                    let places = places.collect();
                    take(&file, index + 1, object.clone(), places, &mut documents, &mut wrong);
                }
            }
            Ok(object) => take(&file, index + 1, object, places, &mut documents, &mut wrong),
            Err(cause) => wrong.push(tell(&file, index + 1, &places, &cause)),
        }
    }
    match (wrong.is_empty(), documents.is_empty()) {
        (false, _) => Err(ManifestError::Fields(wrong)),
        (true, true) => Err(ManifestError::Empty(file)),
        (true, false) => Ok(documents),
    }
}

fn take(
    file: &str,
    number: usize,
    object: Value,
    places: BTreeMap<String, Place>,
    documents: &mut Vec<Document>,
    wrong: &mut Vec<String>,
) {
    match check(&object) {
        Ok(kind) => documents.push(Document { kind, object, number, file: file.to_owned(), places }),
        Err(causes) => wrong.extend(causes.iter().map(|cause| tell(file, number, &places, cause))),
    }
}

/// The kind of an object whose fields are all those of its kind.
fn check(object: &Value) -> Result<Kind, Vec<Cause>> {
    if !object.is_object() {
        return Err(vec![Cause::new("", "this is no object; one begins with apiVersion and kind")]);
    }
    let word = |name: &str| match object[name].as_str() {
        Some(word) if !word.is_empty() => Ok(word),
        _ => Err(vec![Cause::new(if object[name].is_null() { "" } else { name }, format!("{name} is missing"))]),
    };
    let (api_version, name) = (word("apiVersion")?, word("kind")?);
    let Some(kind) = Kind::of(api_version, name) else {
        return Err(vec![Cause::new("kind", unknown_kind(api_version, name))]);
    };
    if !kind.is_writable() {
        return Err(vec![Cause::new("kind", format!("objects of kind {kind} are written by the API server alone"))]);
    }
    let has_name = |field: &str| object["metadata"][field].as_str().is_some_and(|name| !name.is_empty());
    if !has_name("name") && !has_name("generateName") {
        return Err(vec![Cause::new("metadata", "metadata.name is missing")]);
    }
    let unknown = schema::check(kind, object).map_err(|cause| vec![cause])?;
    match unknown.is_empty() {
        true => Ok(kind),
        false => {
            Err(unknown.into_iter().map(|field| Cause::new(field, format!("a {kind} has no such field"))).collect())
        }
    }
}

fn unknown_kind(api_version: &str, name: &str) -> String {
    let known = crate::api::kind::KINDS.into_iter().filter(|kind| kind.is_writable());
    match known.clone().find(|kind| kind.describe().kind == name) {
        Some(kind) => format!("{name} has apiVersion {}, not {api_version}", kind.api_version()),
        None => {
            let names: Vec<&str> = known.map(|kind| kind.describe().kind).collect();
            format!("the lab does not know the kind {name} of {api_version}; it knows {}", names.join(", "))
        }
    }
}

impl Document {
    /// Says what is wrong with a field, and where it stands.
    #[must_use]
    pub fn tell(&self, cause: &Cause) -> String {
        tell(&self.file, self.number, &self.places, cause)
    }

    /// The object's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// The namespace that it says.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.object["metadata"]["namespace"].as_str().filter(|namespace| !namespace.is_empty())
    }
}

/// `web.yaml:14:7: document 2: spec.ports[0].port: 0 must be a port`. A field that is not there stands where its parent does.
fn tell(file: &str, number: usize, places: &BTreeMap<String, Place>, cause: &Cause) -> String {
    let mut path = cause.field.as_str();
    let (line, column) = loop {
        match (places.get(path), path.rfind(['.', '['])) {
            (Some(place), _) => break *place,
            (None, Some(end)) => path = &path[..end],
            (None, None) => break places.get("").copied().unwrap_or((1, 1)),
        }
    };
    format!("{file}:{line}:{column}: document {number}: {cause}")
}

fn convert(node: &MarkedYaml<'_>, path: &str, places: &mut BTreeMap<String, Place>) -> Result<Value, Cause> {
    places.entry(path.to_owned()).or_insert((node.span.start.line(), node.span.start.col() + 1));
    match &node.data {
        YamlData::Value(scalar) => scalar_value(scalar, path),
        YamlData::Sequence(items) => {
            let items =
                items.iter().enumerate().map(|(index, item)| convert(item, &format!("{path}[{index}]"), places));
            items.collect::<Result<Vec<Value>, Cause>>().map(Value::Array)
        }
        YamlData::Mapping(fields) => {
            let mut object = Map::new();
            for (key, value) in fields {
                let name = match &key.data {
                    YamlData::Value(Scalar::String(name)) => name.to_string(),
                    // `8080: x` in a map of labels: JSON's keys are texts.
                    YamlData::Value(Scalar::Integer(number)) => number.to_string(),
                    YamlData::Value(Scalar::Boolean(word)) => word.to_string(),
                    _ => return Err(Cause::new(path, "a key is no text")),
                };
                let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                // A field stands where its name does, not where its value begins.
                places.insert(field.clone(), (key.span.start.line(), key.span.start.col() + 1));
                object.insert(name, convert(value, &field, places)?);
            }
            Ok(Value::Object(object))
        }
        YamlData::Tagged(_, inner) => convert(inner, path, places),
        YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
            Err(Cause::new(path, "this value is not what its tag says"))
        }
    }
}

fn scalar_value(scalar: &Scalar<'_>, path: &str) -> Result<Value, Cause> {
    Ok(match scalar {
        Scalar::Null => Value::Null,
        Scalar::Boolean(truth) => Value::Bool(*truth),
        Scalar::Integer(number) => Value::from(*number),
        Scalar::FloatingPoint(number) => {
            Value::Number(Number::from_f64(number.0).ok_or_else(|| Cause::new(path, "JSON has no such number"))?)
        }
        Scalar::String(text) => Value::String(text.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Document>, String> {
        read(Path::new("web.yaml"), text).map_err(|error| error.to_string())
    }

    const TWO: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  ports:
  - port: 80
---
# nothing here
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: nginx}]
";

    #[test]
    fn several_documents_are_read_and_empty_ones_passed_over() {
        let documents = read_text(TWO).unwrap();
        assert_eq!(
            documents.iter().map(|document| document.kind).collect::<Vec<_>>(),
            [Kind::Service, Kind::Deployment]
        );
        assert_eq!(documents[0].object["spec"]["ports"][0]["port"], 80);
    }

    #[test]
    fn json_is_yaml_too_and_lists_are_taken_apart() {
        let list = r#"{ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } },
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "nam": "shop" } } ] }"#;
        assert_eq!(read_text(list).unwrap_err(), "web.yaml:3:56: document 1: metadata: metadata.name is missing");
        assert_eq!(read_text(&list.replace("\"nam\"", "\"name\"")).unwrap().len(), 2);
    }

    #[test]
    fn mistakes_are_told_with_document_line_column_and_field() {
        let table = [
            ("- port: 80", "- prot: 80", "web.yaml:7:5: document 1: spec.ports[0].prot: a Service has no such field"),
            ("- port: 80", "- port: x", "web.yaml:7:5: document 1: spec.ports[0].port: invalid type: string \"x\""),
            (
                "  ports:\n",
                "  typ: NodePort\n  ports:\n",
                "web.yaml:6:3: document 1: spec.typ: a Service has no such field",
            ),
            (
                "kind: Deployment",
                "kind: Deploiment",
                "web.yaml:12:1: document 3: kind: the lab does not know the kind Deploiment",
            ),
            (
                "apiVersion: apps/v1",
                "apiVersion: v1",
                "web.yaml:12:1: document 3: kind: Deployment has apiVersion apps/v1, not v1",
            ),
            ("  name: web\n", "  name: web\n  name: web\n", "web.yaml:5:"),
            ("metadata: {name: web}", "metadata: {name: web", "web.yaml:"),
        ];
        for (from, to, expected) in table {
            let message = read_text(&TWO.replacen(from, to, 1)).unwrap_err();
            assert!(message.starts_with(expected), "{to}: {message}");
        }
        assert_eq!(read_text("# nothing\n").unwrap_err(), "web.yaml: there is no object in it");
    }

    #[test]
    fn a_field_that_is_not_there_stands_where_its_parent_does() {
        let documents = read_text(TWO).unwrap();
        let told = documents[1].tell(&Cause::new("spec.template.spec.hostNetwork", "no"));
        assert_eq!(told, "web.yaml:18:5: document 3: spec.template.spec.hostNetwork: no");
    }
}
