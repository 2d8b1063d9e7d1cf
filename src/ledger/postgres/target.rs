//! Where a Postgres is and how it is trusted: the URL of the settings. Never tells the password.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::{Error, Result};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the network may be silent before a connection counts as lost.
const SILENT: Duration = Duration::from_secs(30);

/// A database, and how to connect to it.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: tokio_postgres::Config,
    pub(super) tls: MakeRustlsConnect,
    shown: String,
}

/// Host and database.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Target {
    /// # Errors
    /// `Arg` for what is no URL of a Postgres; `Io` for a file of certificates that can't be read.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let (url, ssl) = Ssl::of(url)?;
        // What it says of a wrong part may hold the password.
        let mut config = tokio_postgres::Config::from_str(&url).map_err(|_| {
            Error::arg("ledger.url can't be read, expected postgres://USER:PASSWORD@HOST:PORT/DATABASE")
        })?;
        if config.get_hosts().is_empty() || config.get_dbname().is_none() {
            return Err(Error::arg("ledger.url names no host or no database, expected postgres://HOST/DATABASE"));
        }
        // What of it is taken for the host is part of the password, which must not be shown.
        if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.contains('@'))) {
            return Err(Error::arg(
                "ledger.url can't be read: in a password @ is written %40, # is %23, / is %2F and : is %3A",
            ));
        }
        config.ssl_mode(ssl.mode.config());
        config.connect_timeout(config.get_connect_timeout().copied().unwrap_or(CONNECT));
        config.tcp_user_timeout(SILENT).keepalives_idle(SILENT);
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name("apad");
        }
        let shown = shown(&config);
        Ok(Self { tls: MakeRustlsConnect::new(ssl.client()?), config, shown })
    }
}

fn shown(config: &tokio_postgres::Config) -> String {
    let host = |host: &Host| match host {
        Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    };
    let hosts: Vec<String> = config.get_hosts().iter().map(host).collect();
    let ports: Vec<String> = config.get_ports().iter().map(|port| format!(":{port}")).collect();
    format!("{}{}/{}", hosts.join(","), ports.join(","), config.get_dbname().unwrap_or_default())
}

/// The modes of `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyFull,
}

impl Mode {
    fn config(self) -> SslMode {
        match self {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyFull => SslMode::Require,
        }
    }
}

/// What a URL says of TLS.
struct Ssl {
    mode: Mode,
    root: Option<PathBuf>,
}

impl Ssl {
    /// Takes what it says of TLS out of a URL.
    fn of(url: &str) -> Result<(String, Self)> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut root, mut rest) = (Mode::Prefer, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("sslmode", "disable") => mode = Mode::Disable,
                ("sslmode", "prefer") => mode = Mode::Prefer,
                ("sslmode", "require") => mode = Mode::Require,
                ("sslmode", "verify-full") => mode = Mode::VerifyFull,
                ("sslmode", other) => {
                    return Err(Error::arg(format!(
                        "ledger.url has sslmode={other:.32}, expected disable, prefer, require or verify-full"
                    )));
                }
                ("sslrootcert", "system") => {}
                ("sslrootcert", path) => root = Some(PathBuf::from(path.replace("%2F", "/"))),
                _ => rest.push(pair),
            }
        }
        let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
        Ok((format!("{base}{query}"), Self { mode, root }))
    }

    fn client(&self) -> Result<ClientConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let wrong = |e: rustls::Error| Error::io(format!("TLS: {e}"));
        let client = ClientConfig::builder_with_provider(provider.clone());
        let client = client.with_safe_default_protocol_versions().map_err(wrong)?;
        if self.mode == Mode::VerifyFull {
            return Ok(client.with_root_certificates(self.roots()?).with_no_client_auth());
        }
        Ok(client.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider))).with_no_client_auth())
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.root else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return match roots.is_empty() {
                true => {
                    Err(Error::io("the system has no root certificates: name a file with sslrootcert in ledger.url"))
                }
                false => Ok(roots),
            };
        };
        let read = || -> Result<(), String> {
            let certificates = CertificateDer::pem_file_iter(path).map_err(|e| e.to_string())?;
            for certificate in certificates {
                roots.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
            }
            if roots.is_empty() { Err("it holds no certificate".into()) } else { Ok(()) }
        };
        let mut read = read;
        read().map_err(|e| Error::io(format!("sslrootcert of ledger.url, {}: {e}", path.display())))?;
        Ok(roots)
    }
}

/// For `prefer` and `require`, which encrypt and, as those of libpq, don't ask who is there.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_told_without_its_password_and_what_is_wrong_with_it() {
        let target = Target::parse("postgres://apa:s3cret@db.example:5433/ledger?sslmode=disable").unwrap();
        assert_eq!(target.to_string(), "db.example:5433/ledger");
        let cases = [
            ("postgres://apa:s3cret@db/ledger?sslmode=verify-ca", "sslmode=verify-ca"),
            ("postgres://apa:s3cret@db:none/ledger", "can't be read"),
            ("postgres://apa:s3cret@db", "no database"),
            ("postgres://db/ledger?sslmode=verify-full&sslrootcert=/not/there", "/not/there"),
        ];
        for (url, part) in cases {
            let error = Target::parse(url).err().unwrap();
            assert!(error.message().contains(part) && !error.message().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn the_mode_of_tls_is_as_the_url_says() {
        let mode = |query: &str| Ssl::of(&format!("postgres://db/ledger{query}")).unwrap();
        assert_eq!(mode("").1.mode, Mode::Prefer);
        assert_eq!(mode("?sslmode=verify-full&connect_timeout=3").1.mode.config(), SslMode::Require);
        assert_eq!(mode("?sslmode=require&connect_timeout=3").0, "postgres://db/ledger?connect_timeout=3");
    }
}
