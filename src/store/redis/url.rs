//! URLs of Redis: a server, the primary that Sentinels name, or a cluster. The forms are those of the client library,
//! and are read more strictly: no part of a URL is ignored.
//!
//! No message shows any part of a URL, for it may hold a password.

use std::fmt;

use fred::error::ErrorKind;
use fred::types::config::{Config, Server, ServerConfig};
use url::Url;

use crate::base::secret::Secret;

/// The forms of a URL, for messages about a whole URL.
pub(crate) const FORMS: &str = "redis://[user:password@]host[:port][/database], \
     redis-sentinel://…?sentinelServiceName=NAME or redis-cluster://…; rediss… for TLS";

/// Why a URL names no Redis, and what to write. Never shows the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// The text is not a URL.
    #[error(
        "is not a URL (percent-encode special characters of a password); write {forms}",
        forms = FORMS
    )]
    Form,
    /// Another scheme.
    #[error("has another scheme; write {forms}", forms = FORMS)]
    Scheme,
    /// No host.
    #[error("has no host; write {forms}", forms = FORMS)]
    Host,
    /// The port is 0.
    #[error("has the port 0; write the port that Redis listens on")]
    Port,
    /// The path is not a database.
    #[error("has a path that is not a database; write the number of one, 0 to 255, or no path")]
    Database,
    /// A database in a cluster, which has none.
    #[error("names a database, which clusters do not have; leave out what follows host and port")]
    ClusterDatabase,
    /// Parameters that a single server does not have.
    #[error(
        "has a query; redis:// and rediss:// take none (percent-encode special characters of a password)"
    )]
    Query,
    /// A fragment.
    #[error("has a fragment; leave out the # (in a password write %23)")]
    Fragment,
    /// A parameter that the scheme does not have.
    #[error("has an unknown parameter; known are {known}")]
    Parameter {
        /// The parameters of the scheme.
        known: &'static str,
    },
    /// A parameter is repeated that may be given once.
    #[error("gives {0} twice; write it once")]
    Twice(&'static str),
    /// A node that is not a host and a port.
    #[error("has a node that is not a host and a port; write node=host:port")]
    Node,
    /// The name of the primary is missing.
    #[error(
        "does not say which primary; write ?sentinelServiceName=NAME, as in `sentinel monitor`"
    )]
    ServiceName,
    /// A user without password, or broken percent-encoding.
    #[error("has incomplete or badly encoded credentials; write user:password@ or :password@")]
    Credentials,
    /// A user of the Sentinels without password.
    #[error("has a sentinelUsername alone; write sentinelPassword too")]
    SentinelCredentials,
    /// The system's certificates could not be read.
    #[error("asks for TLS, which is not possible: {0}")]
    Tls(String),
}

/// A URL of Redis that was read and found right. `Debug` shows no part of it.
#[derive(Clone)]
pub struct RedisUrl {
    text: Secret,
    topology: Topology,
}

impl RedisUrl {
    /// Reads `text`. Touches no network. With `rediss` it reads the system's certificates.
    ///
    /// # Errors
    /// [`RedisUrlError`] says what to write.
    pub fn parse(text: &Secret) -> Result<Self, RedisUrlError> {
        Ok(Self { text: text.clone(), topology: topology(text)? })
    }

    /// The URL without user, password and parameters.
    pub fn shown(&self) -> String {
        // A text that was read as a URL is a URL.
        let Ok(url) = Url::parse(self.text.expose()) else { return self.text.to_string() };
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!(
            "{}://{}{port}{}",
            url.scheme(),
            url.host_str().unwrap_or_default(),
            url.path().trim_end_matches('/')
        )
    }

