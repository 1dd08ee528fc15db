//! A certificate authority that lives as long as the demo, and certificates for whatever name is asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name on certificates for clients that name none.
const NO_NAME: &str = "no-name.weir.example";

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A key or certificate could not be made.
    #[error("cannot make a certificate for {name}: {source}")]
    Generate {
        /// Whose certificate.
        name: String,
        /// What rcgen said.
        source: rcgen::Error,
    },
    /// rustls refused the configuration.
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The authority. Its key never leaves the process.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer,
    root: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

type Issuer = Arc<IssuerKey>;

struct IssuerKey(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for IssuerKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("IssuerKey")
    }
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// [`CertificateError::Generate`] when the system gives no randomness.
    pub fn new() -> Result<Self, CertificateError> {
        let failed = |source| CertificateError::Generate { name: "the demo's authority".into(), source };
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "weir demo authority");
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        let root = issuer.der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self { issuer: Arc::new(IssuerKey(issuer)), root, provider })
    }

    /// How a client trusts this authority and nothing else. It offers X25519MLKEM768 first, so that its
    /// ClientHello is longer than one segment.
    ///
    /// # Errors
    /// [`CertificateError::Tls`].
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, CertificateError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let mut config = builder
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A certificate for `name`, for a server that reads files.
    ///
    /// # Errors
    /// [`CertificateError::Generate`].
    pub fn pem(&self, name: &str) -> Result<Pem, CertificateError> {
        let (certificate, key) = issue(&self.issuer, name)?;
        Ok(Pem { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// How an origin answers for every name.
    ///
    /// # Errors
    /// [`CertificateError::Tls`].
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let resolver = Resolver {
            issuer: Arc::clone(&self.issuer),
            provider: Arc::clone(&self.provider),
            made: Mutex::default(),
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let mut config = builder
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// A certificate and its key, as files have them.
#[derive(Clone)]
pub struct Pem {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pem").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Makes a certificate when a name is first asked for.
#[derive(Debug)]
struct Resolver {
    issuer: Issuer,
    provider: Arc<CryptoProvider>,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or(NO_NAME);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = made.get(name) {
            return Some(Arc::clone(key));
        }
        match self.make(name) {
            Ok(key) => Some(Arc::clone(made.entry(name.to_owned()).or_insert(Arc::new(key)))),
            Err(error) => {
                tracing::warn!("{error}");
                None
            }
        }
    }
}

impl Resolver {
    fn make(&self, name: &str) -> Result<CertifiedKey, CertificateError> {
        let (certificate, key) = issue(&self.issuer, name)?;
        let private = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|reason| rustls::Error::General(reason.into()))?;
        Ok(CertifiedKey::from_der(vec![certificate.der().clone()], private, &self.provider)?)
    }
}

/// A new key, and the authority's certificate of it for `name`.
fn issue(issuer: &Issuer, name: &str) -> Result<(Certificate, KeyPair), CertificateError> {
    let failed = |source| CertificateError::Generate { name: name.into(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let params = CertificateParams::new([name.to_owned()]).map_err(failed)?;
    let certificate = params.signed_by(&key, &issuer.0).map_err(failed)?;
    Ok((certificate, key))
}
