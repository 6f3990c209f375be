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
    nodes: Vec<Node>,
    /// Where the first node listens.
    first: SocketAddr,
    region: &'static str,
    bucket_folder: Option<PathBuf>,
    garage: Option<Garage>,
    _dir: Option<TestDir>,
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
        let node = Node::start(|address| {
            let mut command = Command::new(&program);
            command
                .arg("--host")
                .arg(address.ip().to_string())
                .arg("--port")
                .arg(address.port().to_string())
                .args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY])
                .arg(&root);
            logged(command, &dir, "s3s-fs.log")
        })?;
        Ok(Self {
            first: node.address,
            nodes: vec![node],
            region: "us-east-1",
            bucket_folder: Some(bucket),
            garage: None,
            _dir: Some(dir),
        })
    }

    /// Starts one node of Garage: it does not honour conditional writes.
    ///
    /// # Errors
    /// Where it cannot be brought or does not start.
    pub fn garage() -> Result<Self> {
        let garage = Garage::bring()?;
        let node = garage.node(0, 1, &["--single-node", "--default-bucket"])?;
        poll("Garage's bucket", || {
            Ok(garage.ask(&["bucket", "info", Self::BUCKET]).ok())
        })?;
        garage.server(vec![node])
    }

    /// Starts three nodes of Garage, each of which keeps every object. All is asked of the first.
    ///
    /// # Errors
    /// Where they cannot be brought, do not start, or do not find each other.
    pub fn garage_of_three() -> Result<Self> {
        let garage = Garage::bring()?;
        let mut nodes = Vec::new();
        let mut layout = vec!["layout", "assign", "-z", "one", "-c", "1G"];
        let mut names = Vec::new();
        for number in 0..3 {
            nodes.push(garage.node(number, 3, &[])?);
            let name = garage.name(number)?;
            if number > 0 {
                garage.ask(&["node", "connect", &name])?;
            }
            names.push(name);
        }
        let ids = names.iter().map(|name| match name.split_once('@') {
            Some((id, _)) => id,
            None => name,
        });
        layout.extend(ids);
        garage.ask(&layout)?;
        garage.ask(&["layout", "apply", "--version", "1"])?;
        garage.ask(&["key", "import", "--yes", ACCESS_KEY, SECRET_KEY])?;
        // Not before the layout has reached the others.
        poll("Garage's bucket", || {
            // The answer to one that succeeded may have been an error.
            let made = garage.ask(&["bucket", "create", Self::BUCKET]);
            let there = made.or_else(|_| garage.ask(&["bucket", "info", Self::BUCKET]));
            Ok(there.ok())
        })?;
        let allowed = ["--read", "--write", "--owner", "--key", ACCESS_KEY];
        garage.ask(&[&["bucket", "allow", Self::BUCKET], &allowed[..]].concat())?;
        garage.server(nodes)
    }

    /// Kills one of the nodes.
    ///
    /// # Errors
    /// Where there is no such node, or it cannot be killed.
    pub fn stop_node(&mut self, number: usize) -> Result<()> {
        let process = &mut self.node(number)?.process;
        process.kill().context("cannot kill the node")?;
        process.wait().context("cannot wait for the node")?;
        Ok(())
    }

    /// Starts a node of Garage that was killed, and has the first one find it at once: by itself it would look for it much later.
    ///
    /// # Errors
    /// Where there is no such node, it does not start, or is not found.
    pub fn start_node(&mut self, number: usize) -> Result<()> {
        let node = self.node(number)?;
        node.process = spawn(&mut node.command)?;
        node.wait()?
            .then_some(())
            .context("the node ended at once")?;
        let garage = self.garage.as_ref().context("only Garage has nodes")?;
        let name = garage.name(number)?;
        poll("the nodes to find each other", || {
            Ok(garage.ask(&["node", "connect", &name]).ok())
        })?;
        Ok(())
    }

    fn node(&mut self, number: usize) -> Result<&mut Node> {
        self.nodes.get_mut(number).context("there is no such node")
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.first
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.first)
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

