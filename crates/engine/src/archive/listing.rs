//! The listings of several repositories as one.

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use walden_store::ObjectMeta;

use super::Archive;
use crate::repository::RepositoryError;

/// One repository's objects that are still to come.
struct Source<'a> {
    objects: BoxStream<'a, Result<ObjectMeta, RepositoryError>>,
    next: Option<ObjectMeta>,
}

impl Archive {
    /// Every object below a prefix that any repository holds, each once and in byte order; what the first of them says of it. Memory does not
    /// grow with their number.
    pub fn list_all<'a>(
        &'a self,
        prefix: &'a str,
    ) -> BoxStream<'a, Result<ObjectMeta, RepositoryError>> {
        let begun = async move {
            let mut sources = Vec::new();
            for repository in self.repositories() {
                let objects = walden_store::list_all(repository.store().as_ref(), prefix);
                let mut objects = objects.map_err(|e| repository.failed(e)).boxed();
                let next = objects.try_next().await?;
                sources.push(Source { objects, next });
            }
            Ok(stream::try_unfold(sources, |mut sources| async move {
                let keys = sources.iter().filter_map(|source| source.next.as_ref());
                let Some(key) = keys.map(|object| &object.key).min().cloned() else {
                    return Ok(None);
                };
                let mut first = None;
                for source in &mut sources {
                    if source.next.as_ref().is_some_and(|next| next.key == key) {
                        let next = source.objects.try_next().await?;
                        let this = std::mem::replace(&mut source.next, next);
                        first = first.or(this);
                    }
                }
                Ok(first.map(|object| (object, sources)))
            }))
        };
        stream::once(begun).try_flatten().boxed()
    }
}
