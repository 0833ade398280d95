//! The HTTP server: each request becomes a call of the [`Registry`], a watch, or a word about the server itself.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tracing::{info, warn};

use super::{
    discovery,
    failure::Failure,
    kind::Kind,
    metrics::Metrics,
    patch, prepare,
    registry::{Part, Precondition, Registry},
    request::{self, FieldValidation, Objects, Options, Target},
    schema, table,
    view::View,
    watch::{self, Window},
};

/// A body longer than this is refused; etcd takes 1.5 MB.
const MAX_BODY_BYTES: usize = 3 << 19;
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Clients ask for it with a `@` before `v1.0`, which is no MIME type; kube-apiserver answers with this.
const OPENAPI: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A whole answer, or the lines of a watch.
type Body = Either<Full<Bytes>, StreamBody<Lines>>;
type Lines = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// What every request needs.
struct Server {
    registry: Registry,
    address: SocketAddr,
    metrics: Metrics,
}

/// Serves the API until `shutdown`; watches are cut then, and their clients come back to whoever serves next.
///
/// # Errors
///
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, registry: Registry, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    info!(%address, "serving the Kubernetes API");
    let server = Arc::new(Server { registry, address, metrics: Metrics::default() });
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a connection was lost before it was accepted");
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
            () = &mut shutdown => return Ok(()),
        };
        let _ = stream.set_nodelay(true); // a line of a watch is small and wanted at once
        let server = Arc::clone(&server);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            let mut http = http1::Builder::new();
            // A client that goes away in the middle of a request is no event.
            let _ = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (verb, uri) = (request.method().clone(), request.uri().clone());
        let response = self.carry_out(request).await.unwrap_or_else(|failure| {
            tracing::debug!(%verb, %uri, %failure, "refused");
            let code = StatusCode::from_u16(failure.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            json_response(code, &failure.status())
        });
        self.metrics.count(verb.as_str(), response.status().as_u16());
        response
    }

    async fn carry_out(&self, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        match request::target(&path)? {
            Target::About(words) => self.about(&words, &path).await,
            Target::Events => events(&method, request).await,
            Target::Objects(objects) => {
                let options = request::options(request.uri().query().unwrap_or_default())?;
                if method == Method::GET {
                    let as_table = wants_table(&request);
                    let agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
                    return self.read(objects, options, as_table, View::of(agent.unwrap_or_default())).await;
                }
                if !objects.kind.is_writable() {
                    let plural = objects.kind.describe().plural;
                    return Err(Failure::MethodNotAllowed(format!("{plural} are written by the API server alone")));
                }
                if options.dry_run {
                    return Err(Failure::BadRequest(
                        "dryRun is not offered; `kubectl --dry-run=client` checks here".to_owned(),
                    ));
                }
                self.write(&method, &objects, &options, request).await
            }
        }
    }

    async fn about(&self, words: &[String], path: &str) -> Result<Response<Body>, Failure> {
        let texts: Vec<&str> = words.iter().map(String::as_str).collect();
        match texts[..] {
            ["healthz" | "livez" | "readyz", ..] => {
                // Whoever cannot read cannot serve.
                self.registry.get(Kind::Namespace, "", "default").await?;
                Ok(response(StatusCode::OK, "text/plain", Bytes::from_static(b"ok")))
            }
            ["metrics"] => Ok(response(StatusCode::OK, METRICS, self.metrics.render().into())),
            ["openapi", "v2"] => Ok(response(StatusCode::OK, OPENAPI, discovery::openapi().into())),
            _ => match discovery::answer(words, &self.address.to_string()) {
                Some(answer) => Ok(json_response(StatusCode::OK, &answer)),
                None => Err(Failure::NoSuchPath(path.to_owned())),
            },
        }
    }

    async fn read(
        &self,
        objects: Objects,
        options: Options,
        as_table: bool,
        view: View,
    ) -> Result<Response<Body>, Failure> {
        let Objects { kind, namespace, name, subresource } = objects;
        if options.watch {
            let window = Window { kind, namespace, options, as_table, view };
            return Ok(self.watch(window));
        }
        let now = prepare::clock();
        if let Some(name) = name {
            let object = self.get(kind, namespace.as_deref().unwrap_or_default(), &name, view).await?;
            let answer = match (subresource.as_deref(), as_table) {
                (Some("scale"), _) => scale_of(&object),
                (_, true) => {
                    let version = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                    table::table(kind, &[object], &options.include_object, &version, now)
                }
                (_, false) => object,
            };
            return Ok(json_response(StatusCode::OK, &answer));
        }
        let listing = self.registry.list(kind, namespace.as_deref()).await?;
        let metadata = json!({ "resourceVersion": listing.revision.to_string() });
        let window = Window { kind, namespace, options, as_table, view };
        let objects: Vec<Value> = listing.objects.into_iter().filter_map(|object| window.show(object)).collect();
        let answer = match as_table {
            true => table::table(kind, &objects, &window.options.include_object, &metadata, now),
            false => json!({
                "kind": format!("{kind}List"), "apiVersion": kind.api_version(), "metadata": metadata, "items": objects,
            }),
        };
        Ok(json_response(StatusCode::OK, &answer))
    }

    /// One object, by the name that it has in the client's view.
    async fn get(&self, kind: Kind, namespace: &str, name: &str, view: View) -> Result<Value, Failure> {
        match (self.registry.get(kind, namespace, name).await, view) {
            (Err(Failure::NotFound { .. }), View::LowerCaseNodes) => {
                let all = self.registry.list(kind, Some(namespace)).await?.objects;
                let mut shown = all.into_iter().map(|object| view.show(kind, object));
                let missing = Failure::NotFound { kind, name: name.to_owned() };
                shown.find(|object| object["metadata"]["name"] == name).ok_or(missing)
            }
            (found, _) => found.map(|object| view.show(kind, object)),
        }
    }

    fn watch(&self, window: Window) -> Response<Body> {
        let (lines, received) = mpsc::channel(watch::QUEUE);
        // The task ends with the connection: its queue is closed then.
        let (registry, open) = (self.registry.clone(), self.metrics.open_watch());
        tokio::spawn(async move {
            watch::follow(registry, window, lines).await;
            drop(open);
        });
        let stream = futures_util::stream::unfold(received, |mut received| async move {
            received.recv().await.map(|line| (Ok(Frame::data(line)), received))
        });
        let lines: Lines = Box::pin(stream);
        let mut response = Response::new(Either::Right(StreamBody::new(lines)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        response
    }

    async fn write(
        &self,
        method: &Method,
        objects: &Objects,
        options: &Options,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let kind = objects.kind;
        let namespace = objects.namespace.as_deref().unwrap_or_default();
        let content_type = content_type(&request);
        let body = read_body(request).await?;
        match (method, objects.name.as_deref()) {
            (&Method::POST, None) => {
                let object = parse(&content_type, JSON, &body)?;
                let warnings = check_fields(kind, &object, options)?;
                let made = self.registry.create(kind, namespace, object).await?;
                Ok(with_warnings(json_response(StatusCode::CREATED, &made), &warnings))
            }
            (&Method::PUT, Some(name)) => {
                let object = parse(&content_type, JSON, &body)?;
                let (changed, warnings) = self.replace(objects, namespace, name, &object, options).await?;
                Ok(with_warnings(json_response(StatusCode::OK, &changed), &warnings))
            }
            (&Method::PATCH, Some(name)) => {
                let patch = parse_patch(&content_type, &body)?;
                let (changed, warnings) = self.patch(objects, namespace, name, &patch, options).await?;
                Ok(with_warnings(json_response(StatusCode::OK, &changed), &warnings))
            }
            (&Method::DELETE, Some(name)) => {
                let wanted: Value = if body.is_empty() { json!({}) } else { parse(&content_type, JSON, &body)? };
                let word = |name: &str| wanted["preconditions"][name].as_str().map(str::to_owned);
                let only = Precondition { uid: word("uid"), resource_version: word("resourceVersion") };
                if wanted["propagationPolicy"] == "Orphan" {
                    return Err(Failure::BadRequest(
                        "pods cannot outlive their Deployment here; leave out --cascade=orphan".to_owned(),
                    ));
                }
                let grace = wanted["gracePeriodSeconds"].as_i64();
                let deleted = self.registry.delete(kind, namespace, name, grace, &only).await?;
                Ok(json_response(StatusCode::OK, &deleted))
            }
            _ => Err(Failure::MethodNotAllowed(format!("{method} does not work on {}", kind.describe().plural))),
        }
    }

    async fn replace(
        &self,
        objects: &Objects,
        namespace: &str,
        name: &str,
        object: &Value,
        options: &Options,
    ) -> Result<(Value, Vec<String>), Failure> {
        let kind = objects.kind;
        match objects.subresource.as_deref() {
            Some("scale") => {
                let replicas = object["spec"]["replicas"].clone();
                let change = |mut deployment: Value| {
                    deployment["spec"]["replicas"] = replicas.clone();
                    Ok(deployment)
                };
                let changed = self.registry.update(kind, namespace, name, Part::Spec, change).await?;
                Ok((scale_of(&changed), Vec::new()))
            }
            part => {
                let warnings = check_fields(kind, object, options)?;
                let part = if part == Some("status") { Part::Status } else { Part::Spec };
                let changed = self.registry.update(kind, namespace, name, part, |_| Ok(object.clone())).await?;
                Ok((changed, warnings))
            }
        }
    }

    async fn patch(
        &self,
        objects: &Objects,
        namespace: &str,
        name: &str,
        patch: &Patch,
        options: &Options,
    ) -> Result<(Value, Vec<String>), Failure> {
        let kind = objects.kind;
        if objects.subresource.as_deref() == Some("scale") {
            let change = |mut deployment: Value| {
                let mut scale = scale_of(&deployment);
                patch.apply(&mut scale);
                deployment["spec"]["replicas"] = scale["spec"]["replicas"].clone();
                Ok(deployment)
            };
            let changed = self.registry.update(kind, namespace, name, Part::Spec, change).await?;
            return Ok((scale_of(&changed), Vec::new()));
        }
        let part = if objects.subresource.as_deref() == Some("status") { Part::Status } else { Part::Spec };
        let warnings = std::sync::Mutex::new(Vec::new());
        let change = |mut object: Value| {
            patch.apply(&mut object);
            let found = check_fields(kind, &object, options)?;
            *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
            Ok(object)
        };
        let changed = self.registry.update(kind, namespace, name, part, change).await?;
        Ok((changed, warnings.into_inner().unwrap_or_default()))
    }
}

/// A patch of one of the two kinds that are understood.
enum Patch {
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    fn apply(&self, object: &mut Value) {
        match self {
            Patch::Merge(patch) => patch::merge(object, patch),
            Patch::Strategic(patch) => patch::strategic(object, patch),
        }
    }
}

fn parse_patch(content_type: &str, body: &[u8]) -> Result<Patch, Failure> {
    match content_type {
        MERGE_PATCH => Ok(Patch::Merge(parse(content_type, MERGE_PATCH, body)?)),
        STRATEGIC_PATCH => Ok(Patch::Strategic(parse(content_type, STRATEGIC_PATCH, body)?)),
        "application/apply-patch+yaml" => Err(Failure::UnsupportedMediaType(
            "server-side apply is not offered: no record is kept of who owns which field; leave out --server-side"
                .to_owned(),
        )),
        other => Err(Failure::UnsupportedMediaType(format!(
            "{other} is no patch that is understood; send {STRATEGIC_PATCH} or {MERGE_PATCH}"
        ))),
    }
}

/// The `Scale` of a Deployment: what `kubectl scale` reads and writes.
fn scale_of(deployment: &Value) -> Value {
    let labels = deployment["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let selector: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let metadata = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    let metadata: serde_json::Map<String, Value> =
        metadata.into_iter().map(|name| (name.to_owned(), deployment["metadata"][name].clone())).collect();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": deployment["spec"]["replicas"] },
        "status": { "replicas": deployment["status"]["replicas"].as_u64().unwrap_or(0), "selector": selector.join(",") },
    })
}