/// One process of a store. It ends with the value.
#[derive(Debug)]
struct Node {
    process: Child,
    /// What started it, and starts it again.
    command: Command,
    address: SocketAddr,
}

impl Node {
    /// Starts a server until one listens on the address that it was given.
    fn start(command: impl Fn(SocketAddr) -> Result<Command>) -> Result<Self> {
        for _ in 0..PORTS {
            let address = free_port()?;
            let mut command = command(address)?;
            let mut node = Self {
                process: spawn(&mut command)?,
                command,
                address,
            };
            if node.wait()? {
                return Ok(node);
            }
        }
        bail!("the server ended at once, {PORTS} times");
    }

    /// Waits until it listens; false where it ends instead.
    fn wait(&mut self) -> Result<bool> {
        poll("the server to listen", || {
            let ended = self.process.try_wait().context("cannot watch the server")?;
            if ended.is_some() {
                return Ok(Some(false));
            }
            Ok(TcpStream::connect(self.address).is_ok().then_some(true))
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Garage's program, and the folder of its nodes.
#[derive(Debug)]
struct Garage {
    program: PathBuf,
    dir: TestDir,
}

impl Garage {
    fn bring() -> Result<Self> {
        Ok(Self {
            program: bring("garage")?,
            dir: TestDir::new("garage")?,
        })
    }

    /// Starts a node of a cluster in which each object is kept `copies` times.
    fn node(&self, number: usize, copies: usize, options: &[&str]) -> Result<Node> {
        Node::start(|address| {
            let rpc = free_port()?;
            let place = self.dir.path().display();
            let text = format!(
                "metadata_dir = \"{place}/meta{number}\"\n\
                 data_dir = \"{place}/data{number}\"\n\
                 db_engine = \"sqlite\"\n\
                 replication_factor = {copies}\n\
                 rpc_bind_addr = \"{rpc}\"\n\
                 rpc_public_addr = \"{rpc}\"\n\
                 rpc_secret = \"{SECRET_KEY}\"\n\
                 [s3_api]\n\
                 s3_region = \"garage\"\n\
                 api_bind_addr = \"{address}\"\n"
            );
            fs::write(self.config(number), text).context("cannot write Garage's configuration")?;
            let mut command = self.command(number);
            command
                .arg("server")
                .args(options)
                .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
                .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
                .env("GARAGE_DEFAULT_BUCKET", S3Server::BUCKET)
                .env("RUST_LOG", "warn");
            logged(command, &self.dir, &format!("garage{number}.log"))
        })
    }

    fn config(&self, number: usize) -> PathBuf {
        self.dir.join(format!("garage{number}.toml"))
    }

    fn command(&self, number: usize) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.config(number));
        command
    }

    /// A node's id and address.
    fn name(&self, number: usize) -> Result<String> {
        let name = run(self.command(number).args(["node", "id", "-q"]))?;
        Ok(name.trim().to_owned())
    }

    /// Asks the first node for something.
    fn ask(&self, arguments: &[&str]) -> Result<String> {
        run(self.command(0).args(arguments))
    }

    fn server(self, nodes: Vec<Node>) -> Result<S3Server> {
        let first = nodes.first().context("a node")?.address;
        Ok(S3Server {
            first,
            nodes,
            region: "garage",
            bucket_folder: None,
            garage: Some(self),
            _dir: None,
        })
    }
}

/// A server's program, built where it is not there yet.
fn bring(server: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/scripts/bring-s3");
    let path = run(Command::new(script).arg(server))?;
    Ok(path.trim().into())
}

fn logged(mut command: Command, dir: &TestDir, name: &str) -> Result<Command> {
    let log = fs::File::create(dir.join(name)).context("cannot make the server's log")?;
    let second = log.try_clone().context("cannot share the server's log")?;
    command.stdin(Stdio::null()).stdout(log).stderr(second);
    Ok(command)
}

fn spawn(command: &mut Command) -> Result<Child> {
    let spawned = command.spawn();
    spawned.with_context(|| format!("cannot start {command:?}"))
}

fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    listener.local_addr().context("a port without an address")
}
