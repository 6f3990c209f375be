//! What the configuration says of encryption: for whom objects are encrypted, and what opens them.
//!
//! Recipients are public keys, identities are secret ones: nothing here that holds an identity has `Debug`, and none is told in an error.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use age::secrecy::{ExposeSecret, SecretSlice};
use age::x25519;
use rustix::process::{Pid, Signal, kill_process_group};

/// Most recipients of one object: the header of an age file has some hundred bytes for each, and a reader's memory for it is bounded.
pub const MAX_RECIPIENTS: usize = 64;

/// Most bytes that a file of keys, or the output of a command, has.
const MAX_KEYS: usize = 64 * 1024;

/// How long the command that gives the identity may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// A public key, as age writes it: `age1` and 58 letters and digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient(x25519::Recipient);

impl Recipient {
    pub(crate) fn key(&self) -> &x25519::Recipient {
        &self.0
    }
}

/// A text that is no recipient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an age recipient: write the public key that age-keygen prints, which begins with age1"
)]
pub struct BadRecipient(String);

impl FromStr for Recipient {
    type Err = BadRecipient;

    fn from_str(text: &str) -> Result<Self, BadRecipient> {
        let shown = || without_secrets(text).chars().take(100).collect();
        text.parse().map(Self).map_err(|_| BadRecipient(shown()))
    }
}

/// The text as it may be shown: without the secret keys in it, which a person may have written in any place.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    const BEGIN: &str = "AGE-SECRET-KEY-";
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    // Changing the case of ASCII letters moves nothing.
    while let Some(at) = rest.to_ascii_uppercase().find(BEGIN) {
        let (before, key) = rest.split_at(at);
        shown.push_str(before);
        shown.push_str("(a secret key)");
        rest = key.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
    }
    shown.push_str(rest);
    shown
}

/// Where the secret keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// A file as age-keygen writes it.
    File(PathBuf),
    /// The output of a program, given with its arguments. No shell is asked.
    Command(Vec<String>),
}

/// What the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncryptionSettings {
    /// Public keys.
    pub recipients: Vec<Recipient>,
    /// A file with more of them, one a line.
    pub recipients_file: Option<PathBuf>,
    /// What opens objects.
    pub identity: Option<IdentitySource>,
}

/// Secret keys.
#[derive(Clone)]
pub struct Identities(Arc<[x25519::Identity]>);

impl Identities {
    /// Reads what age-keygen writes: one key a line, and lines of remarks.
    ///
    /// # Errors
    /// Another line, told by its number alone; no key at all. `origin` is who is to blame.
    pub fn parse(bytes: &[u8], origin: &str) -> Result<Self, KeyError> {
        lines(bytes, origin, "identity (AGE-SECRET-KEY-1…)").map(|keys| Self(keys.into()))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|key| key as &dyn age::Identity)
    }
}

/// The keys of one configuration. Clones share what was read: a file is read once, a command runs once.
#[derive(Clone, Default)]
pub struct AgeKeys(Arc<Inner>);

#[derive(Default)]
struct Inner {
    settings: EncryptionSettings,
    recipients: Mutex<Option<Arc<[Recipient]>>>,
    identities: Mutex<Option<Result<Identities, Arc<KeyError>>>>,
}

impl fmt::Debug for AgeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.settings.fmt(f)
    }
}

/// Keys that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the keys in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not secret.
    #[error(
        "{} holds secret keys, and its mode {mode:04o} lets others read it: chmod 600 it (or 640, where it belongs to root)", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A line that is no key. What it says is not told.
    #[error("line {line} of {origin} is no age {expected}")]
    Line {
        /// A file or a command.
        origin: String,
        /// From 1.
        line: usize,
        /// What was expected.
        expected: &'static str,
    },
    /// There is none.
    #[error("{origin} has no age {expected} in it")]
    None {
        /// A file or a command.
        origin: String,
        /// What was expected.
        expected: &'static str,
    },
    /// More than any file of keys.
    #[error("{origin} has more than {MAX_KEYS} bytes, which no file of keys has")]
    TooLong {
        /// A file or a command.
        origin: String,
    },
    /// More than an age file's header is read for.
    #[error("there are {0} recipients, and an object has at most {MAX_RECIPIENTS}")]
    TooMany(usize),
    /// The command did not start.
    #[error("cannot run {program}, which encryption.identity_command names")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The command failed. What it said on standard error stands before.
    #[error("{program}, which is to give the identity, failed ({status})")]
    Failed {
        /// The program.
        program: String,
        /// How.
        status: ExitStatus,
    },
    /// The command took too long.
    #[error("{program} gave no identity within {} s", COMMAND_DEADLINE.as_secs())]
    Late {
        /// The program.
        program: String,
    },
}

