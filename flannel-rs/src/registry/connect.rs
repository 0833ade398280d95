//! How we connect to etcd: time limits, who we are, and whether the connection is encrypted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::config::{EtcdConfig, TlsConfig};
use crate::error::RegistryError;

/// The settings of every connection.
pub(super) fn options(config: &EtcdConfig) -> Result<ConnectOptions, RegistryError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(Duration::from_secs(2))
        // A watch is silent for hours; without pings it would not notice that its member is gone.
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
        .with_keep_alive_while_idle(true)
        // A member cut off from the others refuses, instead of serving what was once true.
        .with_require_leader(true);
    if let Some((name, password)) = &config.credentials {
        options = options.with_user(name, password).with_auto_token_refresh(true);
    }
    if let Some(files) = &config.tls {
        options = options.with_tls(tls(files)?);
    }
    Ok(options)
}

/// What to try when connections break. With TLS 1.3 etcd's "certificate required" may come after it has closed the connection.
pub(super) fn hint(config: &EtcdConfig) -> Option<&'static str> {
    let hint = "if etcd wants a certificate of its clients, give --etcd-certfile and --etcd-keyfile";
    config.tls.as_ref().is_some_and(|tls| tls.identity.is_none()).then_some(hint)
}

/// Reads the files of an encrypted connection.
fn tls(files: &TlsConfig) -> Result<TlsOptions, RegistryError> {
    let mut tls = TlsOptions::new();
    tls = match &files.ca {
        Some(ca) => {
            let pem = read("etcd-cafile", ca)?;
            // The library takes a file without a certificate for an authority that has signed nothing.
            if CertificateDer::pem_slice_iter(&pem).flatten().next().is_none() {
                return Err(RegistryError::NoCertificate { path: ca.clone() });
            }
            tls.ca_certificate(Certificate::from_pem(pem))
        }
        None => tls.with_native_roots(),
    };
    if let Some((certificate, key)) = &files.identity {
        tls = tls.identity(Identity::from_pem(read("etcd-certfile", certificate)?, read("etcd-keyfile", key)?));
    }
    Ok(tls)
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, RegistryError> {
    fs::read(path).map_err(|source| RegistryError::TlsFile { flag, path: path.to_owned(), source })
}
