//! A way to a server that breaks: after so many bytes every connection through it is cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use aeir_retrieve::MilvusPlace;

pub(crate) struct CuttingProxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    /// Bytes on the way to the server before the cut.
    budget: usize,
    /// Whether connections after the cut go through.
    heals: bool,
    passed: AtomicUsize,
    cuts: AtomicUsize,
}

impl CuttingProxy {
    /// Its threads end with the process.
    pub(crate) fn start(server: u16, budget: usize, heals: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { budget, heals, passed: AtomicUsize::new(0), cuts: AtomicUsize::new(0) });
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if shared.is_cut() && !shared.heals {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let (back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let state = shared.clone();
                thread::spawn(move || state.forward(client, server));
                thread::spawn(move || copy(back_from, back_to));
            }
        });
        Self { port, state }
    }

    pub(crate) fn place(&self, collection: &str) -> MilvusPlace {
        format!("milvus://127.0.0.1:{}/{collection}", self.port).parse().unwrap()
    }

    pub(crate) fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::SeqCst)
    }
}

impl State {
    fn is_cut(&self) -> bool {
        self.cuts.load(Ordering::SeqCst) > 0
    }

    fn forward(&self, mut client: TcpStream, mut server: TcpStream) {
        let mut buffer = [0; 16_384];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            let passed = self.passed.fetch_add(count, Ordering::SeqCst) + count;
            if passed > self.budget && (!self.is_cut() || !self.heals) {
                self.cuts.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if server.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}
