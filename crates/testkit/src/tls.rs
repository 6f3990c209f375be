//! TLS before a server that speaks none.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Pipes both ways; says its port on standard output.
const PROGRAM: &str = r#"
import asyncio, ssl, sys
certificate, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)

async def pipe(reader, writer):
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass
    writer.close()

async def client(reader, writer):
    inner_reader, inner_writer = await asyncio.open_connection(host, port)
    await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))

async def main():
    server = await asyncio.start_server(client, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"#;

/// A process that ends TLS and hands on what is inside.
#[derive(Debug)]
pub struct TlsFront {
    process: Child,
    port: u16,
}

impl TlsFront {
    /// Listens on 127.0.0.1 with the certificate and key of a PEM file, and hands on to `server`.
    ///
    /// # Errors
    /// Where Python does not run it.
    pub fn before(server: SocketAddr, certificate: &Path) -> Result<Self> {
        let mut process = Command::new("python3")
            .args(["-c", PROGRAM])
            .arg(certificate)
            .arg(server.ip().to_string())
            .arg(server.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start python3")?;
        let mut line = String::new();
        let output = process.stdout.take().context("no standard output")?;
        let read = BufReader::new(output).read_line(&mut line);
        let mut front = Self { process, port: 0 };
        read.context("the TLS front does not say its port")?;
        front.port = line
            .trim()
            .parse()
            .context("the TLS front does not say its port")?;
        Ok(front)
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
