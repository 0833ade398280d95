//! Whether an object has the fields of its kind and no others.
//!
//! The types of `k8s-openapi` are generated from Kubernetes' own `OpenAPI` document, so they know every field and its type. They
//! ignore what they do not know; so an object is read into its type and written again, and a field that did not survive is
//! one that Kubernetes does not have.

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Endpoints, Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::{IPAddress, ServiceCIDR},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use serde_json::Value;

use super::{failure::Cause, kind::Kind};

/// Reads an object as its kind; returns the fields that the kind does not have.
///
/// # Errors
///
/// The field whose value has the wrong type.
pub fn check(kind: Kind, object: &Value) -> Result<Vec<String>, Cause> {
    match kind {
        Kind::Namespace => unknown_fields::<Namespace>(object),
        Kind::Node => unknown_fields::<Node>(object),
        Kind::Pod => unknown_fields::<Pod>(object),
        Kind::Deployment => unknown_fields::<Deployment>(object),
        Kind::Service => unknown_fields::<Service>(object),
        Kind::EndpointSlice => unknown_fields::<EndpointSlice>(object),
        Kind::Endpoints => unknown_fields::<Endpoints>(object),
        Kind::ServiceCidr => unknown_fields::<ServiceCIDR>(object),
        Kind::IpAddress => unknown_fields::<IPAddress>(object),
    }
}

/// Reads an object as a type of `k8s-openapi`.
///
/// # Errors
///
/// The field whose value has the wrong type.
pub fn read<T: DeserializeOwned>(object: &Value) -> Result<T, Cause> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { String::new() } else { field };
        Cause::new(field, error.into_inner().to_string())
    })
}

fn unknown_fields<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Vec<String>, Cause> {
    let typed: T = read(object)?;
    let known = serde_json::to_value(&typed).map_err(|error| Cause::new("", error.to_string()))?;
    let mut unknown = Vec::new();
    compare("", object, &known, &mut unknown);
    Ok(unknown)
}

fn compare(path: &str, given: &Value, known: &Value, unknown: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                let field = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(known) => compare(&field, value, known, unknown),
                    None => unknown.push(field),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                compare(&format!("{path}[{index}]"), given, known, unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_that_the_kind_does_not_have_is_named_with_its_path() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "creationTimestamp": null },
            "spec": { "ports": [{ "port": 80, "targetport": 8080 }], "selectr": { "app": "web" } },
        });
        assert_eq!(check(Kind::Service, &service).unwrap(), ["spec.ports[0].targetport", "spec.selectr"]);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_path() {
        let service = json!({ "apiVersion": "v1", "kind": "Service", "spec": { "ports": [{ "port": "80" }] } });
        let cause = check(Kind::Service, &service).unwrap_err();
        assert_eq!(cause.field, "spec.ports[0].port");
        assert!(cause.message.contains("invalid type: string \"80\""), "{cause}");
    }

    #[test]
    fn a_whole_deployment_is_known() {
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web", "labels": { "app": "web" } },
            "spec": {
                "replicas": 2, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [
                    { "name": "web", "image": "nginx", "resources": { "limits": { "cpu": "1", "memory": "64Mi" } } },
                ] } },
            },
        });
        assert!(check(Kind::Deployment, &deployment).unwrap().is_empty());
    }
}
