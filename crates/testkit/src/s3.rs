//! Object stores to test on, as `integration/scripts/bring-s3` brings them.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::dir::TestDir;
use crate::process::{poll, run};

const ACCESS_KEY: &str = "GK31c2f218a2e44f485b94239e";
const SECRET_KEY: &str = "b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835";

/// How often another port is tried, where somebody else has taken the one that was free.
const PORTS: usize = 5;

/// A running store with one empty bucket. It ends with the value, and what it held is gone.
#[derive(Debug)]
pub struct S3Server {
    process: Child,
    address: SocketAddr,
    region: &'static str,
    bucket_folder: Option<PathBuf>,
    _dir: TestDir,
}

impl S3Server {
    /// The bucket's name.
    pub const BUCKET: &str = "walden-test";

    /// Starts s3s-fs: it checks signatures and honours conditional writes.
    ///
    /// # Errors
    /// Where it cannot be brought or does not start.
    pub fn s3s_fs() -> Result<Self> {
        let program = bring("s3s-fs")?;
        let dir = TestDir::new("s3s-fs")?;
        let root = dir.join("root");
        let bucket = root.join(Self::BUCKET);
        fs::create_dir_all(&bucket).context("cannot make the bucket's folder")?;
        let (process, address) = on_free_port(|address| {
            let mut command = Command::new(&program);
            command
                .arg("--host")
                .arg(address.ip().to_string())
                .arg("--port")
                .arg(address.port().to_string())
                .args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY])
                .arg(&root);
            logged(&mut command, &dir, "s3s-fs.log")
        })?;
        Ok(Self {
            process,
            address,
            region: "us-east-1",
            bucket_folder: Some(bucket),
            _dir: dir,
        })
    }

    /// Starts one node of Garage: it does not honour conditional writes.
    ///
    /// # Errors
    /// Where it cannot be brought or does not start.
    pub fn garage() -> Result<Self> {
        let program = bring("garage")?;
        let dir = TestDir::new("garage")?;
        let config = dir.join("garage.toml");
        let (process, address) = on_free_port(|address| {
            let rpc = free_port()?;
            let place = dir.path().display();
            let text = format!(
                "metadata_dir = \"{place}/meta\"\n\
                 data_dir = \"{place}/data\"\n\
                 db_engine = \"sqlite\"\n\
                 replication_factor = 1\n\
                 rpc_bind_addr = \"{rpc}\"\n\
                 rpc_public_addr = \"{rpc}\"\n\
                 rpc_secret = \"{SECRET_KEY}\"\n\
                 [s3_api]\n\
                 s3_region = \"garage\"\n\
                 api_bind_addr = \"{address}\"\n"
            );
            fs::write(&config, text).context("cannot write Garage's configuration")?;
            let mut command = Command::new(&program);
            command
                .arg("-c")
                .arg(&config)
                .args(["server", "--single-node", "--default-bucket"])
                .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
                .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
                .env("GARAGE_DEFAULT_BUCKET", Self::BUCKET)
                .env("RUST_LOG", "warn");
            logged(&mut command, &dir, "garage.log")
        })?;
        let server = Self {
            process,
            address,
            region: "garage",
            bucket_folder: None,
            _dir: dir,
        };
        poll("Garage's bucket", || {
            let mut ask = Command::new(&program);
            ask.arg("-c").arg(&config);
            ask.args(["bucket", "info", Self::BUCKET]);
            Ok(run(&mut ask).ok())
        })?;
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its region.
    #[must_use]
    pub fn region(&self) -> &'static str {
        self.region
    }

    /// The access key that may do everything in the bucket.
    #[must_use]
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The access key's secret.
    #[must_use]
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// AWS's credentials file, with the access key as the default profile's.
    #[must_use]
    pub fn credentials(&self) -> String {
        format!(
            "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
        )
    }

    /// Removes the bucket with all that is in it.
    ///
    /// # Errors
    /// Where it is not s3s-fs, or is gone already.
    pub fn drop_bucket(&self) -> Result<()> {
        let folder = self
            .bucket_folder
            .as_ref()
            .context("only a bucket of s3s-fs can be dropped")?;
        fs::remove_dir_all(folder).context("cannot remove the bucket's folder")
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server's program, built where it is not there yet.
fn bring(server: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/scripts/bring-s3");
    let path = run(Command::new(script).arg(server))?;
    Ok(path.trim().into())
}

fn logged(command: &mut Command, dir: &TestDir, name: &str) -> Result<Child> {
    let log = fs::File::create(dir.join(name)).context("cannot make the server's log")?;
    let second = log.try_clone().context("cannot share the server's log")?;
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))
}

fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    listener.local_addr().context("a port without an address")
}

/// Starts a server until one listens.
fn on_free_port(mut start: impl FnMut(SocketAddr) -> Result<Child>) -> Result<(Child, SocketAddr)> {
    for _ in 0..PORTS {
        let address = free_port()?;
        let mut process = start(address)?;
        let listens = poll("the server to listen", || {
            if process
                .try_wait()
                .context("cannot watch the server")?
                .is_some()
            {
                return Ok(Some(false));
            }
            Ok(TcpStream::connect(address).is_ok().then_some(true))
        })?;
        if listens {
            return Ok((process, address));
        }
    }
    bail!("the server ended at once, {PORTS} times");
}
