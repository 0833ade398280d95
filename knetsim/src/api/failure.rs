//! What the API answers when it cannot do what was asked: a `Status` object with a reason that programs understand.
//!
//! Source: Kubernetes `apimachinery/pkg/apis/meta/v1/types.go`, `Status` and `StatusReason`; kubectl decides by `reason`.

use serde_json::{Value, json};

use super::kind::Kind;

/// One thing that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The field, `spec.ports[0].port`; empty for the object as a whole.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

impl Cause {
    /// Puts a cause together.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

/// Why a request failed. Each reason has its HTTP status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request itself makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such object.
    #[error("{} {name:?} not found", kind.describe().plural)]
    NotFound {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// There is no such URL.
    #[error("the server could not find the requested resource: {0}")]
    NoSuchPath(String),
    /// An object of this name is there already.
    #[error("{} {name:?} already exists", kind.describe().plural)]
    AlreadyExists {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The object was changed since it was read.
    #[error("operation cannot be fulfilled on {} {name:?}: {why}", kind.describe().plural)]
    Conflict {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// In what way.
        why: String,
    },
    /// The object is not what it should be.
    #[error("{kind} {name:?} is invalid: {}", list(causes))]
    Invalid {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What is wrong, field by field.
        causes: Vec<Cause>,
    },
    /// It may not be done.
    #[error("{0}")]
    Forbidden(String),
    /// The URL exists, but not for this method.
    #[error("{0}")]
    MethodNotAllowed(String),
    /// The body is in a format that is not understood.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// etcd has forgotten the revision from which the client wants to go on.
    #[error("too old resource version: {wanted}; the oldest one left is {oldest}: list anew")]
    Expired {
        /// The first revision that was asked for.
        wanted: i64,
        /// The oldest that there is.
        oldest: i64,
    },
    /// etcd does not answer.
    #[error("etcd does not answer: {0}")]
    Unavailable(String),
    /// What stands in etcd cannot be read.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// The HTTP status.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Failure::BadRequest(_) => 400,
            Failure::Forbidden(_) => 403,
            Failure::NotFound { .. } | Failure::NoSuchPath(_) => 404,
            Failure::MethodNotAllowed(_) => 405,
            Failure::AlreadyExists { .. } | Failure::Conflict { .. } => 409,
            Failure::Expired { .. } => 410,
            Failure::UnsupportedMediaType(_) => 415,
            Failure::Invalid { .. } => 422,
            Failure::Internal(_) => 500,
            Failure::Unavailable(_) => 503,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Failure::BadRequest(_) => "BadRequest",
            Failure::Forbidden(_) => "Forbidden",
            Failure::NotFound { .. } | Failure::NoSuchPath(_) => "NotFound",
            Failure::MethodNotAllowed(_) => "MethodNotAllowed",
            Failure::AlreadyExists { .. } => "AlreadyExists",
            Failure::Conflict { .. } => "Conflict",
            Failure::Expired { .. } => "Expired",
            Failure::UnsupportedMediaType(_) => "UnsupportedMediaType",
            Failure::Invalid { .. } => "Invalid",
            Failure::Internal(_) => "InternalError",
            Failure::Unavailable(_) => "ServiceUnavailable",
        }
    }

    /// The `Status` object.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": self.reason(),
            "code": self.code(),
        });
        let of = |kind: &Kind, name: &str| json!({ "name": name, "group": kind.describe().group, "kind": kind.describe().plural });
        match self {
            Failure::NotFound { kind, name }
            | Failure::AlreadyExists { kind, name }
            | Failure::Conflict { kind, name, .. } => status["details"] = of(kind, name),
            Failure::Invalid { kind, name, causes } => {
                status["details"] = of(kind, name);
                let causes: Vec<Value> = causes
                    .iter()
                    .map(|cause| json!({ "reason": "FieldValueInvalid", "message": cause.message, "field": cause.field }))
                    .collect();
                status["details"]["causes"] = Value::Array(causes);
            }
            Failure::BadRequest(_)
            | Failure::NoSuchPath(_)
            | Failure::Forbidden(_)
            | Failure::MethodNotAllowed(_)
            | Failure::UnsupportedMediaType(_)
            | Failure::Expired { .. }
            | Failure::Unavailable(_)
            | Failure::Internal(_) => {}
        }
        status
    }
}

fn list(causes: &[Cause]) -> String {
    causes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
