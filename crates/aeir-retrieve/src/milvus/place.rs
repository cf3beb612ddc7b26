//! Where a collection is: `milvus://host:port/collection`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::MilvusError;
use super::error::Result;

/// The port that Milvus listens on if nothing is said.
const DEFAULT_PORT: u16 = 19_530;
const PLAIN: &str = "milvus://";
const SECURE: &str = "milvuss://";
/// Characters of a name that Milvus takes at most.
const LONGEST_NAME: usize = 255;

/// A server, a database and a collection in it: `milvus://host[:port]/[database/]collection`, or `milvuss://` for a connection with
/// TLS. A token does not belong there: [`MilvusAccess`](super::MilvusAccess) has it.
///
/// # Example
/// ```
/// use aeir_retrieve::MilvusPlace;
/// let place: MilvusPlace = "milvus://vectors.example.org/photos".parse()?;
/// assert_eq!(place.to_string(), "milvus://vectors.example.org:19530/photos");
/// assert!("milvus://vectors.example.org".parse::<MilvusPlace>().is_err());
/// # Ok::<(), aeir_retrieve::MilvusError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MilvusPlace {
    /// Shared, as every error holds it.
    parts: Arc<Parts>,
}

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    secure: bool,
    database: Option<String>,
    collection: String,
}

impl MilvusPlace {
    /// The server's name or address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.parts.host
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.parts.port
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.parts.secure
    }

    /// The database, where one is named.
    #[must_use]
    pub fn database(&self) -> Option<&str> {
        self.parts.database.as_deref()
    }

    /// The collection.
    #[must_use]
    pub fn collection(&self) -> &str {
        &self.parts.collection
    }

    /// `host:port`.
    pub(super) fn server(&self) -> String {
        let Parts { host, port, .. } = &*self.parts;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    pub(super) fn uri(&self) -> String {
        format!("{}://{}", if self.is_secure() { "https" } else { "http" }, self.server())
    }
}

impl fmt::Display for MilvusPlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure() { SECURE } else { PLAIN };
        write!(formatter, "{scheme}{}/", self.server())?;
        if let Some(database) = self.database() {
            write!(formatter, "{database}/")?;
        }
        formatter.write_str(self.collection())
    }
}

impl FromStr for MilvusPlace {
    type Err = MilvusError;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |reason: &str| MilvusError::Place { text: text.to_owned(), reason: reason.to_owned() };
        let secure = text.starts_with(SECURE);
        let rest = text.strip_prefix(SECURE).or_else(|| text.strip_prefix(PLAIN));
        let rest = rest.ok_or_else(|| refuse("it does not begin with `milvus://` or `milvuss://`"))?;
        if rest.contains('@') {
            let reason = "names and passwords don't belong there";
            // The text holds a password: it is not repeated.
            return Err(MilvusError::Place { text: "milvus://..@..".to_owned(), reason: reason.into() });
        }
        let (server, path) = rest.split_once('/').ok_or_else(|| refuse("the collection is missing"))?;
        let (host, port) =
            host_and_port(server).ok_or_else(|| refuse("the host or the port can't be read"))?;
        let (database, collection) = match path.split_once('/') {
            Some((database, collection)) => (Some(database), collection),
            None => (None, path),
        };
        if !is_name(collection) || database.is_some_and(|database| !is_name(database)) {
            let reason = "a collection's name is of letters, digits and underscores, up to 255, and begins with no digit";
            return Err(refuse(reason));
        }
        let (database, collection) = (database.map(str::to_owned), collection.to_owned());
        Ok(Self { parts: Arc::new(Parts { host, port, secure, database, collection }) })
    }
}

fn host_and_port(server: &str) -> Option<(String, u16)> {
    let (host, port) = match server.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
    };
    let of_host = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
    (!host.is_empty() && host.chars().all(of_host) && port != 0).then(|| (host.to_owned(), port))
}

fn is_name(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins && text.len() <= LONGEST_NAME && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written() {
        for (text, written) in [
            ("milvus://localhost:19530/photos", "milvus://localhost:19530/photos"),
            ("milvus://10.0.0.7/photos_2", "milvus://10.0.0.7:19530/photos_2"),
            ("milvuss://a-b.example.org:443/team/photos", "milvuss://a-b.example.org:443/team/photos"),
            ("milvus://[::1]:7/_x", "milvus://[::1]:7/_x"),
        ] {
            let place: MilvusPlace = text.parse().unwrap();
            assert_eq!(place.to_string(), written);
            assert_eq!(written.parse::<MilvusPlace>().unwrap(), place);
        }
        assert_eq!("milvuss://h/d/c".parse::<MilvusPlace>().unwrap().uri(), "https://h:19530");
    }

    #[test]
    fn other_texts_are_refused_and_no_password_is_repeated() {
        for text in [
            "http://h/c",
            "milvus://h",
            "milvus://h/",
            "milvus:///c",
            "milvus://h:0/c",
            "milvus://h:99999/c",
            "milvus://h:x/c",
            "milvus://::1/c",
            "milvus://[::1/c",
            "milvus://h/1c",
            "milvus://h/a-b",
            "milvus://h/a/b/c",
            "milvus://h/c?x=1",
            "milvus://h /c",
        ] {
            assert!(text.parse::<MilvusPlace>().is_err(), "{text}");
        }
        let error = "milvus://root:secret@h/c".parse::<MilvusPlace>().unwrap_err().to_string();
        assert!(error.contains("password") && !error.contains("secret"), "{error}");
    }
}