/// Events are for people: they go into the log, and nobody can ask for them again.
async fn events(method: &Method, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    match *method {
        Method::GET => {
            let list =
                json!({ "kind": "EventList", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": [] });
            Ok(json_response(StatusCode::OK, &list))
        }
        Method::POST => {
            let content_type = content_type(&request);
            let event = parse(&content_type, JSON, &read_body(request).await?)?;
            let about = if event["regarding"].is_object() { &event["regarding"] } else { &event["involvedObject"] };
            let message = if event["note"].is_string() { &event["note"] } else { &event["message"] };
            info!(kind = %about["kind"], name = %about["name"], reason = %event["reason"], message = %message, "event");
            Ok(json_response(StatusCode::CREATED, &event))
        }
        _ => Err(Failure::MethodNotAllowed("events are created and listed".to_owned())),
    }
}

/// The fields that a kind does not have, as warnings; or a refusal, if the client wants it so.
fn check_fields(kind: Kind, object: &Value, options: &Options) -> Result<Vec<String>, Failure> {
    // A field of the wrong type is told when the object is prepared.
    let unknown = schema::check(kind, object).unwrap_or_default();
    let said: Vec<String> = unknown.iter().map(|field| format!("unknown field \"{field}\"")).collect();
    match options.field_validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(said),
        FieldValidation::Strict if said.is_empty() => Ok(said),
        FieldValidation::Strict => Err(Failure::BadRequest(format!("strict decoding error: {}", said.join(", ")))),
    }
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| Failure::BadRequest(format!("read the body: {error}")))
}