impl KeyError {
    /// Whether it may be otherwise in a while: the command asks somebody who did not answer, or a disk or a share failed.
    pub fn is_passing(&self) -> bool {
        match self {
            KeyError::Failed { .. } | KeyError::Late { .. } => true,
            KeyError::Read { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::IsADirectory
            ),
            _ => false,
        }
    }
}

impl AgeKeys {
    /// Keys that are read when they are needed.
    pub fn new(settings: EncryptionSettings) -> Self {
        AgeKeys(Arc::new(Inner {
            settings,
            ..Inner::default()
        }))
    }

    /// Whether what is written is to be encrypted.
    pub fn encrypts(&self) -> bool {
        let settings = &self.0.settings;
        !settings.recipients.is_empty() || settings.recipients_file.is_some()
    }

    /// Whether there is something to open objects with.
    pub fn opens(&self) -> bool {
        self.0.settings.identity.is_some()
    }

    /// For whom objects are encrypted; `None` where they are not. Reads a file, once.
    ///
    /// # Errors
    /// The file cannot be read, holds none or another line, or there are too many.
    pub fn recipients(&self) -> Result<Option<Arc<[Recipient]>>, KeyError> {
        if !self.encrypts() {
            return Ok(None);
        }
        // Others wait for who reads.
        let mut kept = lock(&self.0.recipients);
        if let Some(kept) = &*kept {
            return Ok(Some(kept.clone()));
        }
        let read = || {
            let mut all = self.0.settings.recipients.clone();
            if let Some(path) = &self.0.settings.recipients_file {
                let file = File::open(path).map_err(read_error(path))?;
                let origin = path.display().to_string();
                let bytes = bounded(file, &origin)?.map_err(read_error(path))?;
                let more = lines::<x25519::Recipient>(
                    bytes.expose_secret(),
                    &origin,
                    "recipient (age1…)",
                )?;
                all.extend(more.into_iter().map(Recipient));
            }
            match all.len() {
                ..=MAX_RECIPIENTS => Ok(all.into()),
                many => Err(KeyError::TooMany(many)),
            }
        };
        Ok(Some(kept.insert(read()?).clone()))
    }

    /// What opens objects; `None` where the configuration names nothing. Reads a file or runs a command, once: for blocking threads.
    ///
    /// # Errors
    /// Every [`KeyError`]. One that passes is tried again by the next call; any other is told again.
    pub fn identities(&self) -> Result<Option<Identities>, Arc<KeyError>> {
        let Some(source) = &self.0.settings.identity else {
            return Ok(None);
        };
        // Others wait for who reads: a command is not run twice.
        let mut kept = lock(&self.0.identities);
        if let Some(kept) = &*kept {
            return kept.clone().map(Some);
        }
        let read = match source {
            IdentitySource::File(path) => from_file(path),
            IdentitySource::Command(command) => from_command(command, COMMAND_DEADLINE),
        };
        match read {
            Err(e) if e.is_passing() => Err(Arc::new(e)),
            read => kept.insert(read.map_err(Arc::new)).clone().map(Some),
        }
    }
}

fn lock<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rule is PostgreSQL's for a server's private key (libpq/be-secure-common.c, `check_ssl_key_file_permissions`).
fn from_file(path: &Path) -> Result<Identities, KeyError> {
    let file = File::open(path).map_err(read_error(path))?;
    let metadata = file.metadata().map_err(read_error(path))?;
    let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & others != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let origin = path.display().to_string();
    let bytes = bounded(file, &origin)?.map_err(read_error(path))?;
    Identities::parse(bytes.expose_secret(), &origin)
}

