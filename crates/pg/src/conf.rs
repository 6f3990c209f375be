//! The text of `postgresql.conf` and `postgresql.auto.conf` (`utils/misc/guc-file.l`): one setting a line.

/// The settings that a file makes, in its order and with names in lower case; of two with one name the server takes the last.
/// `include` and its kin come as settings of that name. Lines that the server would refuse are passed over.
pub fn settings(text: &[u8]) -> Vec<(String, String)> {
    text.split(|&b| b == b'\n').filter_map(setting).collect()
}

/// The text without the lines that set one of `names` or a name that begins with one of `prefixes`, in whatever case. Every
/// other byte stays as it is.
pub fn without_settings(text: &[u8], names: &[&str], prefixes: &[&str]) -> Vec<u8> {
    let begins = |name: &[u8], prefix: &str| {
        name.get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    let sets = |line: &&[u8]| {
        let (name, _) = take_name(line);
        names
            .iter()
            .any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
            || prefixes.iter().any(|p| begins(name, p))
    };
    text.split_inclusive(|&b| b == b'\n')
        .filter(|line| !sets(line))
        .flatten()
        .copied()
        .collect()
}

/// A value holds a character that a setting cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be the value of a setting: it holds a control character")]
pub struct UnquotableValue(String);

/// A value in single quotes, as a configuration file wants it.
pub fn quote(value: &str) -> Result<String, UnquotableValue> {
    if value.chars().any(char::is_control) {
        return Err(UnquotableValue(value.to_owned()));
    }
    Ok(format!(
        "'{}'",
        value.replace('\\', "\\\\").replace('\'', "''")
    ))
}

/// `name [=] value [# comment]`
fn setting(line: &[u8]) -> Option<(String, String)> {
    let (name, rest) = take_name(line);
    let rest = skip_blanks(rest);
    let rest = skip_blanks(rest.strip_prefix(b"=").unwrap_or(rest));
    let (value, rest) = match rest.strip_prefix(b"'") {
        Some(quoted) => unquote(quoted)?,
        None => {
            let (word, rest) = split_while(rest, |b| is_word(b) || b == b'+');
            (Some(word.to_vec()).filter(|word| !word.is_empty())?, rest)
        }
    };
    let ended = matches!(skip_blanks(rest).first(), None | Some(b'#'));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (!name.is_empty() && ended).then(|| (text(name).to_ascii_lowercase(), text(&value)))
}

/// The word that a line begins with, and the rest. Empty where it does not begin with a name.
fn take_name(line: &[u8]) -> (&[u8], &[u8]) {
    let line = skip_blanks(line);
    match line.first() {
        Some(&b)
            if is_word(b) && !b.is_ascii_digit() && !matches!(b, b'.' | b':' | b'/' | b'-') =>
        {
            split_while(line, is_word)
        }
        _ => (&[], line),
    }
}

/// What an unquoted value, and with it a name, can be made of (`UNQUOTED_STRING`).
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || !byte.is_ascii()
        || matches!(byte, b'_' | b'.' | b':' | b'/' | b'-')
}

fn skip_blanks(text: &[u8]) -> &[u8] {
    split_while(text, |b| matches!(b, b' ' | b'\t' | b'\r')).1
}

fn split_while(text: &[u8], wanted: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|&b| !wanted(b)).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, &[]))
}

/// What stands behind an opening quote, up to its closing one (`DeescapeQuotedString`). `None` where none closes it.
fn unquote(mut text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    loop {
        match text {
            [b'\'', b'\'', rest @ ..] => {
                value.push(b'\'');
                text = rest;
            }
            [b'\'', rest @ ..] => return Some((value, rest)),
            [b'\\', rest @ ..] => {
                let digits = rest
                    .iter()
                    .take(3)
                    .take_while(|b| matches!(b, b'0'..=b'7'))
                    .count();
                let (&first, after) = rest.split_first()?;
                if digits > 0 {
                    let octal = rest
                        .iter()
                        .take(digits)
                        .fold(0u32, |number, b| number * 8 + u32::from(b - b'0'));
                    value.push((octal & 0xFF) as u8);
                    text = rest.get(digits..)?;
                    continue;
                }
                value.push(match first {
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    other => other,
                });
                text = after;
            }
            [byte, rest @ ..] => {
                value.push(*byte);
                text = rest;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> Option<(String, String)> {
        settings(line.as_bytes()).pop()
    }

    #[test]
    fn values_are_read_as_the_server_reads_them() {
        for (line, name, value) in [
            ("port = 5432", "port", "5432"),
            ("port 5432 # comment", "port", "5432"),
            ("\t Port=5432\r", "port", "5432"),
            (
                "a='it''s \\'so\\' \\\\ \\101\\n\\q'#x",
                "a",
                "it's 'so' \\ A\nq",
            ),
            ("a = ''", "a", ""),
            ("shared_buffers = 128MB", "shared_buffers", "128MB"),
            ("x.y = -1.5e+3", "x.y", "-1.5e+3"),
            ("include_dir 'conf.d'", "include_dir", "conf.d"),
            ("data_directory = /srv/pg", "data_directory", "/srv/pg"),
        ] {
            assert_eq!(
                one(line),
                Some((name.to_owned(), value.to_owned())),
                "{line:?}"
            );
        }
        for line in [
            "",
            "# a = 1",
            "a",
            "a =",
            "= 1",
            "a = 'open",
            "a = 1 2",
            "a = b 'c'",
            "a == 1",
            "1a = 1",
            "a = 'x' y",
            "a = #'x'",
            "a = 'x\\",
        ] {
            assert_eq!(one(line), None, "{line:?} was taken");
        }
    }

    #[test]
    fn settings_vanish_whatever_their_spelling_and_nothing_else_does() {
        let text = b"# recovery_target = 'a comment'\nRecovery_Target_Time = 'x'\n  restore_command'cp %f %p'\nrestore_command_x = 1\n\xff\0\nprimary_conninfo\n\nlast 1";
        let left = without_settings(
            text,
            &["restore_command", "primary_conninfo"],
            &["recovery_target"],
        );
        assert_eq!(
            left,
            b"# recovery_target = 'a comment'\nrestore_command_x = 1\n\xff\0\n\nlast 1"
        );
    }

    #[test]
    fn control_characters_are_not_quoted() {
        for value in ["a\nb", "\0", "\u{7f}", "\t"] {
            assert_eq!(quote(value), Err(UnquotableValue(value.to_owned())));
        }
        assert_eq!(quote("it's \\ %p").unwrap(), "'it''s \\\\ %p'");
    }

    proptest! {
        #[test]
        fn quoted_values_come_back(value in "\\PC*") {
            prop_assert_eq!(one(&format!("name = {} # x", quote(&value).unwrap())), Some(("name".to_owned(), value)));
        }

        #[test]
        fn what_is_removed_is_gone_and_the_rest_stays(text in "([ #]?([aAbB]|a_x|c)[ =]{0,2}('x'|1|')?\n?){0,9}") {
            let before = settings(text.as_bytes());
            let after = settings(&without_settings(text.as_bytes(), &["b"], &["a"]));
            let expected: Vec<_> = before.into_iter().filter(|(name, _)| name != "b" && !name.starts_with('a')).collect();
            prop_assert_eq!(after, expected);
        }

        #[test]
        fn no_bytes_panic(text: Vec<u8>) {
            settings(&text);
            prop_assert_eq!(without_settings(&text, &[], &[]), text);
        }
    }
}
