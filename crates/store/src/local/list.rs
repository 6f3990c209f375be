//! Listing in the order of keys. A folder's names sort with the `/` that its keys have there: `a-b/…` before `a/…`.

use std::collections::BTreeSet;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::path::Path;

use super::root::{Root, kind};
use crate::{Key, ListOptions, ListPage, ObjectMeta, StoreError, StoreErrorKind};

/// Names of one folder held at a time; a larger folder is read again for the next so many.
const HELD: usize = 4096;

/// Comes after every key below a folder and before the first that is not.
const LAST: char = char::MAX;

pub(super) fn page(root: &Root, options: ListOptions<'_>) -> Result<ListPage, StoreError> {
    let mut page = ListPage::default();
    let mut walk = Walk::new(
        root,
        options.prefix,
        options.start_after.unwrap_or_default(),
    );
    let mut last = None;
    while let Some(item) = walk.next(!options.delimiter)? {
        if page.objects.len() + page.prefixes.len() == options.limit.max(1) {
            page.next = last;
            break;
        }
        match item {
            Item::Object(meta) => {
                last = Some(meta.key.to_string());
                page.objects.push(meta);
            }
            Item::Folder(prefix) => {
                last = Some(format!("{prefix}{LAST}"));
                page.prefixes.push(prefix);
            }
        }
    }
    // An empty mount point lists well.
    root.check()?;
    Ok(page)
}

enum Item {
    Object(ObjectMeta),
    Folder(String),
}

/// A walk down the tree in key order.
struct Walk<'a> {
    root: &'a Root,
    prefix: &'a str,
    after: &'a str,
    /// From the folder that the prefix lies in down to the one being read.
    stack: Vec<Folder>,
}

/// A folder on the way.
struct Folder {
    /// What its keys begin with: empty, or ending in `/`.
    prefix: String,
    /// The next names, those of folders with their `/`.
    names: BTreeSet<String>,
    /// The greatest name read so far, if the folder has more.
    more_after: Option<String>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Root, prefix: &'a str, after: &'a str) -> Self {
        let folder = prefix.rfind('/').map(|end| &prefix[..end]);
        let stack = match folder {
            None => vec![Folder::unread(String::new())],
            Some(folder) if Key::parse(folder).is_ok() => {
                vec![Folder::unread(format!("{folder}/"))]
            }
            // No key begins so.
            Some(_) => Vec::new(),
        };
        Self {
            root,
            prefix,
            after,
            stack,
        }
    }

    /// The next object; or, unless `deep`, the next object or folder with an object in it.
    fn next(&mut self, deep: bool) -> Result<Option<Item>, StoreError> {
        while let Some(folder) = self.stack.last_mut() {
            let Some(name) = folder.names.pop_first() else {
                match folder.more_after.take() {
                    Some(after) => self.read(&after)?,
                    None => drop(self.stack.pop()),
                }
                continue;
            };
            let full = format!("{}{name}", folder.prefix);
            if !name.ends_with('/') {
                if let Some(meta) = self.look(&full)? {
                    return Ok(Some(Item::Object(meta)));
                }
            } else if deep {
                self.stack.push(Folder::unread(full));
            } else if Walk::new(self.root, &full, self.after)
                .next(true)?
                .is_some()
            {
                return Ok(Some(Item::Folder(full)));
            }
        }
        Ok(None)
    }

    /// Reads the next names after `after` of the folder on top.
    fn read(&mut self, after: &str) -> Result<(), StoreError> {
        let Some(folder) = self.stack.last_mut() else {
            return Ok(());
        };
        let failure = |cause| self.root.failure("list", &folder.prefix, cause);
        let entries = match std::fs::read_dir(self.root.path().join(&folder.prefix)) {
            // Removed meanwhile, or never there.
            Err(cause) if kind(&cause) == StoreErrorKind::NotFound => {
                leads_on(self.root, &folder.prefix)?;
                return self.root.check();
            }
            entries => entries.map_err(failure)?,
        };
        for entry in entries {
            let Some(name) = name(&entry.map_err(failure)?).map_err(failure)? else {
                continue;
            };
            let full = format!("{}{name}", folder.prefix);
            let wanted = full.starts_with(self.prefix)
                && is_after(&full, self.after)
                && name.as_str() > after;
            // A file system's own folder, which only root may read.
            if !wanted || full == "lost+found/" {
                continue;
            }
            folder.names.insert(name);
            if folder.names.len() > HELD {
                folder.names.pop_last();
                folder.more_after = folder.names.last().cloned();
            }
        }
        Ok(())
    }

    fn look(&self, full: &str) -> Result<Option<ObjectMeta>, StoreError> {
        let Ok(key) = Key::parse(full) else {
            return Ok(None);
        };
        match self.root.head(&key) {
            Ok(meta) => Ok(Some(meta)),
            // Removed meanwhile.
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Folder {
    fn unread(prefix: String) -> Self {
        Self {
            prefix,
            names: BTreeSet::new(),
            more_after: Some(String::new()),
        }
    }
}

/// Whether a key, or any key below a folder (`full` ends in `/`), comes after `after`.
fn is_after(full: &str, after: &str) -> bool {
    full > after || (full.ends_with('/') && after.starts_with(full))
}

/// A folder behind a link that leads nowhere is not absent: perhaps what it lies on is not mounted.
fn leads_on(root: &Root, folder: &str) -> Result<(), StoreError> {
    let mut way = root.path().to_path_buf();
    for part in folder.split_terminator('/') {
        way.push(part);
        behind_link(&way).map_err(|cause| root.failure("list", folder, cause))?;
    }
    Ok(())
}

/// What is behind this path if it is a link; `None` if it is none, or nothing. What cannot be looked at is an error, and "not there" is none
/// that says that something is absent.
fn behind_link(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(link) if link.is_symlink() => {}
        _ => return Ok(None),
    }
    let target = std::fs::metadata(path).map_err(|cause| {
        if kind(&cause) == StoreErrorKind::NotFound {
            let whence = format!("the link {} leads nowhere: {cause}", path.display());
            io::Error::other(whence)
        } else {
            cause
        }
    })?;
    Ok(Some(target))
}

/// An entry's name as keys have it; `None` for what can be no part of a key, such as `.tmp`.
fn name(entry: &DirEntry) -> io::Result<Option<String>> {
    let Some(mut name) = entry
        .file_name()
        .to_str()
        .filter(|name| Key::parse(name).is_ok())
        .map(str::to_owned)
    else {
        return Ok(None);
    };
    let mut kind = match entry.file_type() {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        kind => kind?,
    };
    // A folder may be elsewhere, behind a link, as reading by key finds it there too.
    if kind.is_symlink() {
        match behind_link(&entry.path())? {
            Some(target) if target.is_dir() => kind = target.file_type(),
            _ => return Ok(None),
        }
    }
    if kind.is_dir() {
        name.push('/');
    }
    Ok((kind.is_dir() || kind.is_file()).then_some(name))
}
