//! `aeir bench serve`: how many searches a second a running server answers, and how long each takes.
//!
//! Every client keeps one connection, asks, reads the whole answer and asks again. Its own HTTP is a few lines: what is timed is the server.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::commands::{print, print_json};
use crate::failure::CliError;
use crate::flags::BenchServeFlags;

/// A client that waits longer for an answer counts it as an error.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests before the clock starts.
const WARM_UP: usize = 20;
/// Heads and answers are small: more is no answer of ours.
const MOST_BYTES: usize = 64 << 20;

/// What was measured with one number of clients.
#[derive(Serialize)]
struct Round {
    clients: usize,
    answers: usize,
    /// Anything but a whole answer with status 200.
    errors: usize,
    queries_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    worst_ms: f64,
}

#[derive(Serialize)]
struct Report {
    url: String,
    k: usize,
    seconds: f64,
    sentences: usize,
    rounds: Vec<Round>,
}

/// Asks a running server and prints how it did.
pub(super) fn run(flags: &BenchServeFlags) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&flags.sentences)
        .with_context(|| format!("could not read `{}`", flags.sentences.display()))?;
    let sentences: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if sentences.is_empty() {
        return Err(CliError::Data {
            message: format!("no sentence in `{}`", flags.sentences.display()),
            hint: "it takes a text file, one sentence a line".into(),
        }
        .into());
    }
    let server = Server::of(&flags.url)?;
    let requests: Vec<Vec<u8>> = sentences.iter().map(|sentence| server.request(sentence, flags.k)).collect();
    let mut client = Client::connect(&server)?;
    for request in requests.iter().cycle().take(WARM_UP) {
        client.ask(request).context("the server does not answer")?;
    }
    drop(client);
    let rounds = flags.clients.iter().map(|clients| round(&server, &requests, *clients, flags.seconds));
    let report = Report {
        url: flags.url.clone(),
        k: flags.k,
        seconds: flags.seconds.as_secs_f64(),
        sentences: sentences.len(),
        rounds: rounds.collect::<anyhow::Result<_>>()?,
    };
    if flags.json {
        return print_json(&report);
    }
    print(&table(&report))
}

fn table(report: &Report) -> String {
    let mut text = String::from("clients   queries/s   p50 ms   p99 ms   worst ms   errors\n");
    for round in &report.rounds {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{:>7}   {:>9.1}   {:>6.2}   {:>6.2}   {:>8.1}   {:>6}",
            round.clients, round.queries_per_second, round.p50_ms, round.p99_ms, round.worst_ms, round.errors
        );
    }
    text
}

/// Lets some clients ask for a while, each beginning with another sentence.
fn round(server: &Server, requests: &[Vec<u8>], clients: usize, time: Duration) -> anyhow::Result<Round> {
    let connected = (0..clients).map(|_| Client::connect(server)).collect::<anyhow::Result<Vec<_>>>()?;
    let began = Instant::now();
    let mut seconds = Vec::new();
    let mut errors = 0;
    std::thread::scope(|scope| {
        let work = |(number, client): (usize, Client)| {
            let requests = requests.iter().cycle().skip(number * requests.len() / clients);
            scope.spawn(move || client.keep_asking(requests, began + time))
        };
        let threads: Vec<_> = connected.into_iter().enumerate().map(work).collect();
        for thread in threads {
            // A client that panicked is a fault of this program, and counts as one of the server's.
            let (times, failed) = thread.join().unwrap_or((Vec::new(), 1));
            seconds.extend(times);
            errors += failed;
        }
    });
    let elapsed = began.elapsed().as_secs_f64();
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = (share * seconds.len() as f64).ceil() as usize;
        1e3 * seconds.get(place.max(1) - 1).copied().unwrap_or(f64::NAN)
    };
    Ok(Round {
        clients,
        answers: seconds.len(),
        errors,
        queries_per_second: seconds.len() as f64 / elapsed,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        worst_ms: at(1.0),
    })
}

/// Where a server is.
struct Server {
    address: SocketAddr,
    host: String,
}

impl Server {
    fn of(url: &str) -> anyhow::Result<Self> {
        let unusable = |reason: String| CliError::Usage {
            message: format!("`{url}` can't be asked: {reason}"),
            hint: "give the address that `aeir serve` prints, such as http://127.0.0.1:8080".into(),
        };
        let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/').to_owned());
        let host = host.ok_or_else(|| unusable("expected http://".into()))?;
        let full = if host.rsplit(']').next().is_some_and(|rest| rest.contains(':')) {
            host.clone()
        } else {
            format!("{host}:80")
        };
        let address = full.to_socket_addrs().map_err(|error| unusable(error.to_string()))?.next();
        Ok(Self { address: address.ok_or_else(|| unusable("no such host".into()))?, host })
    }

    fn request(&self, sentence: &str, k: usize) -> Vec<u8> {
        let body = serde_json::json!({"text": sentence, "k": k}).to_string();
        let head = format!(
            "POST /v1/search HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        (head + &body).into_bytes()
    }
}

/// One connection.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(server: &Server) -> anyhow::Result<Self> {
        let failed = || format!("could not reach {}", server.address);
        let stream = TcpStream::connect_timeout(&server.address, PATIENCE).with_context(failed)?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_nodelay(true))
            .with_context(failed)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Seconds of each answer until the end, and how many were none. A connection that is lost ends this client.
    fn keep_asking<'a>(
        mut self,
        requests: impl Iterator<Item = &'a Vec<u8>>,
        until: Instant,
    ) -> (Vec<f64>, usize) {
        let (mut seconds, mut errors) = (Vec::new(), 0);
        for request in requests {
            let began = Instant::now();
            if began >= until {
                break;
            }
            match self.ask(request) {
                Ok(200) => seconds.push(began.elapsed().as_secs_f64()),
                Ok(_) => errors += 1,
                Err(_) => return (seconds, errors + 1),
            }
        }
        (seconds, errors)
    }

    /// The status of an answer that was read to its end.
    fn ask(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.stream.get_mut().write_all(request)?;
        let mut line = String::new();
        self.stream.by_ref().take(MOST_BYTES as u64).read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP")?;
        let mut length = 0;
        loop {
            line.clear();
            if self.stream.by_ref().take(MOST_BYTES as u64).read_line(&mut line)? == 0 {
                bail!("the head breaks off");
            }
            match line.trim_end().split_once(':') {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse()?
                }
                Some(_) => {}
            }
        }
        if length > MOST_BYTES {
            bail!("an answer of {length} bytes");
        }
        self.stream.read_exact(&mut vec![0; length])?;
        Ok(status)
    }
}