fn from_command(command: &[String], within: Duration) -> Result<Identities, KeyError> {
    let deadline = Instant::now() + within;
    let (called, arguments) = match command {
        [program, arguments @ ..] => (program.as_str(), arguments),
        [] => ("", [].as_slice()),
    };
    let program = without_secrets(called);
    let start_error = |source| KeyError::Start {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(called)
        .args(arguments)
        // With whatever it starts it can be ended.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start_error)?;
    let (send, received) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        let origin = format!("the output of {program}");
        // It ends with the program, which is killed when it is late.
        std::thread::spawn(move || send.send(bounded(stdout, &origin)));
    }
    let output = received.recv_timeout(within);
    let ended = match output {
        Ok(Ok(Ok(_))) => ended_by(&mut child, deadline).map_err(start_error)?,
        _ => None,
    };
    let status = match ended {
        Some(status) => Some(status),
        None => {
            // Gone already, or no longer waited for.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            child.wait().map_err(start_error)?;
            None
        }
    };
    let Ok(output) = output else {
        return Err(KeyError::Late { program });
    };
    let bytes = output?.map_err(start_error)?;
    let Some(status) = status else {
        return Err(KeyError::Late { program });
    };
    if !status.success() {
        return Err(KeyError::Failed { program, status });
    }
    Identities::parse(bytes.expose_secret(), &format!("the output of {program}"))
}

