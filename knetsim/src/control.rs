//! The lab's control socket: how a second terminal asks a running lab for its status, or to end.
//!
//! One request and one answer per connection, each a line of JSON. The socket lies in the lab's directory, which belongs
//! to whoever booted the lab; nobody else can open it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{status, world::World};

/// The socket's name in the lab's directory.
pub const SOCKET: &str = "control.sock";
/// A request longer than this is refused.
const MAX_REQUEST_BYTES: u64 = 4096;
/// How long a client may take for its request, and the lab for its answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The state of the lab.
    Status,
    /// To tear the lab down.
    Down,
}

/// Opens the socket and answers requests in a thread. `down` is called when the lab shall end.
///
/// # Errors
///
/// When the socket cannot be made.
pub fn serve(directory: &Path, world: Arc<World>, down: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let path = directory.join(SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away, or sends nonsense, harms itself only.
            if let Ok(Request::Down) = answer(stream, &world) {
                down();
            }
        }
    })?;
    Ok(())
}

fn answer(mut stream: UnixStream, world: &World) -> anyhow::Result<Request> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_REQUEST_BYTES)).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line)?;
    let reply = match request {
        Request::Status => serde_json::to_string(&status::collect(world))?,
        Request::Down => "\"ending\"".to_owned(),
    };
    writeln!(stream, "{reply}")?;
    Ok(request)
}

/// Asks the lab whose directory this is; returns the answer's JSON.
///
/// # Errors
///
/// When there is no lab or it does not answer.
pub fn ask(directory: &Path, request: Request) -> anyhow::Result<String> {
    let path = directory.join(SOCKET);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("connect to the lab at {}; is it still booting?", path.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    writeln!(stream, "{}", serde_json::to_string(&request)?)?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    if reply.is_empty() {
        bail!("the lab at {} gave no answer", path.display());
    }
    Ok(reply)
}
