//! What `apply`, `get`, `delete` and `scale` do, at the prompt and from a second terminal.
//!
//! `apply` is kubectl's: it remembers in an annotation what the manifest said, so that a field that is taken out of the manifest
//! is taken out of the object too, while what others wrote into the object stays. That takes three objects: what was said
//! last, what is said now, and what stands there.
//!
//! Source: Kubernetes documentation, "Declarative Management of Kubernetes Objects Using Configuration Files".

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::{
    api::{failure::Cause, kind::Kind},
    cli::LabArgs,
    client::{Answer, Client},
    lab::{Cluster, Lab},
    manifest::{self, Document},
    prompt::execute::print,
    yaml,
};

/// Where `apply` keeps what the manifest said; kubectl's own, so that both can be used on one object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// A command on objects.
#[derive(Debug, Subcommand)]
pub enum ObjectCommand {
    /// Make the objects of a manifest, or change them to what it says
    Apply(ApplyArgs),
    /// Show objects
    Get(GetArgs),
    /// Delete an object, or those of a manifest
    Delete(DeleteArgs),
    /// Change the number of pods of a Deployment
    Scale(ScaleArgs),
}

/// Where objects are.
#[derive(Debug, Clone, Args)]
pub struct Scope {
    /// Which lab
    #[command(flatten)]
    pub lab: LabArgs,
    /// The cluster; without it the first
    #[arg(long)]
    pub cluster: Option<String>,
    /// The Kubernetes namespace; without it `default`
    #[arg(short, long)]
    pub namespace: Option<String>,
}

impl Scope {
    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(crate::object::NAMESPACE)
    }
}

/// `apply`
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Where
    #[command(flatten)]
    pub scope: Scope,
    /// The manifest, YAML or JSON; `-` for standard input
    #[arg(short, long, value_name = "FILE", required = true)]
    pub filename: Vec<PathBuf>,
}

/// `get`
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Where
    #[command(flatten)]
    pub scope: Scope,
    /// What: services, endpointslices, pods, deployments, nodes, namespaces, …
    pub kind: String,
    /// The one object
    #[arg(value_name = "NAME")]
    pub object: Option<String>,
    /// How it is shown
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
    /// Only objects with these labels: `app=web,tier!=db`
    #[arg(short = 'l', long)]
    pub selector: Option<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table with more columns
    Wide,
    /// The objects as YAML
    Yaml,
    /// The objects as JSON
    Json,
    /// Their names
    Name,
}

/// `delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Where
    #[command(flatten)]
    pub scope: Scope,
    /// What
    #[arg(required_unless_present = "filename", requires = "object")]
    pub kind: Option<String>,
    /// Which
    #[arg(value_name = "NAME")]
    pub object: Option<String>,
    /// All objects of a manifest instead
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["kind", "object"])]
    pub filename: Vec<PathBuf>,
}

/// `scale`
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// Where
    #[command(flatten)]
    pub scope: Scope,
    /// What: `deployment`
    pub kind: String,
    /// Which
    #[arg(value_name = "NAME")]
    pub object: String,
    /// How many pods
    #[arg(long)]
    pub replicas: u32,
}

impl ObjectCommand {
    fn scope(&self) -> &Scope {
        match self {
            ObjectCommand::Apply(args) => &args.scope,
            ObjectCommand::Get(args) => &args.scope,
            ObjectCommand::Delete(args) => &args.scope,
            ObjectCommand::Scale(args) => &args.scope,
        }
    }

    /// The lab that it names.
    #[must_use]
    pub fn lab(&self) -> &LabArgs {
        &self.scope().lab
    }

    /// Reads its files and checks every object in them.
    fn documents(&self) -> anyhow::Result<Vec<Document>> {
        let files = match self {
            ObjectCommand::Apply(args) => &args.filename[..],
            ObjectCommand::Delete(args) => &args.filename,
            ObjectCommand::Get(_) | ObjectCommand::Scale(_) => &[],
        };
        let mut documents = Vec::new();
        for file in files {
            let text = match file == Path::new("-") {
                true => std::io::read_to_string(std::io::stdin()).context("read standard input")?,
                false => std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?,
            };
            documents.extend(manifest::read(file, &text)?);
        }
        Ok(documents)
    }
}

/// Carries out a command in the cluster that it names, and prints what it says.
///
/// # Errors
///
/// When there is no such cluster, a file cannot be read or is no manifest, or the API refuses something.
pub fn run(lab: &Lab, command: &ObjectCommand) -> anyhow::Result<()> {
    let cluster = match &command.scope().cluster {
        Some(name) => lab.cluster(name).with_context(|| format!("there is no cluster {name}"))?,
        None => lab.clusters.first().context("the lab has no cluster")?,
    };
    let documents = command.documents()?;
    let mut said = String::new();
    let result = carry_out(cluster, command, &documents, &mut said);
    print(&said)?; // also when it failed half way
    result
}

