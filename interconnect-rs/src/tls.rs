//! Mutual TLS for links: who may be our peer.
//!
//! Both sides show a certificate, and both check that the other's is signed by the authority in `caCertFile`. The
//! side that dials also checks that the certificate names the host it dialled (a name, or an IP address in the
//! subject alternative names). TLS 1.3 only: both ends are this program. The certificate says who may join the
//! network, not which router id the peer bears; as with skrouterd, the id is what the peer says it is.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tracing::warn;

use crate::config::SslProfile;
use crate::error::TlsError;

/// The side that is dialled.
///
/// # Errors
///
/// [`TlsError`] when a file cannot be read or the certificate and key do not fit.
pub(crate) fn server_config(profile: &SslProfile) -> Result<ServerConfig, TlsError> {
    let identity = Identity::load(profile)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&identity.roots), provider())
        .build()
        .map_err(|error| unusable(profile, "caCertFile cannot verify peers", error))?;
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(profile, "TLS 1.3 is not available", error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)
        .map_err(|error| unusable(profile, "certFile and privateKeyFile do not fit together", error))
}

/// The side that dials. Without `verify_hostname` any certificate of the authority will do.
///
/// # Errors
///
/// As [`server_config`].
pub(crate) fn client_config(profile: &SslProfile, verify_hostname: bool) -> Result<ClientConfig, TlsError> {
    let identity = Identity::load(profile)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&identity.roots), provider())
        .build()
        .map_err(|error| unusable(profile, "caCertFile cannot verify peers", error))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| unusable(profile, "TLS 1.3 is not available", error))?;
    let builder = if verify_hostname {
        builder.with_webpki_verifier(verifier)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyHostname(verifier)))
    };
    builder
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(|error| unusable(profile, "certFile and privateKeyFile do not fit together", error))
}

/// What the files of an `sslProfile` hold.
struct Identity {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn load(profile: &SslProfile) -> Result<Identity, TlsError> {
        let read = |attribute: &'static str, path: &std::path::Path| {
            let (profile, path) = (profile.name.clone(), path.to_owned());
            move |source| TlsError::Read { profile, attribute, path, source }
        };
        let certificates = |attribute, path: &std::path::Path| {
            let found = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(read(attribute, path))?;
            if found.is_empty() {
                return Err(read(attribute, path)(rustls_pki_types::pem::Error::NoItemsFound));
            }
            Ok(found)
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("caCertFile", &profile.ca)? {
            roots
                .add(certificate)
                .map_err(|error| unusable(profile, "caCertFile holds no authority's certificate", error))?;
        }
        let chain = certificates("certFile", &profile.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&profile.key).map_err(read("privateKeyFile", &profile.key))?;
        warn_of_readable_key(profile);
        Ok(Identity { roots: Arc::new(roots), chain, key })
    }
}

fn warn_of_readable_key(profile: &SslProfile) {
    let mode = std::fs::metadata(&profile.key).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        let mode = format!("{:o}", mode & 0o777);
        warn!(file = %profile.key.display(), mode, "others can read the private key; set its mode to 0600");
    }
}

fn unusable(
    profile: &SslProfile,
    what: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> TlsError {
    TlsError::Unusable { profile: profile.name.clone(), what, source: Box::new(error) }
}

/// The provider is named here, not taken from the process's default, which whoever links another one in could change.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// `verifyHostname: false`: everything is checked but the name.
#[derive(Debug)]
struct AnyHostname(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyHostname {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The name is the last that is checked, so this error means that all else was in order.
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}
