//! The certificates of the interconnect: one authority per lab, one certificate per router.
//!
//! They are made anew at each boot and live in the lab's directory, the keys readable by their owner alone.

use std::{
    fs::OpenOptions,
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// The files that a router's `sslProfile` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The authority that both routers trust.
    pub ca: PathBuf,
    /// The router's certificate.
    pub certificate: PathBuf,
    /// Its private key, mode 0600.
    pub key: PathBuf,
}

/// The authority of one lab. Its own key is never written anywhere.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
    ca: PathBuf,
}

impl Authority {
    /// Makes an authority and writes its certificate to `directory/ca.crt`.
    ///
    /// # Errors
    ///
    /// When a key cannot be made or a file not be written.
    pub fn create(directory: &Path, lab: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("knetsim lab {lab}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("make the key of the certificate authority")?;
        let certificate = params.self_signed(&key).context("sign the certificate authority")?;
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let ca = directory.join("ca.crt");
        write(&ca, &certificate.pem(), 0o644)?;
        Ok(Self { issuer: Issuer::new(params, key), directory: directory.to_owned(), ca })
    }

    /// Issues a certificate for the router `name`, valid for its addresses, and writes it and its key.
    ///
    /// # Errors
    ///
    /// When a key cannot be made or a file not be written.
    pub fn issue(&self, name: &str, address: Ipv4Addr) -> anyhow::Result<CertificateFiles> {
        let mut params = CertificateParams::new(vec![name.to_owned()])
            .with_context(|| format!("{name} is no name for a certificate"))?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::IpAddress(address.into()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().with_context(|| format!("make the key of {name}"))?;
        let certificate =
            params.signed_by(&key, &self.issuer).with_context(|| format!("sign the certificate of {name}"))?;
        let files = CertificateFiles {
            ca: self.ca.clone(),
            certificate: self.directory.join(format!("{name}.crt")),
            key: self.directory.join(format!("{name}.key")),
        };
        write(&files.certificate, &certificate.pem(), 0o644)?;
        write(&files.key, &key.serialize_pem(), 0o600)?;
        Ok(files)
    }
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    let mut file = open.with_context(|| format!("write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_readable_by_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(directory.path(), "test").unwrap();
        let files = authority.issue("C0", Ipv4Addr::new(10, 0, 0, 3)).unwrap();
        assert_eq!(std::fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
        let certificate = std::fs::read_to_string(&files.certificate).unwrap();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(std::fs::read_to_string(&files.ca).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
