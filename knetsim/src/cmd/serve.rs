//! `knetsim serve`: the web server of the lab's containers. One text for everybody, or the files of a directory with an
//! index, as `python3 -m http.server` gives it.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::{Component, Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::cli::ServeArgs;

/// What is served.
enum Content {
    Text(String),
    Directory(PathBuf),
}

/// Serves until the process is ended.
///
/// # Errors
///
/// When the port is taken or the directory cannot be read.
pub fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let content = match (args.text, args.dir) {
        (Some(text), _) => Content::Text(text),
        (None, directory) => {
            let directory = directory.unwrap_or_else(|| PathBuf::from("."));
            Content::Directory(directory.canonicalize().with_context(|| format!("open {}", directory.display()))?)
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(SocketAddr::from((Ipv4Addr::UNSPECIFIED, args.port)), Arc::new(content)))
}

async fn serve(address: SocketAddr, content: Arc<Content>) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await; // the client is gone already, or too many files are open
            continue;
        };
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = respond(&request, &content);
                async move { Ok::<_, Infallible>(response) }
            });
            // A client that breaks off is its own affair.
            let _ =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn respond<B>(request: &Request<B>, content: &Content) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match content {
        Content::Text(text) => answer(StatusCode::OK, "text/plain; charset=utf-8", format!("{text}\n").into()),
        Content::Directory(root) => from_directory(root, request.uri().path()),
    }
}

fn from_directory(root: &Path, path: &str) -> Response<Full<Bytes>> {
    let not_found = || answer(StatusCode::NOT_FOUND, "text/plain", "not found\n".into());
    let relative = Path::new(path.trim_start_matches('/'));
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return not_found(); // `..` would lead out of the directory
    }
    // A link inside the directory may lead out of it too.
    let Ok(file) = root.join(relative).canonicalize() else { return not_found() };
    if !file.starts_with(root) {
        return not_found();
    }
    if file.is_dir() {
        return answer(StatusCode::OK, "text/html; charset=utf-8", index(&file, path).into());
    }
    match std::fs::read(&file) {
        Ok(bytes) => answer(StatusCode::OK, "application/octet-stream", bytes.into()),
        Err(_) => not_found(),
    }
}

fn index(directory: &Path, path: &str) -> String {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", escape(&entry.file_name().to_string_lossy()))
        })
        .collect();
    names.sort();
    let items: String = names.iter().map(|name| format!("<li><a href=\"{name}\">{name}</a></li>\n")).collect();
    let title = format!("Directory listing for {}", escape(path));
    format!(
        "<!DOCTYPE html>\n<html>\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n<ul>\n{items}</ul>\n</body>\n</html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn get(content: &Content, path: &str) -> (StatusCode, String) {
        let request = Request::builder().uri(path).body(()).unwrap();
        let response = respond(&request, content);
        let status = response.status();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(response.into_body().collect()).unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn a_text_answers_every_path() {
        let content = Content::Text("S1-W2".to_owned());
        assert_eq!(get(&content, "/svc1"), (StatusCode::OK, "S1-W2\n".to_owned()));
    }

    #[test]
    fn a_directory_gives_its_index_and_files_and_nothing_outside() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("a<b.txt"), "text").unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), root.join("link")).unwrap();
        let content = Content::Directory(root.canonicalize().unwrap());
        let (status, index) = get(&content, "/");
        assert_eq!(status, StatusCode::OK);
        assert!(index.contains("Directory listing for /") && index.contains("a&lt;b.txt"), "{index}");
        for path in ["/../secret", "/link", "/none"] {
            assert_eq!(get(&content, path).0, StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn other_methods_are_refused() {
        let request = Request::builder().method("POST").body(()).unwrap();
        let response = respond(&request, &Content::Text(String::new()));
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
