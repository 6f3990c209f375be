//! What lies between a program and a store, and goes wrong.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// No connection of a test is idle for longer.
const IDLE: Duration = Duration::from_secs(60);

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The proxy answers, and the store never hears of it: status, further header lines (each ended by CR LF), body.
    Answer(u16, &'static str, String),
    /// So many bytes of the request's body reach the store, then both connections are cut.
    CutUpload(usize),
    /// The answer is cut after so many bytes of its body.
    CutDownload(usize),
    /// The store does what it is asked, and nobody hears of it: the connection is cut.
    LoseAnswer,
    /// Nothing happens, for ever.
    Hang,
    /// After so many bytes of the answer's body nothing comes any more.
    HangDownload(usize),
    /// The answer's body comes one byte at a time, this far apart.
    Trickle(Duration),
    /// The answer's `ETag` is another.
    WrongEtag,
    /// The store is gone: this connection and all later ones are cut, until [`FaultProxy::mend`].
    Gone,
}

impl Fault {
    /// An S3 error with this status and code.
    #[must_use]
    pub fn error(status: u16, code: &str) -> Self {
        Self::Answer(
            status,
            "Content-Type: application/xml\r\n",
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>said by the test</Message></Error>"
            ),
        )
    }
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    name: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<String>>,
    unconditional: Mutex<Vec<String>>,
    headers: Mutex<Vec<String>>,
    /// Held by the one write that is under way, where it is to be the only one.
    writing: Mutex<()>,
    one_write: AtomicBool,
    gone: AtomicBool,
    stopped: AtomicBool,
}

/// An HTTP proxy in front of one server, one request a connection. Without faults it changes nothing.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl FaultProxy {
    /// Listens, and hands on to `server`.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn before(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
        let address = listener.local_addr().context("a port without an address")?;
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                let state = shared.clone();
                // A connection that breaks is what it is for.
                thread::spawn(move || drop(serve(&state, &client, server)));
            }
        });
        Ok(Self { address, state })
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next `times` requests of this method whose first line holds `name` meet this fault, after `skip` that do not.
    pub fn fault(&self, method: &'static str, name: &str, skip: usize, times: usize, fault: Fault) {
        lock(&self.state.rules).push(Rule {
            method,
            name: name.to_owned(),
            skip,
            times,
            fault,
        });
    }

    /// From now on one write at a time reaches the server: one that looks whether an object is there, and then puts it,
    /// becomes one that puts it only where none is.
    pub fn one_write_at_a_time(&self) {
        self.state.one_write.store(true, Ordering::Relaxed);
    }

    /// Takes all faults back.
    pub fn mend(&self) {
        self.state.gone.store(false, Ordering::Relaxed);
        lock(&self.state.rules).clear();
    }

    /// The first line of each request so far; then they are forgotten.
    #[must_use]
    pub fn take_seen(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state.seen))
    }

    /// The first line of each request so far that creates an object, whatever is there; then they are forgotten. (Parts, and the
    /// beginning of an upload in parts, create none.)
    #[must_use]
    pub fn take_unconditional(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state.unconditional))
    }

    /// The header lines of the request that came last.
    #[must_use]
    pub fn last_headers(&self) -> Vec<String> {
        lock(&self.state.headers).clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that listens.
        drop(TcpStream::connect(self.address));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines before a body.
struct Head {
    first: String,
    lines: Vec<String>,
}

impl Head {
    /// Reads to the empty line, a byte at a time: what follows is the body's.
    fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            text.extend_from_slice(&byte);
        }
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.trim_end().split("\r\n").map(str::to_owned);
        Ok(Self {
            first: lines.next().unwrap_or_default(),
            lines: lines.collect(),
        })
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn set(&mut self, name: &str, value: &str) {
        self.lines.retain(|line| {
            line.split_once(':')
                .is_none_or(|(found, _)| !found.eq_ignore_ascii_case(name))
        });
        self.lines.push(format!("{name}: {value}"));
    }

    fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for line in &self.lines {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        stream.write_all(text.as_bytes())
    }
}

