//! A Milvus server of the test's own: `milvus-lite`, which ends with the test.

use std::ffi::OsString;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aeir_retrieve::MilvusPlace;
use tempfile::TempDir;

const VARIABLE: &str = "AEIR_MILVUS_LITE";
/// Python and its packages take seconds to start, many on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// The same server behind a check of tokens, and behind TLS where a key and a certificate are named: `milvus-lite` has neither.
const GUARDED: &str = r#"
import base64, sys
from concurrent import futures
import grpc
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus.grpc_gen import milvus_pb2_grpc

folder, port, token, *pair = sys.argv[1:]
expected = base64.b64encode(token.encode()).decode()

class Guard(grpc.ServerInterceptor):
    def intercept_service(self, go_on, details):
        if dict(details.invocation_metadata).get("authorization") == expected:
            return go_on(details)
        def refuse(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check api key is correct")
        return grpc.unary_unary_rpc_method_handler(refuse)

server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[Guard()])
milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(MilvusLite(folder)), server)
if pair:
    key, certificate = (open(name, "rb").read() for name in pair)
    server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)]))
else:
    server.add_insecure_port(f"127.0.0.1:{port}")
server.start()
server.wait_for_termination()
"#;

/// A certificate for this machine's own address that nobody else has signed.
const OWN_CERTIFICATE: &str = "[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = localhost
[extensions]
basicConstraints = CA:FALSE
subjectAltName = DNS:localhost, IP:127.0.0.1
";

/// The program that the environment names.
pub(crate) fn program() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|program| !program.is_empty())
}

pub(crate) struct LiteServer {
    child: Child,
    port: u16,
    _data: TempDir,
}

impl LiteServer {
    /// None, and a word why, where the environment names no program.
    #[allow(clippy::print_stdout, reason = "a skipped test says why")]
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = program() else {
            println!(
                "skipped: {VARIABLE} is unset; it names the program milvus-lite (pip install milvus-lite==3.2.2 pymilvus)"
            );
            return None;
        };
        let data = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(program);
        command
            .args(["server", "--host", "127.0.0.1", "--port", &port.to_string(), "--data-dir"])
            .arg(data.path());
        Some(Self::of(command, port, data))
    }

    /// Another one, that wants a token.
    pub(crate) fn guarded(&self, token: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(python());
        command.args(["-c", GUARDED]).arg(data.path()).args([&port.to_string(), token]);
        Self::of(command, port, data)
    }

    /// One that wants a token and speaks TLS, with a certificate that goes into `certificate.pem` of a folder. None, and a word why,
    /// where there is no `openssl` to make it.
    #[allow(dead_code, reason = "the command's tests need it: they can set what a process trusts")]
    #[allow(clippy::print_stdout, reason = "a skipped test says why")]
    pub(crate) fn secure(&self, token: &str, folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("request.cnf"), OWN_CERTIFICATE).unwrap();
        let flags = "req -x509 -newkey rsa:2048 -nodes -days 2 -config request.cnf -keyout key.pem -out certificate.pem";
        let made = Command::new("openssl").args(flags.split(' ')).current_dir(folder).output();
        if !made.is_ok_and(|made| made.status.success()) {
            println!("skipped: no openssl to make a certificate");
            return None;
        }
        let (data, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new(python());
        command.args(["-c", GUARDED]).arg(data.path()).args([&port.to_string(), token]);
        command.args([folder.join("key.pem"), folder.join("certificate.pem")]);
        Some(Self::of(command, port, data))
    }

    fn of(mut command: Command, port: u16, data: TempDir) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Self { child, port, _data: data };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(server.child.try_wait().unwrap().is_none(), "the server ended: {command:?}");
            assert!(start.elapsed() < PATIENCE, "the server does not listen: {command:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn place(&self, collection: &str) -> MilvusPlace {
        format!("milvus://127.0.0.1:{}/{collection}", self.port).parse().unwrap()
    }

    /// Runs a line or two with the other client, where `URI` is this server's.
    pub(crate) fn python(&self, script: &str) {
        let script = format!("URI = 'http://127.0.0.1:{}'\n{script}", self.port);
        let output = Command::new(python()).args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for LiteServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python beside the program.
fn python() -> PathBuf {
    PathBuf::from(program().unwrap()).with_file_name("python")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