    /// The servers that the URL names.
    pub(super) fn topology(&self) -> Topology {
        self.topology.clone()
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl PartialEq for RedisUrl {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for RedisUrl {}

/// The servers that a URL names.
#[derive(Clone)]
pub(super) enum Topology {
    /// One server, or the primary that Sentinels name.
    One(Config),
    /// A cluster, by some of its nodes. The rest of the configuration holds for each node.
    Cluster { seeds: Vec<Server>, node: Config },
}

/// The kind of topology that a scheme names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    One,
    Sentinel,
    Cluster,
}

/// The configuration of the client library for `url`.
fn topology(url: &Secret) -> Result<Topology, RedisUrlError> {
    let (parsed, scheme) = checked(url.expose())?;
    if parsed.scheme().starts_with("rediss") {
        // The TLS library needs a provider for the process. The call fails when one is installed already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let config = match scheme {
        Scheme::One => Config::from_url_centralized(url.expose()),
        Scheme::Sentinel => Config::from_url_sentinel(url.expose()),
        Scheme::Cluster => Config::from_url_clustered(url.expose()),
    };
    let config = config.map_err(|error| match error.kind() {
        ErrorKind::Tls => RedisUrlError::Tls(error.details().into()),
        _ => RedisUrlError::Credentials,
    })?;
    Ok(match scheme {
        Scheme::One | Scheme::Sentinel => Topology::One(config),
        Scheme::Cluster => Topology::Cluster { seeds: config.server.hosts(), node: config },
    })
}

/// `node` with the address of one server.
pub(super) fn config_of(node: &Config, server: &Server) -> Config {
    let server = ServerConfig::Centralized { server: server.clone() };
    Config { server, ..node.clone() }
}

fn checked(text: &str) -> Result<(Url, Scheme), RedisUrlError> {
    let url = Url::parse(text).map_err(|_| RedisUrlError::Form)?;
    let scheme = match url.scheme() {
        "redis" | "rediss" => Scheme::One,
        "redis-sentinel" | "rediss-sentinel" => Scheme::Sentinel,
        "redis-cluster" | "rediss-cluster" => Scheme::Cluster,
        _ => return Err(RedisUrlError::Scheme),
    };
    if url.host_str().is_none_or(str::is_empty) {
        return Err(RedisUrlError::Host);
    }
    if url.port() == Some(0) {
        return Err(RedisUrlError::Port);
    }
    if url.fragment().is_some() {
        return Err(RedisUrlError::Fragment);
    }
    let database = url.path().trim_start_matches('/');
    match scheme {
        _ if database.is_empty() => {}
        Scheme::Cluster => return Err(RedisUrlError::ClusterDatabase),
        Scheme::One | Scheme::Sentinel if database.parse::<u8>().is_ok() => {}
        Scheme::One | Scheme::Sentinel => return Err(RedisUrlError::Database),
    }
    if !url.username().is_empty() && url.password().is_none_or(str::is_empty) {
        return Err(RedisUrlError::Credentials);
    }
    match scheme {
        Scheme::One if url.query().is_some() => return Err(RedisUrlError::Query),
        Scheme::One => {}
        Scheme::Cluster => check_parameters(&url, &["node"], "node")?,
        Scheme::Sentinel => check_sentinel(&url)?,
    }
    Ok((url, scheme))
}

fn check_sentinel(url: &Url) -> Result<(), RedisUrlError> {
    const KNOWN: [&str; 4] =
        ["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"];
    check_parameters(
        url,
        &KNOWN,
        "sentinelServiceName, node, sentinelUsername and sentinelPassword",
    )?;
    for name in &KNOWN[1..] {
        if url.query_pairs().filter(|(key, _)| key == name).count() > 1 {
            return Err(RedisUrlError::Twice(name));
        }
    }
    let given = |name| url.query_pairs().any(|(key, value)| key == name && !value.is_empty());
    match () {
        () if !given("sentinelServiceName") => Err(RedisUrlError::ServiceName),
        () if given("sentinelUsername") && !given("sentinelPassword") => {
            Err(RedisUrlError::SentinelCredentials)
        }
        () => Ok(()),
    }
}

fn check_parameters(url: &Url, names: &[&str], known: &'static str) -> Result<(), RedisUrlError> {
    for (name, value) in url.query_pairs() {
        if !names.contains(&name.as_ref()) {
            return Err(RedisUrlError::Parameter { known });
        }
        if name == "node" && !is_host_and_port(&value) {
            return Err(RedisUrlError::Node);
        }
    }
    Ok(())
}

fn is_host_and_port(text: &str) -> bool {
    text.split_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(['@', '/'])
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> (Vec<String>, Config) {
        let (servers, config) = match topology(&Secret::new(url)).unwrap() {
            Topology::One(config) => (config.server.hosts(), config),
            Topology::Cluster { seeds, node } => (seeds, node),
        };
        (servers.iter().map(|server| format!("{}:{}", server.host, server.port)).collect(), config)
    }

    #[test]
    fn urls_of_one_server() {
        let read = |url: &str| {
            let (hosts, config) = hosts(url);
            (hosts.concat(), config.username, config.password, config.database)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("redis://localhost"), ("localhost:6379".into(), None, None, None));
        assert_eq!(read("redis://localhost:7000/"), ("localhost:7000".into(), None, None, None));
        assert_eq!(read("redis://:p%40ss@h/3"), ("h:6379".into(), None, some("p@ss"), Some(3)));
        assert_eq!(
            read("redis://me:pass@[::1]:1"),
            ("[::1]:1".into(), some("me"), some("pass"), None)
        );
    }

    #[test]
    fn urls_of_clusters_and_sentinels() {
        let (nodes, config) = hosts("redis-cluster://me:p%40ss@a?node=b:7001&node=c:7002");
        assert_eq!(nodes, ["b:7001", "c:7002", "a:6379"]);
        assert_eq!(
            (config.username.as_deref(), config.password.as_deref()),
            (Some("me"), Some("p@ss"))
        );
        assert_eq!(hosts("redis-cluster://a:7000/").0, ["a:7000"]);

        let (nodes, config) = hosts(
            "redis-sentinel://:p@a/2?sentinelServiceName=main&node=b:7001&sentinelPassword=s%26",
        );
        assert_eq!(nodes, ["b:7001", "a:26379"]);
        assert_eq!((config.password.as_deref(), config.database), (Some("p"), Some(2)));
        let ServerConfig::Sentinel { service_name, username, password, .. } = config.server else {
            panic!("not a sentinel");
        };
        assert_eq!((service_name.as_str(), username, password), ("main", None, Some("s&".into())));
    }

    #[test]
    fn wrong_urls_say_what_to_write_and_never_what_they_hold() {
        for (url, expected) in [
            ("hunter2", "is not a URL"),
            ("hunter2://host", "has another scheme"),
            ("redis:hunter2", "has no host"),
            ("redis://", "has no host"),
            ("redis:///0", "has no host"),
            ("redis-cluster://", "has no host"),
            ("redis://:hunter2@host:0", "has the port 0"),
            ("redis://:hunter2@host:99999", "is not a URL"),
            ("redis://:hunter2#x@host", "is not a URL"),
            ("redis://h#hunter2", "has a fragment"),
            ("redis://:hunter2@host/300", "0 to 255"),
            ("redis://host/hunter2", "0 to 255"),
            ("redis-sentinel://host/hunter2?sentinelServiceName=x", "0 to 255"),
            ("redis-cluster://:hunter2@host/0", "clusters do not have"),
            ("redis://:hunter2@host?timeout=1", "take none"),
            ("redis://host?node=hunter2:1", "take none"),
            ("redis-cluster://host?hunter2=1", "known are node"),
            ("redis-cluster://host?sentinelServiceName=hunter2", "known are node"),
            ("redis-cluster://host?node=hunter2", "node=host:port"),
            ("redis-cluster://host?node=hunter2:0", "node=host:port"),
            ("redis-cluster://host?node=me:hunter2@b:1", "node=host:port"),
            ("redis-sentinel://:hunter2@host", "sentinelServiceName=NAME"),
            ("redis-sentinel://host?sentinelServiceName=", "sentinelServiceName=NAME"),
            ("redis-sentinel://host?serviceName=hunter2", "known are sentinelServiceName"),
            (
                "redis-sentinel://h?sentinelServiceName=hunter2&sentinelServiceName=b",
                "sentinelServiceName twice",
            ),
            (
                "redis-sentinel://h?sentinelServiceName=a&sentinelUsername=hunter2",
                "sentinelPassword too",
            ),
            ("redis://:hunter2%ff@host", "badly encoded credentials"),
            ("redis-cluster://:hunter2%ff@host", "badly encoded credentials"),
            ("redis-cluster://hunter2@host", "user:password@"),
            ("redis://hunter2@host", "user:password@"),
        ] {
            let error = RedisUrl::parse(&Secret::new(url)).unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn a_shown_url_has_no_password() {
        for (text, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://127.0.0.1:6379/3", "redis://127.0.0.1:6379/3"),
            ("redis://:hunter2@[::1]:6379", "redis://[::1]:6379"),
            ("redis://user:hunter2@host:7000/2", "redis://host:7000/2"),
            ("redis-cluster://:hunter2@a?node=b:1", "redis-cluster://a"),
        ] {
            let url = RedisUrl::parse(&Secret::new(text)).unwrap();
            assert_eq!(url.shown(), shown);
            assert!(!format!("{url:?}").contains("hunter2"));
        }
    }
}
