//! Connections that don't wait forever: a client has to send its request and to take its answer at some pace.
//!
//! Without that, a few hundred clients that send a byte now and then would keep everybody else out.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections that are open at once; others wait to be accepted.
const MOST_CONNECTIONS: usize = 1024;
/// Pause after an accept that the system refused, for instance for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a server waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the head of a request, from the connection or from the answer before it.
    pub(crate) head: Duration,
    /// For a client to take some of its answer.
    pub(crate) write: Duration,
    /// For requests that are under way when the server is asked to end.
    pub(crate) shutdown: Duration,
}

impl Default for Patience {
    /// 10 s each, 30 s for a client to take some of its answer.
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            write: Duration::from_secs(30),
            shutdown: Duration::from_secs(10),
        }
    }
}

/// Until when the head of a request has to be there; none while one is being answered.
#[derive(Debug)]
struct Pace {
    due: Mutex<Option<Instant>>,
    patience: Duration,
}

impl Pace {
    fn due(&self) -> Option<Instant> {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, due: Option<Instant>) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }

    fn wait_for_request(&self) {
        self.set(Some(Instant::now() + self.patience));
    }

    /// The answer before is still being taken: only then the next request is waited for.
    fn put_off(&self) {
        if let Some(due) = &mut *self.due.lock().unwrap_or_else(PoisonError::into_inner) {
            *due = Instant::now() + self.patience;
        }
    }
}

/// Who asks.
#[derive(Clone)]
pub(crate) struct Caller {
    pace: Arc<Pace>,
}

impl Connected<IncomingStream<'_, Gate>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Self {
        Self { pace: Arc::clone(&stream.io().pace) }
    }
}

/// Tells the connection that a request has come, and when it has its answer. A request that is given up counts as answered.
pub(super) async fn mark_request(request: Request, next: Next) -> Response {
    struct Marked(Option<Caller>);
    impl Drop for Marked {
        fn drop(&mut self) {
            if let Some(caller) = &self.0 {
                caller.pace.wait_for_request();
            }
        }
    }
    let caller = request.extensions().get::<ConnectInfo<Caller>>().map(|info| info.0.clone());
    if let Some(caller) = &caller {
        caller.pace.set(None);
    }
    let _marked = Marked(caller);
    next.run(request).await
}

/// A listener that lets a bounded number in.
pub(super) struct Gate {
    listener: TcpListener,
    places: Arc<Semaphore>,
    patience: Patience,
}

impl Gate {
    pub(super) fn new(listener: std::net::TcpListener, patience: Patience) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { listener, places: Arc::new(Semaphore::new(MOST_CONNECTIONS)), patience })
    }
}

impl Listener for Gate {
    type Io = Paced;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Paced, SocketAddr) {
        loop {
            // The semaphore is never closed; were it, nobody could be let in.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                std::future::pending::<()>().await;
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    // Answers are small: they go out at once. Where that can't be set they are a little late.
                    let _ = stream.set_nodelay(true);
                    return (Paced::new(stream, self.patience, place), address);
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its deadlines.
pub(super) struct Paced {
    stream: TcpStream,
    pace: Arc<Pace>,
    read_alarm: Pin<Box<Sleep>>,
    write_alarm: Pin<Box<Sleep>>,
    /// Whether a write is stuck, and the alarm runs.
    stuck: bool,
    patience: Patience,
    _place: OwnedSemaphorePermit,
}

impl Paced {
    fn new(stream: TcpStream, patience: Patience, place: OwnedSemaphorePermit) -> Self {
        let due = Instant::now() + patience.head;
        let pace = Arc::new(Pace { due: Mutex::new(Some(due)), patience: patience.head });
        let alarm = || Box::pin(tokio::time::sleep_until(due));
        Self {
            stream,
            pace,
            read_alarm: alarm(),
            write_alarm: alarm(),
            stuck: false,
            patience,
            _place: place,
        }
    }

    /// Passes a write on; fails where none has got through for too long.
    fn paced_write<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stuck = false;
            self.pace.put_off();
            return outcome;
        }
        if !self.stuck {
            self.stuck = true;
            self.write_alarm.as_mut().reset(Instant::now() + self.patience.write);
        }
        ready!(self.write_alarm.as_mut().poll(context));
        Poll::Ready(Err(too_slow("the client takes no answer")))
    }
}

fn too_slow(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stuck {
            // The write alarm watches a client that takes its answer slowly.
            self.pace.put_off();
        }
        if let Some(due) = self.pace.due() {
            if self.read_alarm.deadline() != due {
                self.read_alarm.as_mut().reset(due);
            }
            if self.read_alarm.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(too_slow("the client sends no request")));
            }
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.paced_write(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.paced_write(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::get;

    use super::*;

    const BYTES: usize = 48 << 20;

    /// A large answer behind a gate.
    async fn serve(listener: std::net::TcpListener, patience: Patience) {
        let router =
            Router::new().route("/", get(|| async { vec![b'x'; BYTES] })).layer(from_fn(mark_request));
        let gate = Gate::new(listener, patience).unwrap();
        axum::serve(gate, router.into_make_service_with_connect_info::<Caller>()).await.unwrap();
    }

    #[test]
    fn a_client_that_takes_its_answer_slowly_gets_all_of_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let patience = Patience { head: Duration::from_millis(200), ..Patience::default() };
        runtime.spawn(serve(listener, patience));
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        // Once it takes nothing for longer than a request is waited for, then little by little.
        std::thread::sleep(Duration::from_millis(500));
        let (mut taken, mut some) = (0, vec![0; 1 << 20]);
        while taken < BYTES {
            let count = client.read(&mut some).unwrap();
            assert!(count > 0, "cut off after {taken} bytes");
            taken += count;
            std::thread::sleep(Duration::from_millis(10));
        }
        // Then it has to ask again, or to go.
        let began = Instant::now();
        while client.read(&mut some).unwrap_or(0) > 0 {}
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