fn content_type(request: &Request<Incoming>) -> String {
    let header = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or(JSON);
    header.split(';').next().unwrap_or(JSON).trim().to_owned()
}

fn parse(content_type: &str, wanted: &str, body: &[u8]) -> Result<Value, Failure> {
    if content_type != wanted {
        let why = format!(
            "{content_type} is not understood here, only {wanted}; for `kubectl create KIND` write \
             `kubectl create KIND … --dry-run=client -o yaml | kubectl apply -f -`; client-go: set contentType"
        );
        return Err(Failure::UnsupportedMediaType(why));
    }
    serde_json::from_slice(body).map_err(|error| Failure::BadRequest(format!("the body is no JSON: {error}")))
}

/// Whether the first form that the client takes and we have is a table.
fn wants_table(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let known = accept.split(',').map(str::trim).find(|form| form.starts_with(JSON));
    known.is_some_and(|form| form.contains("as=Table") && form.contains("v=v1;"))
}

fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    response(code, JSON, Bytes::from(value.to_string()))
}

fn response(code: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// RFC 7234, section 5.5: code 299 is a lasting warning; clients of Kubernetes show them.
fn with_warnings(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let text = format!("299 - \"{}\"", warning.replace('\\', "\\\\").replace('"', "\\\""));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(hyper::header::WARNING, value);
        }
    }
    response
}
