//! Listing, against a model.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::Case;
use crate::{ListOptions, list_all, list_folders};

/// Names whose order differs with and without the `/` that follows.
const COMPONENTS: [&str; 12] = [
    "a", "a-b", "a.b", "a0", "a b", "A", "b", "aa", "~", "!", "0", "a-",
];

impl Case {
    pub(super) async fn listing(&self) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let names = random_names(&mut random, 150);
        let folder = format!("{}/listing/", self.folder);
        for name in &names {
            self.put(&self.key(&format!("listing/{name}")), vec![0; name.len()])
                .await;
        }
        for _ in 0..400 {
            let query = Query::random(&mut random, &names);
            let expected = query.expected(&names);
            let found = self.pages(&folder, &query).await;
            assert_eq!(
                found, expected,
                "{query:?} lists as the model does (seed {})",
                self.seed
            );
        }
        self.whole_listings(&names).await;
        let odd = [
            format!("{folder}/"),
            format!("{folder}../listing/"),
            "/".to_owned(),
            format!("{folder}a\u{e9}/"),
        ];
        for prefix in odd {
            let options = ListOptions {
                prefix: &prefix,
                start_after: None,
                delimiter: false,
                limit: 5,
            };
            let page = self
                .store
                .list(options)
                .await
                .expect("a prefix that no key has can be listed");
            assert!(
                page.objects.is_empty() && page.next.is_none(),
                "no key begins with {prefix:?}"
            );
        }
    }

    async fn whole_listings(&self, names: &BTreeSet<String>) {
        let found = self.names("listing/").await;
        assert!(
            found.iter().eq(names),
            "every object is listed, in order: {found:?}"
        );
        let prefix = format!("{}/listing/", self.folder);
        let found: Vec<String> = list_folders(self.store.as_ref(), &prefix)
            .try_collect()
            .await
            .expect("listing folders works");
        let expected: BTreeSet<String> = names
            .iter()
            .filter_map(|name| name.split_once('/'))
            .map(|(first, _)| format!("{prefix}{first}/"))
            .collect();
        assert!(
            found.iter().eq(&expected),
            "every folder is listed, in order: {found:?}"
        );
    }

    /// The names below a folder of this run, by the paging helper.
    pub(super) async fn names(&self, folder: &str) -> Vec<String> {
        let prefix = format!("{}/{folder}", self.folder);
        let metas: Vec<_> = list_all(self.store.as_ref(), &prefix)
            .try_collect()
            .await
            .expect("listing works");
        metas
            .iter()
            .map(|meta| meta.key.as_str()[prefix.len()..].to_owned())
            .collect()
    }

    /// All pages of a query: names of objects and folders in one order, relative to the folder.
    async fn pages(&self, folder: &str, query: &Query) -> Vec<String> {
        let prefix = format!("{folder}{}", query.prefix);
        let mut start_after = query
            .start_after
            .as_ref()
            .map(|after| format!("{folder}{after}"));
        let mut found = Vec::new();
        loop {
            let options = ListOptions {
                prefix: &prefix,
                start_after: start_after.as_deref(),
                delimiter: query.delimiter,
                limit: query.limit,
            };
            let page = self.store.list(options).await.expect("listing works");
            assert!(
                page.objects.len() + page.prefixes.len() <= query.limit,
                "a page of {query:?} keeps to the limit (seed {})",
                self.seed
            );
            for meta in &page.objects {
                let name = &meta.key.as_str()[folder.len()..];
                assert_eq!(
                    meta.size,
                    name.len() as u64,
                    "a listing knows the size of {name:?}"
                );
            }
            let mut names: Vec<_> = page.objects.iter().map(|meta| meta.key.as_str()).collect();
            names.extend(page.prefixes.iter().map(String::as_str));
            assert!(
                page.objects.is_sorted_by_key(|meta| &meta.key),
                "objects of a page are in order"
            );
            assert!(page.prefixes.is_sorted(), "prefixes of a page are in order");
            names.sort_unstable();
            found.extend(names.iter().map(|name| name[folder.len()..].to_owned()));
            match page.next {
                None => return found,
                next => start_after = next,
            }
        }
    }
}

#[derive(Debug)]
struct Query {
    prefix: String,
    start_after: Option<String>,
    delimiter: bool,
    limit: usize,
}

impl Query {
    fn random(random: &mut StdRng, names: &BTreeSet<String>) -> Self {
        let prefix = if random.random_bool(0.3) {
            String::new()
        } else {
            part_of_a_name(random, names)
        };
        let start_after = random
            .random_bool(0.5)
            .then(|| part_of_a_name(random, names));
        Self {
            prefix,
            start_after,
            delimiter: random.random(),
            limit: random.random_range(1..12),
        }
    }

    fn expected(&self, names: &BTreeSet<String>) -> Vec<String> {
        let wanted = names.iter().filter(|name| {
            name.starts_with(&self.prefix)
                && self.start_after.as_ref().is_none_or(|after| *name > after)
        });
        let rolled_up: BTreeSet<String> = wanted
            .map(|name| match name[self.prefix.len()..].find('/') {
                Some(end) if self.delimiter => name[..=self.prefix.len() + end].to_owned(),
                _ => name.clone(),
            })
            .collect();
        rolled_up.into_iter().collect()
    }
}

/// A name, its beginning, or one with something appended.
fn part_of_a_name(random: &mut StdRng, names: &BTreeSet<String>) -> String {
    let all: Vec<_> = names.iter().collect();
    let name = all.choose(random).expect("there are names");
    match random.random_range(0..4) {
        0 => format!(
            "{name}{}",
            ["/", "0", "!", "/a"]
                .choose(random)
                .expect("there are endings")
        ),
        1 => (*name).clone(),
        _ => name[..random.random_range(0..=name.len())].to_owned(),
    }
}

/// None is a folder of another.
fn random_names(random: &mut StdRng, count: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::<String>::new();
    while names.len() < count {
        let depth = random.random_range(1..=4);
        let components: Vec<&str> = (0..depth)
            .map(|_| *COMPONENTS.choose(random).expect("there are components"))
            .collect();
        let name = components.join("/");
        let within = |inner: &str, outer: &str| {
            inner.starts_with(outer) && inner[outer.len()..].starts_with('/')
        };
        if !names
            .iter()
            .any(|other| within(&name, other) || within(other, &name))
        {
            names.insert(name);
        }
    }
    names
}
