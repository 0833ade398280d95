//! One request to etcd: with a time limit, and with another member when the first is down.

use std::future::Future;
use std::time::Duration;

use crate::error::RegistryError;

/// gRPC's code for "nobody answers there". Source: gRPC, "Status codes and their use".
const GRPC_UNAVAILABLE: i32 = 14;
/// The client sends each request to a member at random; so many tries make it unlikely to meet only the ones that are down.
const TRIES_PER_REQUEST: u32 = 6;
/// No single request needs longer, even when etcd is electing a leader.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes one request: with a time limit, and again while the member that was asked is down.
pub(super) async fn call<T, F>(what: &'static str, mut request: impl FnMut() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, etcd_client::Error>>,
{
    let mut tries = 1;
    loop {
        match tokio::time::timeout(REQUEST_TIMEOUT, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if tries < TRIES_PER_REQUEST && is_unavailable(&error) => tries += 1,
            Ok(Err(source)) => return Err(RegistryError::Etcd { what, source }),
            Err(_) => return Err(RegistryError::Timeout { what, limit: REQUEST_TIMEOUT }),
        }
    }
}

fn is_unavailable(error: &etcd_client::Error) -> bool {
    match error {
        etcd_client::Error::GRpcStatus(status) => i32::from(status.code()) == GRPC_UNAVAILABLE,
        etcd_client::Error::TransportError(_) => true,
        _ => false,
    }
}