fn carry_out(
    cluster: &Cluster,
    command: &ObjectCommand,
    documents: &[Document],
    said: &mut String,
) -> anyhow::Result<()> {
    let client = Client::new(cluster)?;
    let scope = command.scope();
    match command {
        ObjectCommand::Apply(_) => {
            for document in documents {
                let what = apply(&client, scope, document, said)?;
                said.push_str(&format!("{} {what}\n", title(document.kind, document.name())));
            }
            Ok(())
        }
        ObjectCommand::Get(args) => {
            said.push_str(&get(&client, args)?);
            Ok(())
        }
        ObjectCommand::Delete(args) => {
            if let (Some(kind), Some(name)) = (&args.kind, &args.object) {
                let kind = kind_named(kind)?;
                return delete(&client, kind, scope.namespace(), name, said);
            }
            // What came last depends on what came first.
            documents.iter().rev().try_for_each(|document| {
                let namespace = namespace_of(scope, document)?;
                delete(&client, document.kind, &namespace, document.name(), said)
            })
        }
        ObjectCommand::Scale(args) => {
            let kind = kind_named(&args.kind)?;
            if kind != Kind::Deployment {
                bail!("{kind} has no number of pods; a Deployment has");
            }
            let path = format!("{}/scale", kind.path(Some(scope.namespace()), Some(&args.object)));
            let wanted = json!({ "spec": { "replicas": args.replicas } });
            client.ask(Method::PATCH, &path, JSON, Some((MERGE_PATCH, &wanted)))?.success()?;
            said.push_str(&format!("{} scaled\n", title(kind, &args.object)));
            Ok(())
        }
    }
}

/// `deployment.apps/web`
fn title(kind: Kind, name: &str) -> String {
    let about = kind.describe();
    match about.group {
        "" => format!("{}/{name}", about.singular),
        group => format!("{}.{group}/{name}", about.singular),
    }
}

fn kind_named(word: &str) -> anyhow::Result<Kind> {
    Kind::named(word).ok_or_else(|| {
        let names: Vec<&str> = crate::api::kind::KINDS.into_iter().map(|kind| kind.describe().plural).collect();
        anyhow!("there is no kind {word:?}; there are {}", names.join(", "))
    })
}

fn namespace_of(scope: &Scope, document: &Document) -> anyhow::Result<String> {
    match (document.namespace(), &scope.namespace) {
        (Some(said), Some(wanted)) if said != wanted => {
            let cause =
                Cause::new("metadata.namespace", format!("{said:?} is not the namespace {wanted:?} of --namespace"));
            bail!("{}", document.tell(&cause))
        }
        (Some(said), _) => Ok(said.to_owned()),
        (None, _) => Ok(scope.namespace().to_owned()),
    }
}

fn apply(client: &Client, scope: &Scope, document: &Document, said: &mut String) -> anyhow::Result<&'static str> {
    let kind = document.kind;
    let namespace = namespace_of(scope, document)?;
    let mut wanted = document.object.clone();
    if kind.describe().namespaced {
        wanted["metadata"]["namespace"] = json!(namespace);
    }
    let last = format!("{wanted}\n");
    if !wanted["metadata"]["annotations"].is_object() {
        wanted["metadata"]["annotations"] = json!({});
    }
    wanted["metadata"]["annotations"][LAST_APPLIED] = json!(last);
    let path = kind.path(Some(&namespace), Some(document.name()));
    let found = client.ask(Method::GET, &path, JSON, None)?;
    let (answer, what) = match found.code {
        404 => {
            let path = kind.path(Some(&namespace), None);
            (client.ask(Method::POST, &path, JSON, Some((JSON, &wanted)))?, "created")
        }
        _ => {
            let current = found.success()?;
            let before = current["metadata"]["annotations"][LAST_APPLIED]
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok());
            let change = three_way(&before.unwrap_or(Value::Null), &wanted, &current);
            let answer = client.ask(Method::PATCH, &path, JSON, Some((MERGE_PATCH, &change)))?;
            let same = answer.body["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"];
            (answer, if same { "unchanged" } else { "configured" })
        }
    };
    for warning in &answer.warnings {
        said.push_str(&format!("warning: {warning}\n"));
    }
    match answer.is_success() {
        true => Ok(what),
        false => Err(refused(document, &answer)),
    }
}

/// What the API finds wrong, at its place in the manifest.
fn refused(document: &Document, answer: &Answer) -> anyhow::Error {
    let causes = answer.body["details"]["causes"].as_array().into_iter().flatten();
    let told: Vec<String> = causes
        .map(|cause| {
            let word = |name: &str| cause[name].as_str().unwrap_or_default();
            document.tell(&Cause::new(word("field"), word("message")))
        })
        .collect();
    match told.is_empty() {
        true => anyhow!("{}", document.tell(&Cause::new("", answer.message()))),
        false => anyhow!("{}", told.join("\n")),
    }
}

