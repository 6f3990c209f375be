//! `encryption:` as it is written.

use serde::Deserialize;
use walden_engine::encryption::{AgeKeys, EncryptionSettings, IdentitySource, Recipient};

use super::raw::{AbsolutePath, Text};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAgeKeys {
    recipients: Vec<Text<Recipient>>,
    recipients_file: Option<Text<AbsolutePath>>,
    identity_file: Option<Text<AbsolutePath>>,
    identity_command: Option<Vec<String>>,
}

impl RawAgeKeys {
    /// # Errors
    /// What cannot be meant, in words for the person who wrote it.
    pub fn resolve(self) -> Result<AgeKeys, String> {
        let identity = match (self.identity_file, self.identity_command) {
            (Some(_), Some(_)) => {
                return Err(
                    "encryption has identity_file and identity_command: keep one of them"
                        .to_owned(),
                );
            }
            (_, Some(command)) if command.first().is_none_or(String::is_empty) => {
                return Err("encryption.identity_command names no program".to_owned());
            }
            (Some(file), None) => Some(IdentitySource::File(file.0.0)),
            (None, Some(command)) => Some(IdentitySource::Command(command)),
            (None, None) => None,
        };
        Ok(AgeKeys::new(EncryptionSettings {
            recipients: self.recipients.into_iter().map(|text| text.0).collect(),
            recipients_file: self.recipients_file.map(|path| path.0.0),
            identity,
        }))
    }
}
