use std::path::Path;
use std::time::Duration;

use walden_engine::encryption::AgeKeys;
use walden_engine::repository::{
    Checksums, CreateOnly, ObjectLock, ObjectLockMode, S3Credentials, S3Settings, ServerEncryption,
};
use walden_model::retention::RetentionPolicy;

use super::*;
use crate::problem::Problem;

const SMALL: &str = "\
clusters:
  main:
    pgdata: /var/lib/postgresql/17/main
repositories:
  - name: here
    path: /var/lib/walden
";

const FILE: &str = "/etc/walden/walden.yaml";

fn resolved(text: &str) -> Settings {
    resolve(Path::new(FILE), text, None)
        .unwrap_or_else(|e| panic!("this configuration is good: {e}"))
}

/// What a person reads when `text` is the configuration.
fn complaint(text: &str, cluster: Option<&str>) -> String {
    match resolve(Path::new(FILE), text, cluster) {
        Ok(settings) => panic!("this configuration should have been refused: {settings:?}"),
        Err(error) => Problem::from(error).render(),
    }
}

#[test]
fn what_is_not_said_has_its_documented_default() {
    let here = RepositorySettings {
        name: "here".to_owned(),
        place: Place::Folder("/var/lib/walden".into()),
        id: None,
        required: true,
        keys: AgeKeys::default(),
    };
    let expected = Settings {
        secret: None,
        file: FILE.into(),
        cluster: "main".parse().expect("a cluster's name"),
        clusters: vec!["main".parse().expect("a cluster's name")],
        pgdata: Some("/var/lib/postgresql/17/main".into()),
        connection: None,
        primary_connection: None,
        pg_bin_dir: None,
        spool_dir: None,
        repositories: vec![here],
        compression_level: 1,
        push_deadline: Duration::from_secs(50),
        push_ahead: 16,
        push_backlog_level: None,
        push_optional_wait: Duration::from_secs(5),
        fetch_retry_for: Duration::from_secs(30),
        fetch_ahead: 8,
        standby_on_outage: StandbyOnOutage::Wait,
        backup_wal_timeout: Duration::from_secs(600),
        retention: RetentionPolicy::default(),
        expire_abandoned_after: Duration::from_secs(86_400),
        log_level: LogLevel::Info,
    };
    assert_eq!(
        format!("{:?}", resolved(SMALL)),
        format!("{expected:?}"),
        "the defaults"
    );
}

