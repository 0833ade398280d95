//! Objects as YAML, as `get -o yaml` prints them.

use serde_json::Value;

/// Writes a value in block style.
#[must_use]
pub fn write(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                text.push_str(&format!("{:indent$}{}:", "", string(name)));
                behind(value, indent + 2, indent, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&format!("{:indent$}-", ""));
                let mut inner = String::new();
                block(item, indent + 2, &mut inner);
                // The first line of the item stands behind its dash.
                text.push_str(&format!(" {}", inner.trim_start()));
            }
        }
        scalar => text.push_str(&format!("{:indent$}{}\n", "", inline(scalar))),
    }
}

/// What stands behind a field's name: a scalar on the same line, anything larger on the next; a list no further in than the name.
fn behind(value: &Value, indent: usize, list_indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            block(value, indent, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            block(value, list_indent, text);
        }
        Value::String(lines) if lines.ends_with('\n') && lines.len() > 1 && !lines.starts_with([' ', '\n']) => {
            // The last line end is part of a literal block; further ones would need a sign of their own.
            match lines.ends_with("\n\n") {
                true => text.push_str(&format!(" {}\n", inline(value))),
                false => {
                    text.push_str(" |\n");
                    for line in lines.lines() {
                        text.push_str(&format!("{:indent$}{line}\n", ""));
                    }
                }
            }
        }
        scalar => text.push_str(&format!(" {}\n", inline(scalar))),
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        other => other.to_string(), // numbers, booleans, null, [] and {} are written as in JSON
    }
}

/// A text, in quotes when YAML would otherwise read something else: a number, a boolean, a time, a sign.
fn string(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./%+ ".contains(character);
    let is_word = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/' || first == '_');
    // Words of YAML 1.1 count too: kubectl reads them as booleans.
    let is_taken =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_lowercase().as_str());
    match is_word && !is_taken && text.chars().all(plain) && !text.ends_with(' ') {
        true => text.to_owned(),
        false => Value::from(text).to_string(), // JSON's quoted texts are YAML's
    }
}

#[cfg(test)]
mod tests {
    use saphyr::{LoadableYamlNode as _, Yaml};
    use serde_json::json;

    use super::*;

    #[test]
    fn it_looks_as_kubectl_prints_it() {
        let service = json!({ "kind": "Service", "spec": { "ports": [{ "port": 80, "name": "http" }], "clusterIP": "100.64.0.1",
            "selector": {}, "externalIPs": [] }, "text": "a\nb\n" });
        let expected = "\
kind: Service
spec:
  ports:
  - port: 80
    name: http
  clusterIP: \"100.64.0.1\"
  selector: {}
  externalIPs: []
text: |
  a
  b
";
        assert_eq!(write(&service), expected);
    }

    #[test]
    fn texts_stay_texts() {
        for text in [
            "yes",
            "1",
            "0x1f",
            "1e3",
            "null",
            "~",
            "- a",
            "a: b",
            "# a",
            "",
            " a",
            "a ",
            "*a",
            "2026-11-21",
            "ä",
            "a\nb",
            "a\n\n",
            "None",
        ] {
            let written = write(&json!({ "x": text }));
            let read = &Yaml::load_from_str(&written).unwrap()[0];
            assert_eq!(read["x"].as_str(), Some(text), "{written}");
        }
    }
}