fn serve(state: &State, mut client: &TcpStream, server: SocketAddr) -> io::Result<()> {
    client.set_read_timeout(Some(IDLE))?;
    client.set_nodelay(true)?;
    let mut request = Head::read(&mut io::BufReader::with_capacity(1, client))?;
    lock(&state.seen).push(request.first.clone());
    let first = &request.first;
    let creates = match first.split(' ').next() {
        Some("PUT") => !first.contains("partNumber="),
        Some("POST") => first.contains("uploadId="),
        _ => false,
    };
    if creates && request.value("if-none-match").is_none() {
        lock(&state.unconditional).push(first.clone());
    }
    lock(&state.headers).clone_from(&request.lines);
    let length: u64 = request
        .value("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or_default();
    if request.value("expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let fault = state.fault(&request.first);
    if matches!(fault, Some(Fault::Gone)) {
        state.gone.store(true, Ordering::Relaxed);
    }
    if state.gone.load(Ordering::Relaxed) {
        return client.shutdown(Shutdown::Both);
    }
    match &fault {
        Some(Fault::Answer(status, headers, body)) => {
            io::copy(&mut client.take(length), &mut io::sink())?;
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} Said\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            client.write_all(head.as_bytes())?;
            // The answer to a HEAD has no body.
            if !request.first.starts_with("HEAD ") {
                client.write_all(body.as_bytes())?;
            }
            return client.shutdown(Shutdown::Write);
        }
        Some(Fault::Hang) => return hang(client),
        _ => {}
    }

    let writes = !request.first.starts_with("GET ") && !request.first.starts_with("HEAD ");
    let _alone = (writes && state.one_write.load(Ordering::Relaxed)).then(|| lock(&state.writing));
    let mut upstream = TcpStream::connect(server)?;
    upstream.set_read_timeout(Some(IDLE))?;
    request.set("Connection", "close");
    request.write(&mut upstream)?;
    let sent = match fault {
        Some(Fault::CutUpload(bytes)) => length.min(bytes as u64),
        _ => length,
    };
    // A server that refuses may answer before it has read all, and close.
    let refused = io::copy(&mut client.take(sent), &mut upstream).is_err();
    match fault {
        Some(Fault::CutUpload(_)) => return client.shutdown(Shutdown::Both),
        Some(Fault::LoseAnswer) => {
            // To its end: then it is done.
            io::copy(&mut upstream, &mut io::sink())?;
            return client.shutdown(Shutdown::Both);
        }
        _ => {}
    }

    let mut answer = loop {
        let head = Head::read(&mut io::BufReader::with_capacity(1, &upstream))?;
        if !head.first.starts_with("HTTP/1.1 1") {
            break head;
        }
    };
    answer.set("Connection", "close");
    if let Some(Fault::WrongEtag) = fault {
        answer.set("ETag", "\"00000000000000000000000000000000\"");
    }
    answer.write(&mut client)?;
    match fault {
        Some(Fault::CutDownload(bytes)) => {
            io::copy(&mut upstream.take(bytes as u64), &mut client)?;
        }
        Some(Fault::HangDownload(bytes)) => {
            io::copy(&mut upstream.take(bytes as u64), &mut client)?;
            return hang(client);
        }
        Some(Fault::Trickle(pause)) => {
            for byte in io::BufReader::new(upstream).bytes() {
                client.write_all(&[byte?])?;
                thread::sleep(pause);
            }
        }
        _ => {
            io::copy(&mut upstream, &mut client)?;
        }
    }
    if refused {
        // Whoever is still sending would be cut off before the answer.
        client.shutdown(Shutdown::Write)?;
        return hang(client);
    }
    client.shutdown(Shutdown::Both)
}

impl State {
    fn fault(&self, first: &str) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let method = first.split(' ').next().unwrap_or_default();
        let rule = rules
            .iter_mut()
            .find(|rule| rule.method == method && rule.times > 0 && first.contains(&rule.name))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

/// Until the other side goes away.
fn hang(mut client: &TcpStream) -> io::Result<()> {
    io::copy(&mut client, &mut io::sink()).map(drop)
}
