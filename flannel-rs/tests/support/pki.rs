//! A certificate authority for one test, with a certificate for etcd and one for its clients.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// The PEM files of an authority and of those it vouches for.
pub struct Pki {
    directory: TempDir,
    wants_client_certificates: bool,
}

impl Pki {
    /// Makes an authority whose etcd is known by `server_address`.
    pub fn new(server_address: &str, wants_client_certificates: bool) -> Self {
        let pki = Self { directory: tempfile::tempdir().unwrap(), wants_client_certificates };
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new([]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(pki.ca(), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        for (name, subject) in [("server", server_address), ("client", "worker")] {
            let mut params = CertificateParams::new([subject.to_owned()]).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            fs::write(pki.file(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
            fs::write(pki.file(&format!("{name}-key.pem")), key.serialize_pem()).unwrap();
        }
        pki
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// The certificate that etcd shows.
    pub fn server_cert(&self) -> PathBuf {
        self.file("server.pem")
    }

    /// Its key.
    pub fn server_key(&self) -> PathBuf {
        self.file("server-key.pem")
    }

    /// The certificate that an agent shows.
    pub fn client_cert(&self) -> PathBuf {
        self.file("client.pem")
    }

    /// Its key.
    pub fn client_key(&self) -> PathBuf {
        self.file("client-key.pem")
    }

    /// Says whether etcd turns away clients without a certificate.
    pub fn wants_client_certificates(&self) -> bool {
        self.wants_client_certificates
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
