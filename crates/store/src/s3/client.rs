//! AWS's client, as the settings say.

use aws_config::BehaviorVersion;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::settings::{Checksums, S3Credentials, S3Settings};
use crate::{Key, StoreError, StoreErrorKind};

/// Where a store other than AWS's is not told its region.
const ANY_REGION: &str = "us-east-1";

pub(super) async fn build(settings: &S3Settings) -> Result<Client, StoreError> {
    check(settings)?;
    let shared = match &settings.credentials {
        S3Credentials::Chain {
            profile,
            credentials_file,
        } => {
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .http_client(https(TrustStore::default())?);
            if let Some(profile) = profile {
                loader = loader.profile_name(profile);
            }
            if let Some(file) = credentials_file {
                // The chain would go on without it, and say in the end that nothing is left.
                std::fs::File::open(file).map_err(|cause| {
                    invalid(settings)
                        .because(format!(
                            "the credentials file {} cannot be read",
                            file.display()
                        ))
                        .with_source(cause)
                })?;
                loader = loader.profile_files(
                    EnvConfigFiles::builder()
                        .include_default_config_file(true)
                        .with_file(EnvConfigFileKind::Credentials, file)
                        .build(),
                );
            }
            if let Some(region) = region(settings) {
                loader = loader.region(region);
            }
            // It may ask the machine's metadata service, which need not answer.
            tokio::time::timeout(settings.operation_deadline, loader.load())
                .await
                .map_err(|cause| {
                    StoreError::new(
                        StoreErrorKind::Unavailable,
                        "use",
                        format!("the bucket {}", settings.bucket),
                    )
                    .because("AWS's chain of credentials and region does not answer in time")
                    .with_source(cause)
                })?
        }
        S3Credentials::Static {
            access_key_id,
            secret_access_key,
            session_token,
        } => {
            let credentials = Credentials::new(
                access_key_id,
                secret_access_key.reveal(),
                session_token
                    .as_ref()
                    .map(|token| token.reveal().to_owned()),
                None,
                "settings",
            );
            aws_config::SdkConfig::builder()
                .behavior_version(BehaviorVersion::latest())
                .credentials_provider(aws_sdk_s3::config::SharedCredentialsProvider::new(
                    credentials,
                ))
                .region(region(settings))
                .build()
        }
    };
    if shared.region().is_none() {
        return Err(
            invalid(settings).because("no region is set, and AWS's chain knows none: set it")
        );
    }
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .http_client(http(settings)?)
        .force_path_style(settings.path_style)
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .connect_timeout(settings.request_deadline)
                .build(),
        )
        // Ours is in `retry.rs` and `read.rs`; an upload that stands still is seen here alone.
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled()
                .download_enabled(false)
                .grace_period(settings.request_deadline)
                .build(),
        )
        .request_checksum_calculation(match settings.sends_checksums() {
            true => RequestChecksumCalculation::WhenSupported,
            false => RequestChecksumCalculation::WhenRequired,
        })
        .response_checksum_validation(match settings.checksums {
            Checksums::WhenSupported => ResponseChecksumValidation::WhenSupported,
            Checksums::WhenRequired => ResponseChecksumValidation::WhenRequired,
        });
    if let Some(endpoint) = &settings.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

fn check(settings: &S3Settings) -> Result<(), StoreError> {
    let invalid = |reason: &str| Err(invalid(settings).because(reason));
    let prefix = &settings.prefix;
    if !prefix.is_empty() && (prefix.len() > S3Settings::MAX_PREFIX || Key::parse(prefix).is_err())
    {
        return invalid(
            "the prefix must be of at most 80 printable ASCII characters, its components neither empty nor beginning with a dot",
        );
    }
    let schemes = ["http://", "https://"];
    match &settings.endpoint {
        _ if settings.bucket.is_empty() => invalid("no bucket is named"),
        Some(endpoint) if !schemes.iter().any(|scheme| endpoint.starts_with(scheme)) => {
            invalid("the endpoint must be a URL that begins with https:// or http://")
        }
        Some(endpoint) if without_password(endpoint) != *endpoint => invalid(
            "the endpoint must be without user and password: they belong to the credentials",
        ),
        _ => Ok(()),
    }
}

fn region(settings: &S3Settings) -> Option<Region> {
    let elsewhere = settings.endpoint.as_ref().map(|_| ANY_REGION.to_owned());
    settings.region.clone().or(elsewhere).map(Region::new)
}

fn http(settings: &S3Settings) -> Result<SharedHttpClient, StoreError> {
    let plain = settings
        .endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.starts_with("http://"));
    if plain {
        return Ok(Builder::new().build_http());
    }
    let Some(path) = &settings.ca_file else {
        return https(TrustStore::default());
    };
    let place = path.display();
    let pem = std::fs::read(path).map_err(|cause| {
        invalid(settings)
            .because(format!("the CA file {place} cannot be read"))
            .with_source(cause)
    })?;
    // The client would panic at one that is broken.
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|cause| {
            invalid(settings)
                .because(format!("the CA file {place} is not PEM"))
                .with_source(cause)
        })?;
        roots.add(certificate).map_err(|cause| {
            invalid(settings)
                .because(format!(
                    "the CA file {place} has a certificate that is none"
                ))
                .with_source(cause)
        })?;
    }
    if roots.is_empty() {
        return Err(invalid(settings).because(format!("the CA file {place} holds no certificate")));
    }
    https(TrustStore::empty().with_pem_certificate(pem))
}

fn https(trust: TrustStore) -> Result<SharedHttpClient, StoreError> {
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|cause| {
            StoreError::new(StoreErrorKind::Invalid, "prepare", "TLS").with_source(cause)
        })?;
    Ok(Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}

fn invalid(settings: &S3Settings) -> StoreError {
    StoreError::new(
        StoreErrorKind::Invalid,
        "use",
        format!("the bucket {}", settings.bucket),
    )
}

/// A URL as it may be shown.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match host.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{host}/{path}"),
        None => url.to_owned(),
    }
}