/// The patch that makes `current` say what `wanted` says, and no longer what only `last` said.
fn three_way(last: &Value, wanted: &Value, current: &Value) -> Value {
    let mut patch = Map::new();
    for (name, value) in wanted.as_object().into_iter().flatten() {
        match (value, &current[name]) {
            (value, current) if value == current => {}
            (Value::Object(_), Value::Object(_)) => {
                let inner = three_way(&last[name], value, &current[name]);
                if inner.as_object().is_some_and(|inner| !inner.is_empty()) {
                    patch.insert(name.clone(), inner);
                }
            }
            (value, _) => _ = patch.insert(name.clone(), value.clone()),
        }
    }
    for name in last.as_object().into_iter().flatten().map(|(name, _)| name) {
        if wanted[name].is_null() && !current[name].is_null() {
            patch.insert(name.clone(), Value::Null);
        }
    }
    Value::Object(patch)
}

fn get(client: &Client, args: &GetArgs) -> anyhow::Result<String> {
    let kind = kind_named(&args.kind)?;
    let namespace = (!args.all_namespaces).then(|| args.scope.namespace());
    let mut path = kind.path(namespace, args.object.as_deref());
    if let Some(selector) = &args.selector {
        path.push_str(&format!("?labelSelector={}", encode(selector)));
    }
    let accept = match args.output {
        None | Some(Output::Wide) => TABLE,
        Some(Output::Yaml | Output::Json | Output::Name) => JSON,
    };
    let body = client.ask(Method::GET, &path, accept, None)?.success()?;
    Ok(match args.output {
        None => table(&body, false, args.all_namespaces && kind.describe().namespaced),
        Some(Output::Wide) => table(&body, true, args.all_namespaces && kind.describe().namespaced),
        Some(Output::Yaml) => yaml::write(&body),
        Some(Output::Json) => format!("{body:#}\n"),
        Some(Output::Name) => {
            let objects = body["items"].as_array().map_or(std::slice::from_ref(&body), Vec::as_slice);
            let names = objects.iter().filter_map(|object| object["metadata"]["name"].as_str());
            names.map(|name| format!("{}\n", title(kind, name))).collect()
        }
    })
}

/// Percent encoding of what has a meaning in a query (RFC 3986, section 2.1).
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn table(table: &Value, wide: bool, with_namespace: bool) -> String {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let columns = list(&table["columnDefinitions"]);
    let shown: Vec<usize> = (0..columns.len()).filter(|index| wide || columns[*index]["priority"] == 0).collect();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = list(&table["rows"]);
    if rows.is_empty() {
        return "no such objects\n".to_owned();
    }
    let mut lines: Vec<Vec<String>> = Vec::new();
    let head = shown.iter().map(|index| word(&columns[*index]["name"]).to_uppercase());
    lines.push(with_namespace.then(|| "NAMESPACE".to_owned()).into_iter().chain(head).collect());
    for row in &rows {
        let namespace = with_namespace.then(|| word(&row["object"]["metadata"]["namespace"]));
        lines.push(namespace.into_iter().chain(shown.iter().map(|index| word(&row["cells"][*index]))).collect());
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    lines.iter().map(line).collect()
}

fn delete(client: &Client, kind: Kind, namespace: &str, name: &str, said: &mut String) -> anyhow::Result<()> {
    client.ask(Method::DELETE, &kind.path(Some(namespace), Some(name)), JSON, None)?.success()?;
    said.push_str(&format!("{} deleted\n", title(kind, name)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::patch;

    #[test]
    fn what_left_the_manifest_leaves_the_object_and_what_others_wrote_stays() {
        let last =
            json!({ "metadata": { "labels": { "a": "1", "b": "2" } }, "spec": { "type": "NodePort", "ports": [1] } });
        let wanted = json!({ "metadata": { "labels": { "a": "1" } }, "spec": { "ports": [2] } });
        let current = json!({ "metadata": { "labels": { "a": "1", "b": "2", "c": "others" } },
            "spec": { "type": "NodePort", "ports": [1], "clusterIP": "100.64.0.1" } });
        let changes = three_way(&last, &wanted, &current);
        assert_eq!(changes, json!({ "metadata": { "labels": { "b": null } }, "spec": { "ports": [2], "type": null } }));
        let mut after = current;
        patch::merge(&mut after, &changes);
        assert_eq!(
            after,
            json!({ "metadata": { "labels": { "a": "1", "c": "others" } }, "spec": { "ports": [2], "clusterIP": "100.64.0.1" } })
        );
        assert_eq!(three_way(&wanted, &wanted, &after), json!({}));
    }

    #[test]
    fn tables_are_aligned_and_wide_columns_hidden() {
        let answer = json!({
            "columnDefinitions": [{ "name": "Name", "priority": 0 }, { "name": "IP", "priority": 1 }, { "name": "Age", "priority": 0 }],
            "rows": [{ "cells": ["web", "11.10.0.2", "5s"], "object": { "metadata": { "namespace": "shop" } } },
                { "cells": ["database", "11.10.0.3", "1h"], "object": { "metadata": { "namespace": "shop" } } }],
        });
        assert_eq!(table(&answer, false, false), "NAME       AGE\nweb        5s\ndatabase   1h\n");
        assert!(table(&answer, true, true).starts_with("NAMESPACE   NAME       IP          AGE\n"));
    }
}