#[test]
fn the_example_in_deploy_is_read_and_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/walden.example.yaml");
    let example = std::fs::read_to_string(&path).expect("deploy/walden.example.yaml");
    let said = resolved(&example);
    let default = resolved(SMALL);
    assert_eq!(
        (
            said.compression_level,
            said.push_deadline,
            said.push_ahead,
            said.push_backlog_level,
            said.push_optional_wait,
            said.fetch_retry_for,
            said.fetch_ahead,
            said.standby_on_outage
        ),
        (
            default.compression_level,
            default.push_deadline,
            default.push_ahead,
            default.push_backlog_level,
            default.push_optional_wait,
            default.fetch_retry_for,
            default.fetch_ahead,
            default.standby_on_outage
        ),
        "the example shows the defaults"
    );
    assert_eq!(
        (
            said.backup_wal_timeout,
            said.expire_abandoned_after,
            said.log_level
        ),
        (
            default.backup_wal_timeout,
            default.expire_abandoned_after,
            default.log_level
        )
    );

    // The keys that are commented out are good too.
    let whole: String = example
        .lines()
        .map(|line| match line.trim_start().strip_prefix("#: ") {
            Some(key) => format!(
                "{}{key}\n",
                " ".repeat(line.len() - line.trim_start().len())
            ),
            None => format!("{line}\n"),
        })
        .collect();
    let said = resolved(&whole);
    assert!(
        said.connection.is_some()
            && said.primary_connection.is_some()
            && said.pg_bin_dir.is_some()
            && said.spool_dir.is_some()
            && said.repositories[0].keys.encrypts()
            && said.repositories[0].keys.opens()
            && said.repositories[0].id.is_some()
            && !said.retention.is_empty()
            && said.repositories.len() == 2,
        "every optional key of a cluster and of a repository is in the example: {said:?}"
    );

    // So is the bucket in place of the folder.
    let whole: String = example
        .lines()
        .filter(|line| !line.trim_start().starts_with("path:"))
        .map(|line| match line.trim_start().strip_prefix("#s3 ") {
            Some(key) => format!("    {key}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    let Place::Bucket(s3) = resolved(&whole).repositories.remove(0).place else {
        panic!("a bucket expected in {whole}");
    };
    let default = S3Settings::new("b");
    assert_eq!(
        (s3.create_only, s3.checksums, s3.upload_concurrency),
        (
            default.create_only,
            default.checksums,
            default.upload_concurrency
        )
    );
    assert_eq!(
        (s3.request_deadline, s3.operation_deadline),
        (default.request_deadline, default.operation_deadline)
    );
    assert!(
        s3.object_lock.is_some() && s3.encryption.is_some() && !s3.tags.is_empty(),
        "every optional key of a bucket is in the example: {s3:?}"
    );
}

#[test]
fn everything_said_is_taken_over() {
    let settings = resolved(
        "\
clusters: { main: { connection: host=/run user=postgres, spool_dir: /var/tmp } }
repositories: [ { name: here, path: /r, id: 00000000000000000000000000000012 } ]
compression: { level: 19 }
push: { deadline: 2min, ahead: 64, backlog_level: -3, optional_wait: 1s }
fetch: { retry_for: 500ms, ahead: 0, standby_on_outage: stop }
backup: { wal_timeout: 1h }
retention: { full: 3, days: 9, window: 7d, daily: 1, weekly: 2, monthly: 3, yearly: 4, minimum: 2 }
expire: { abandoned_after: 2h }
log_level: debug
",
    );
    assert_eq!(
        settings.connection.as_deref(),
        Some("host=/run user=postgres")
    );
    assert_eq!(settings.spool_dir.as_deref(), Some(Path::new("/var/tmp")));
    assert_eq!(
        settings.repositories[0]
            .id
            .map(|id| id.to_string())
            .as_deref(),
        Some("00000000000000000000000000000012"),
        "an id of digits alone is not read as a number"
    );
    assert_eq!(settings.compression_level, 19);
    assert_eq!(settings.push_deadline, Duration::from_secs(120));
    assert_eq!(settings.push_ahead, 64);
    assert_eq!(settings.push_backlog_level, Some(-3));
    assert_eq!(settings.push_optional_wait, Duration::from_secs(1));
    assert_eq!(settings.fetch_retry_for, Duration::from_millis(500));
    assert_eq!(settings.fetch_ahead, 0);
    assert_eq!(settings.standby_on_outage, StandbyOnOutage::Stop);
    assert_eq!(settings.backup_wal_timeout, Duration::from_secs(3600));
    let week = jiff::SignedDuration::from_hours(24 * 7);
    assert_eq!(
        settings.retention,
        RetentionPolicy {
            full: Some(3),
            days: Some(9),
            window: Some(week),
            daily: Some(1),
            weekly: Some(2),
            monthly: Some(3),
            yearly: Some(4),
            minimum: 2,
        }
    );
    assert_eq!(
        settings.expire_abandoned_after,
        Duration::from_secs(2 * 3600)
    );
    assert_eq!(settings.log_level, LogLevel::Debug);
}

#[test]
fn a_clusters_own_retention_is_in_the_place_of_the_common_one() {
    let text = "\
clusters: { one: { retention: { daily: 3 } }, two: }
repositories: [ { name: here, path: /r } ]
retention: { full: 2, minimum: 2 }
";
    let of = |cluster| {
        let settings = resolve(Path::new(FILE), text, Some(cluster));
        settings.expect("a configuration").retention
    };
    assert_eq!(
        (of("one").daily, of("one").full, of("one").minimum),
        (Some(3), None, 1)
    );
    assert_eq!(
        (of("two").daily, of("two").full, of("two").minimum),
        (None, Some(2), 2)
    );
}

#[test]
fn a_cluster_may_say_nothing_but_its_name() {
    assert_eq!(
        resolved("clusters: { main: }\nrepositories: [ { name: a, path: /r } ]\n").pgdata,
        None
    );
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_key() {
    assert_eq!(
        complaint(&SMALL.replace("pgdata", "pgdta"), None),
        "error: /etc/walden/walden.yaml, line 3: unknown key \"pgdta\" in clusters.main\n\
         hint: did you mean \"pgdata\"? Known here: pgdata, connection, primary_connection, pg_bin_dir, spool_dir, retention\n"
    );
    assert_eq!(
        complaint(&format!("{SMALL}\ncompresion: {{ level: 3 }}\n"), None),
        "error: /etc/walden/walden.yaml, line 8: unknown key \"compresion\"\n\
         hint: did you mean \"compression\"? Known here: clusters, repositories, compression, encryption, push, fetch, backup, retention, expire, log_level\n"
    );
    assert_eq!(
        complaint(
            &SMALL.replace("    path: ", "    colour: blue\n    path: "),
            None
        ),
        "error: /etc/walden/walden.yaml, line 6: unknown key \"colour\" in repositories[0]\n\
         hint: known here: name, path, id, s3, required\n"
    );
    assert_eq!(
        complaint(&format!("{SMALL}push: {{ dedline: 3s }}\n"), None),
        "error: /etc/walden/walden.yaml, line 7: unknown key \"dedline\" in push\n\
         hint: did you mean \"deadline\"? Known here: deadline, ahead, backlog_level, optional_wait\n"
    );
}

#[test]
fn a_value_that_can_not_be_meant_names_its_line() {
    for (text, expected) in [
        (
            SMALL.replace("/var/lib/walden", "walden"),
            "line 6: repositories[0].path: \"walden\" is not an absolute path: begin it with /",
        ),
        (
            format!("{SMALL}compression: {{ level: 20 }}\n"),
            "line 7: compression.level: 20 is not a compression level: write 1 (fastest) to 19 (smallest)",
        ),
        (
            format!("{SMALL}retention: {{ minimum: 0 }}\n"),
            "line 7: retention.minimum: 0 is not a number of things to keep: write 1 to 100000, or leave the key out",
        ),
        (
            format!("{SMALL}push:\n  deadline: 50\n"),
            "line 8: push.deadline: \"50\" is not a span of time: write a whole number and a unit, as in 50s, 10min, 1h (units: ms, s, min, h, d)",
        ),
        (
            format!("{SMALL}push: {{ ahead: 65 }}\n"),
            "line 7: push.ahead: 65 is not a number of files: write 0 (none) to 64",
        ),
        (
            format!("{SMALL}push: {{ backlog_level: 20 }}\n"),
            "line 7: push.backlog_level: 20 is not a compression level: write off, or -7 (fastest) to 19 (smallest)",
        ),
        (
            format!("{SMALL}fetch: {{ standby_on_outage: panic }}\n"),
            "line 7: fetch.standby_on_outage: unknown variant `panic`, expected `wait` or `stop`",
        ),
        (
            SMALL.replace("  main:", "  Main:"),
            "line 2: clusters: \"Main\" cannot name a cluster: use 1 to 63 lower-case letters, digits and hyphens, beginning with a letter or digit, and not the reserved word \"identity\"",
        ),
        (
            SMALL.replace("repositories", "  main: { pgdata: /x }\nrepositories"),
            "line 2: clusters: the cluster main is there twice",
        ),
        (
            SMALL.replace("    path", "    id: 12\n    path"),
            "line 6: repositories[0].id: \"12\" is not an id of 32 lower-case hexadecimal digits",
        ),
    ] {
        assert_eq!(
            complaint(&text, None),
            format!("error: {FILE}, {expected}\nhint: walden.example.yaml explains every key\n"),
            "for {text}"
        );
    }
}

#[test]
fn what_is_not_yaml_names_its_line() {
    let said = complaint("clusters:\n  main: {\nrepositories: ]\n", None);
    assert!(
        said.starts_with("error: /etc/walden/walden.yaml, line 3: "),
        "the line is named: {said}"
    );
}

#[test]
fn a_missing_section_is_shown_as_it_should_be() {
    let cluster = "error: /etc/walden/walden.yaml: \"clusters\" is missing\n\
                   hint: add at least one cluster, as in \"clusters: { main: { pgdata: /var/lib/postgresql/17/main } }\"\n";
    assert_eq!(complaint("", None), cluster, "an empty file");
    assert_eq!(
        complaint("# nothing\n", None),
        cluster,
        "a file of comments"
    );
    assert_eq!(complaint("repositories: []", None), cluster);
    assert_eq!(complaint("clusters: {}", None), cluster);
    assert_eq!(
        complaint("clusters: { main: }", None),
        "error: /etc/walden/walden.yaml: \"repositories\" is missing\n\
         hint: add at least one repository, as in \"repositories: [{ name: here, path: /var/lib/walden }]\"\n"
    );
    assert_eq!(
        complaint("clusters: { main: }\nrepositories: [{ name: here }]", None),
        "error: /etc/walden/walden.yaml: \"repositories[0].path\" is missing\n\
         hint: a repository needs a name, and a path or s3, as in \"{ name: here, path: /var/lib/walden }\" or \
         \"{ name: here, s3: { bucket: backups, region: eu-west-1 } }\"\n"
    );
}

#[test]
fn repositories_come_in_the_files_order_and_are_required_unless_said() {
    let said: Vec<_> = resolved(&format!(
        "{SMALL}  - {{ name: a, path: /a, required: false }}\n  - {{ name: b, s3: {{ bucket: b }}, required: true }}\n"
    ))
    .repositories
    .into_iter()
    .map(|repository| (repository.name, repository.place.to_string(), repository.required))
    .collect();
    assert_eq!(
        said,
        [
            ("here".to_owned(), "/var/lib/walden".to_owned(), true),
            ("a".to_owned(), "/a".to_owned(), false),
            ("b".to_owned(), "s3://b".to_owned(), true),
        ]
    );
}

#[test]
fn what_can_not_be_meant_of_several_repositories_is_refused() {
    for (more, expected) in [
        (
            "  - { name: here, path: /mnt }\n",
            "two repositories have the name \"here\"\nhint: give each a name of its own",
        ),
        (
            "  - { name: elsewhere, path: /var/lib/walden }\n",
            "the repositories \"here\" and \"elsewhere\" are both in /var/lib/walden\n\
             hint: leave one of them, or correct where the other is",
        ),
        (
            "    required: false\n  - { name: b, path: /b, required: false }\n",
            "no repository is required\n\
             hint: leave out \"required: false\" where WAL has to be before PostgreSQL may remove it",
        ),
        (
            "  - { path: /mnt }\n",
            "\"repositories[1].name\" is missing\nhint: a repository needs a name, and a path or s3, as in \
             \"{ name: here, path: /var/lib/walden }\" or \"{ name: here, s3: { bucket: backups, region: eu-west-1 } }\"",
        ),
        (
            "  - { name: b, s3: { bucket: b, kms_key: k } }\n",
            "repositories[1].s3: kms_key goes with server_side_encryption: aws:kms alone\nhint: walden.example.yaml explains every key",
        ),
    ] {
        assert_eq!(
            complaint(&format!("{SMALL}{more}"), None),
            format!("error: {FILE}: {expected}\n"),
            "for {more}"
        );
    }
}

#[test]
fn only_one_place_is_accepted_of_a_repository() {
    assert_eq!(
        complaint(&format!("{SMALL}    s3: {{ bucket: b }}\n"), None),
        "error: /etc/walden/walden.yaml: the repository \"here\" has a path and s3, and is in one place only\n\
         hint: leave path, for a folder, or s3, for a bucket\n"
    );
}

/// The settings of the bucket that these lines say, in the place of `path`.
fn bucket(s3: &str) -> String {
    SMALL.replace("path: /var/lib/walden", &format!("s3: {{ {s3} }}"))
}

fn settings_of(s3: &str) -> S3Settings {
    match resolved(&bucket(s3)).repositories.remove(0).place {
        Place::Bucket(s3) => *s3,
        Place::Folder(path) => panic!("a bucket expected, found the folder {}", path.display()),
    }
}

#[test]
fn a_bucket_has_the_stores_defaults() {
    let mut expected = S3Settings::new("b");
    assert_eq!(
        format!("{:?}", settings_of("bucket: b")),
        format!("{expected:?}"),
        "on AWS"
    );
    expected.endpoint = Some("https://s3.example.net".to_owned());
    expected.path_style = true;
    assert_eq!(
        format!(
            "{:?}",
            settings_of("bucket: b, endpoint: https://s3.example.net")
        ),
        format!("{expected:?}"),
        "elsewhere the bucket's name stands in the path"
    );
}

#[test]
fn everything_said_of_a_bucket_is_taken_over() {
    let said = settings_of(
        "bucket: b, prefix: p/q, region: r, endpoint: 'http://h:3900', path_style: false, profile: me, credentials_file: /c, \
         ca_file: /ca, storage_class: STANDARD_IA, server_side_encryption: 'aws:kms', kms_key: k, \
         object_lock: { mode: compliance, days: 30 }, tags: { for: walden }, checksums: when_required, create_only: claims, \
         upload_concurrency: 2, request_deadline: 3s, operation_deadline: 1min",
    );
    let mut expected = S3Settings::new("b");
    expected.prefix = "p/q".to_owned();
    expected.region = Some("r".to_owned());
    expected.endpoint = Some("http://h:3900".to_owned());
    expected.credentials = S3Credentials::Chain {
        profile: Some("me".to_owned()),
        credentials_file: Some("/c".into()),
    };
    expected.ca_file = Some("/ca".into());
    expected.storage_class = Some("STANDARD_IA".to_owned());
    expected.encryption = Some(ServerEncryption::Kms {
        key: Some("k".to_owned()),
    });
    expected.object_lock = Some(ObjectLock {
        mode: ObjectLockMode::Compliance,
        days: 30,
    });
    expected.tags = [("for".to_owned(), "walden".to_owned())].into();
    expected.checksums = Checksums::WhenRequired;
    expected.create_only = CreateOnly::Claims;
    expected.upload_concurrency = 2;
    expected.request_deadline = Duration::from_secs(3);
    expected.operation_deadline = Duration::from_secs(60);
    assert_eq!(format!("{said:?}"), format!("{expected:?}"));
}

#[test]
fn what_can_not_be_meant_of_a_bucket_is_refused() {
    for (s3, expected) in [
        (
            "bucket: b, regoin: r",
            "line 6: unknown key \"regoin\" in repositories[0].s3\nhint: did you mean \"region\"? Known here: bucket, prefix, region, ",
        ),
        (
            "bucket: b, secret_access_key: canary",
            "line 6: unknown key \"secret_access_key\" in repositories[0].s3\nhint: no secret stands in this file: ",
        ),
        (
            "region: r",
            "line 6: repositories[0].s3: missing field `bucket`",
        ),
        (
            "bucket: b, kms_key: k",
            "repositories[0].s3: kms_key goes with server_side_encryption: aws:kms alone",
        ),
        (
            "bucket: b, create_only: lock",
            "line 6: repositories[0].s3.create_only: unknown variant `lock`, expected `conditional` or `claims`",
        ),
        (
            "bucket: b, object_lock: { mode: governance, days: 0 }",
            "line 6: repositories[0].s3.object_lock.days: 0 is not a number of days: write 1 to 36500",
        ),
        (
            "bucket: b, upload_concurrency: 17",
            "line 6: repositories[0].s3.upload_concurrency: 17 is not a number of parts: write 1 to 16",
        ),
    ] {
        let said = complaint(&bucket(s3), None);
        assert!(
            said.contains(expected),
            "for {s3}\n{expected:?} expected in\n{said:?}"
        );
        assert!(!said.contains("canary"), "a secret is shown: {said}");
    }
}

#[test]
fn with_several_clusters_one_has_to_be_named() {
    let two = SMALL.replace("repositories", "  other:\n    pgdata: /o\nrepositories");
    assert_eq!(
        complaint(&two, None),
        "error: /etc/walden/walden.yaml has more than one cluster, and none was named\nhint: name one with --cluster: main, other\n"
    );
    assert_eq!(
        complaint(&two, Some("third")),
        "error: /etc/walden/walden.yaml has no cluster \"third\"\nhint: name one with --cluster: main, other\n"
    );
    let chosen = resolve(Path::new(FILE), &two, Some("other")).expect("the named cluster");
    assert_eq!(
        chosen.pgdata.as_deref(),
        Some(Path::new("/o")),
        "the named cluster's own settings"
    );
}

#[test]
fn an_absent_file_says_where_another_can_be_named() {
    let error =
        load(Path::new("/nonexistent/walden.yaml"), None).expect_err("there is no such file");
    assert_eq!(
        Problem::from(error).render(),
        "error: cannot read the configuration /nonexistent/walden.yaml\n\
         cause: No such file or directory (os error 2)\n\
         hint: write it (walden.example.yaml explains every key), or name another file with --config or WALDEN_CONFIG\n"
    );
}

#[test]
fn the_option_goes_before_the_variable_and_that_before_the_default() {
    let option = Path::new("/a");
    assert_eq!(locate(Some(option), Some("/b".into())), Path::new("/a"));
    assert_eq!(locate(None, Some("/b".into())), Path::new("/b"));
    assert_eq!(
        locate(None, Some("".into())),
        Path::new(DEFAULT_FILE),
        "an empty variable is none"
    );
    assert_eq!(locate(None, None), Path::new(DEFAULT_FILE));
}

#[test]
fn a_password_that_others_may_read_is_refused_and_a_file_without_one_is_not() {
    use std::os::unix::fs::PermissionsExt;

    use crate::problem::Hint as _;

    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("walden.yaml");
    let write = |connection: &str, mode: u32| {
        let text = format!(
            "clusters: {{ main: {{ pgdata: /d }}, other: {{ primary_connection: \"{connection}\" }} }}\n\
             repositories: [{{ name: here, path: /r }}]\n"
        );
        std::fs::write(&file, text).expect("the configuration");
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&file, mode).expect("its mode");
        load(&file, Some("main"))
    };
    for secret in [
        "host=/run user=backup password=geheim",
        "postgresql://backup:geheim@db1/postgres",
    ] {
        for open in [0o644, 0o604, 0o602] {
            let refused = write(secret, open).expect_err("others may read it");
            let said = format!("{refused} {}", refused.hint().unwrap_or_default());
            assert!(
                said.contains("clusters.other.primary_connection")
                    && said.contains("chmod 600")
                    && !said.contains("geheim"),
                "{secret} with mode {open:o}: {said}"
            );
        }
        write(secret, 0o640).expect("a group is the administrator's choice");
        write(secret, 0o600).expect("nobody else reads it");
    }
    write("host=/run user=backup", 0o644).expect("it holds no secret");
}

#[test]
fn keys_that_cannot_be_meant_are_refused_and_secret_ones_are_not_shown() {
    let with = |encryption: &str| format!("{SMALL}encryption: {{ {encryption} }}\n");
    let secret = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    for misplaced in [
        format!("recipients: [{secret}]"),
        format!("recipients: {secret}"),
        format!("recipients: [\"my key: {secret}\"]"),
        format!("recipients_file: {secret}"),
        format!("identity_file: {}", secret.to_lowercase()),
        format!("identity_command: {secret}"),
        format!("{secret}: x"),
    ] {
        let said = complaint(&with(&misplaced), None);
        assert!(
            said.contains("a secret key") && !said.to_uppercase().contains(secret),
            "a secret key where none belongs, {misplaced}: {said}"
        );
    }
    let said = complaint(&format!("{SMALL}encryption: {secret}\n"), None);
    assert!(
        !said.contains(secret),
        "in the place of the section: {said}"
    );
    for (encryption, expected) in [
        ("recipients: [age1x]", "is not an age recipient"),
        (
            "identity_file: /k, identity_command: [cat, /k]",
            "keep one of them",
        ),
        ("identity_command: []", "names no program"),
        ("identity_file: k", "begin it with /"),
    ] {
        let said = complaint(&with(encryption), None);
        assert!(
            said.contains(expected),
            "{encryption}: {expected:?} expected in {said}"
        );
    }
    let plain = resolved(SMALL).repositories.remove(0).keys;
    assert!(!plain.encrypts() && !plain.opens(), "nothing by default");
}