/// How a program ended; `None` where it has not until then. One may close its output long before it ends.
fn ended_by(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() >= deadline {
            return Ok(ended);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::Read { path, source }
}

/// Reads all of it, into memory that is wiped.
fn bounded(from: impl Read, origin: &str) -> Result<Result<SecretSlice<u8>, io::Error>, KeyError> {
    // Never reallocated: what was left behind would not be wiped.
    let mut bytes = Vec::with_capacity(MAX_KEYS + 1);
    let read = from.take(MAX_KEYS as u64 + 1).read_to_end(&mut bytes);
    let bytes: SecretSlice<u8> = SecretSlice::from(bytes);
    match read {
        Ok(length) if length > MAX_KEYS => Err(KeyError::TooLong {
            origin: origin.to_owned(),
        }),
        read => Ok(read.map(|_| bytes)),
    }
}

fn lines<T: FromStr>(
    bytes: &[u8],
    origin: &str,
    expected: &'static str,
) -> Result<Vec<T>, KeyError> {
    let mut keys = Vec::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let key = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.parse().ok());
        keys.push(key.ok_or_else(|| KeyError::Line {
            origin: origin.to_owned(),
            line: number + 1,
            expected,
        })?);
    }
    if keys.is_empty() {
        return Err(KeyError::None {
            origin: origin.to_owned(),
            expected,
        });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SECRET: &str =
        "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    const PUBLIC: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    fn keys(identity: IdentitySource) -> AgeKeys {
        AgeKeys::new(EncryptionSettings {
            identity: Some(identity),
            ..EncryptionSettings::default()
        })
    }

    fn command(script: &str) -> AgeKeys {
        let command = ["sh", "-c", script].map(str::to_owned);
        keys(IdentitySource::Command(command.to_vec()))
    }

    fn refusal(keys: &AgeKeys) -> Arc<KeyError> {
        match keys.identities() {
            Ok(_) => panic!("these keys should have been refused: {keys:?}"),
            Err(error) => error,
        }
    }

    #[test]
    fn a_file_of_secret_keys_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.txt");
        std::fs::write(&path, format!("# a remark\n\n{SECRET}\n")).unwrap();
        let with_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            keys(IdentitySource::File(path.clone()))
        };
        assert!(with_mode(0o600).identities().is_ok());
        for mode in [0o604, 0o666, 0o620] {
            let refused = refusal(&with_mode(mode));
            assert!(
                matches!(*refused, KeyError::Exposed { .. }) && !refused.is_passing(),
                "mode {mode:o}: {refused}"
            );
        }
    }

    #[test]
    fn a_command_runs_once_and_one_that_fails_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let counting = format!("echo x >> {}; echo {SECRET}", count.display());
        let keys = command(&counting);
        for keys in [&keys, &keys.clone()] {
            assert!(keys.identities().unwrap().is_some());
        }
        assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");

        let failing = command("exit 7");
        for _ in 0..2 {
            let refused = refusal(&failing);
            assert!(
                refused.is_passing() && refused.to_string().contains('7'),
                "a store of secrets may be back in a while: {refused}"
            );
        }
        let endless = refusal(&command("yes"));
        assert!(matches!(*endless, KeyError::TooLong { .. }), "{endless}");

        std::fs::remove_file(&count).unwrap();
        let useless = command(&format!("echo x >> {}", count.display()));
        for _ in 0..2 {
            let refused = refusal(&useless);
            assert!(matches!(*refused, KeyError::None { .. }), "{refused}");
        }
        assert_eq!(
            std::fs::read_to_string(&count).unwrap(),
            "x\n",
            "what will not be otherwise in a while is asked for once"
        );
    }

    #[test]
    fn a_command_that_closes_its_output_and_goes_on_is_ended_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let started = dir.path().join("started");
        let script = format!(
            "sleep 300 >&- 2>&- & echo $! > {}; exec >&-; wait",
            started.display()
        );
        let command = ["sh".to_owned(), "-c".to_owned(), script];
        let late = from_command(&command, Duration::from_secs(1)).err();
        assert!(matches!(late, Some(KeyError::Late { .. })), "{late:?}");
        let pid = std::fs::read_to_string(&started).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let is_alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_alive() {
            assert!(Instant::now() < deadline, "the process it started lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_is_shown_holds_no_secret_key_wherever_it_stood() {
        for (text, shown) in [
            (
                format!("invalid: \"{SECRET}\", {SECRET}"),
                "invalid: \"(a secret key)\", (a secret key)",
            ),
            (format!("ä{}ä", SECRET.to_lowercase()), "ä(a secret key)ä"),
            ("AGE-SECRET-KEY-PQ-1ABC".to_owned(), "(a secret key)"),
            ("age1x".to_owned(), "age1x"),
        ] {
            assert_eq!(without_secrets(&text), shown);
        }
        let program = vec![format!("/{SECRET}")];
        let refused = refusal(&keys(IdentitySource::Command(program))).to_string();
        assert!(!refused.contains(SECRET), "{refused}");
    }

    #[test]
    fn a_file_that_fails_to_be_read_may_be_back_and_one_that_is_not_there_is_not_waited_for() {
        let read = |kind: io::ErrorKind| KeyError::Read {
            path: PathBuf::from("/keys"),
            source: kind.into(),
        };
        assert!(read(io::ErrorKind::TimedOut).is_passing());
        assert!(!read(io::ErrorKind::NotFound).is_passing());
    }

    #[test]
    fn no_error_tells_what_a_line_says() {
        for text in [format!("{SECRET}x\n"), "not a key\n".to_owned()] {
            let Err(error) = Identities::parse(text.as_bytes(), "keys") else {
                panic!("{text} should have been refused");
            };
            assert_eq!(
                error.to_string(),
                "line 1 of keys is no age identity (AGE-SECRET-KEY-1…)"
            );
        }
        let nothing = Identities::parse(b"# a remark\n", "keys").err().unwrap();
        assert!(matches!(nothing, KeyError::None { .. }), "{nothing}");
    }

    #[test]
    fn recipients_come_from_the_configuration_and_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipients.txt");
        std::fs::write(&path, format!("# the safe's\n{PUBLIC}\n")).unwrap();
        let both = EncryptionSettings {
            recipients: vec![PUBLIC.parse().unwrap()],
            recipients_file: Some(path.clone()),
            identity: None,
        };
        let found = AgeKeys::new(both.clone()).recipients().unwrap().unwrap();
        assert_eq!(found.len(), 2, "one from each");
        std::fs::remove_file(&path).unwrap();
        assert!(
            AgeKeys::new(both).recipients().is_err(),
            "a missing file is no reason to leave a recipient out"
        );
        let many = EncryptionSettings {
            recipients: vec![PUBLIC.parse().unwrap(); MAX_RECIPIENTS + 1],
            ..EncryptionSettings::default()
        };
        assert!(matches!(
            AgeKeys::new(many).recipients(),
            Err(KeyError::TooMany(_))
        ));
        assert!(AgeKeys::default().recipients().unwrap().is_none());
    }
}
