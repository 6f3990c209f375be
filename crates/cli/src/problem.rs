//! What went wrong, as a person reads it: the error, each of its causes once, and what to do.

use std::error::Error;
use std::io::Write;

use crate::config::ConfigError;
use crate::exit::common;

/// An error that knows what a person can do about it.
pub trait Hint {
    /// What to do, as a clause without a full stop.
    fn hint(&self) -> Option<String>;
}

/// A failure on its way to standard error and an exit code.
#[derive(Debug)]
pub struct Problem {
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    exit: u8,
}

impl Problem {
    /// Something that was tried and failed.
    pub fn failure(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            error: error.into(),
            hint: None,
            exit: common::FAILURE,
        }
    }

    /// A command line that cannot mean anything.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit: common::USAGE,
            ..Self::failure(error)
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code.
    pub fn exit(&self) -> u8 {
        self.exit
    }

    /// `error:`, `cause:` and `hint:` lines.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut layer = Some(self.error.as_ref() as &dyn Error);
        let mut said = String::new();
        while let Some(error) = layer {
            let message = error.to_string();
            // A layer that only passes on what the one above it said has nothing to add.
            if message != said {
                let label = if text.is_empty() { "error" } else { "cause" };
                push_labelled(&mut text, label, &message);
                said = message;
            }
            layer = error.source();
        }
        if let Some(hint) = &self.hint {
            push_labelled(&mut text, "hint", hint);
        }
        text
    }

    /// Writes [`Self::render`] to standard error, and passes over one that is closed: the exit code says the same.
    pub fn print(&self) {
        let _ = std::io::stderr().lock().write_all(self.render().as_bytes());
    }
}

fn push_labelled(text: &mut String, label: &str, message: &str) {
    let indented = message.trim_end().replace('\n', "\n       ");
    text.push_str(label);
    text.push_str(": ");
    text.push_str(&indented);
    text.push('\n');
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        let hint = error.hint();
        Self {
            hint,
            ..Self::usage(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot store the segment")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn error_cause_and_hint_stand_on_lines_of_their_own() {
        let problem = Problem::failure(Outer(std::io::Error::other("the disk is gone\nfor good")))
            .with_hint("look at the disk");
        assert_eq!(
            problem.render(),
            "error: cannot store the segment\ncause: the disk is gone\n       for good\nhint: look at the disk\n",
            "the chain is printed once, further lines indented"
        );
        assert_eq!(problem.exit(), 1, "a failure exits 1");
    }

    #[test]
    fn a_layer_that_repeats_the_one_above_is_printed_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the disk is gone")]
        struct Echo(#[source] std::io::Error);
        assert_eq!(
            Problem::failure(Echo(std::io::Error::other("the disk is gone"))).render(),
            "error: the disk is gone\n",
            "no cause line repeats the error"
        );
    }
}
