//! The slots of a cluster and the nodes that hold them. Any node can tell, and is asked again when nodes fail, move
//! slots or send calls to another node.
//!
//! Every primary is a [`Node`] with a connection and a breaker of its own, so that a primary that is away stops only
//! the calls about its own slots. This file knows slots, not the values in them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Server};
use fred::types::{ClusterHash, CustomCommand, Key, Value};
use fred::util::redis_keyslot;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::errors::{moved_to, timed_out};
use super::node::{Node, Signals, backoff, connect, reason};
use super::url::config_of;

/// The least pause between two looks at the slots, however many calls ask for a look.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// The longest time between two looks at the slots while no call fails.
const MOST_PAUSE: Duration = Duration::from_secs(10);

/// How many names are tried to find a key for each node; enough for a node of a single slot.
const NAMES: u32 = 1 << 18;

/// A cluster of Redis.
pub(super) struct Cluster {
    slots: watch::Receiver<Slots>,
    /// Asks for a look at the slots.
    doubt: Arc<Notify>,
    /// Taken by the task that keeps the slots.
    keeper: Mutex<Option<Keeper>>,
}

/// The knowledge of the slots.
#[derive(Clone)]
enum Slots {
    /// The first attempt to learn them is under way.
    Pending,
    /// No attempt to learn them has succeeded; why the last one failed.
    Unknown(Arc<str>),
    /// The answer of a node.
    Known(Arc<SlotMap>),
}

/// The primaries and their slots.
struct SlotMap {
    /// By their first slot; no two overlap.
    ranges: Vec<Range>,
    /// By their first slot.
    members: Vec<Member>,
}

/// Slots in a row that one primary holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    server: Server,
}

struct Member {
    server: Server,
    first_slot: u16,
    /// A hash tag of this node: a key with the tag appended to its name belongs to this node.
    tag: Option<String>,
    node: Arc<Node>,
}

/// The state of the task that keeps the slots.
struct Keeper {
    seeds: Vec<Server>,
    config: Config,
    slots: watch::Sender<Slots>,
    doubt: Arc<Notify>,
    signals: Arc<Signals>,
}

/// The slot of a key.
pub(super) fn slot_of(key: &Key) -> u16 {
    redis_keyslot(key.as_bytes())
}

impl Cluster {
    /// The cluster that `seeds` belong to; `config` holds for each node but its address. Nothing is
    /// connected before [`Cluster::start`].
    pub(super) fn new(seeds: Vec<Server>, config: Config, signals: Arc<Signals>) -> Self {
        let (keeper, slots) = watch::channel(Slots::Pending);
        let doubt = Arc::new(Notify::new());
        let keeper = Keeper { seeds, config, slots: keeper, doubt: Arc::clone(&doubt), signals };
        Self { slots, doubt, keeper: Mutex::new(Some(keeper)) }
    }

    /// Spawns the task that keeps the slots, on the present runtime; it ends with the cluster.
    #[expect(
        clippy::disallowed_methods,
        reason = "the keeper survives every error and ends with the cluster"
    )]
    pub(super) fn start(&self, connect_timeout: Duration) {
        if let Some(keeper) = self.keeper.lock().take() {
            tokio::spawn(keeper.run(connect_timeout));
        }
    }

    /// Asks for a look at the slots, because a call found them wrong.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Whether any node can serve.
    pub(super) fn available(&self) -> bool {
        self.known().is_some_and(|map| map.members.iter().any(|member| member.node.available()))
    }

    /// How many nodes have failed repeatedly, or refused writes repeatedly.
    pub(super) fn open_breakers(&self) -> usize {
        let is_open = |member: &&Member| member.node.is_open() || member.node.refuses_writes();
        let open = |map: &SlotMap| map.members.iter().filter(is_open).count();
        self.known().map_or(0, |map| open(&map))
    }

    /// The node that holds `slot`; waits while nothing is known yet.
    pub(super) async fn node_of(&self, slot: u16) -> Result<Arc<Node>, Error> {
        let mut slots = self.slots.clone();
        loop {
            match &*slots.borrow_and_update() {
                Slots::Known(map) => {
                    return map.node_of(slot).ok_or_else(|| {
                        self.doubt();
                        Error::new(ErrorKind::Cluster, format!("no node holds the slot {slot}"))
                    });
                }
                Slots::Unknown(reason) => {
                    return Err(Error::new(ErrorKind::Cluster, reason.to_string()));
                }
                Slots::Pending => {}
            }
            changed(&mut slots).await?;
        }
    }

    /// The node that holds `slot` now, if `error` names one.
    ///
    /// Waits for a look at the slots where the node is not known yet.
    pub(super) async fn moved(&self, slot: u16, error: &Error) -> Option<Result<Arc<Node>, Error>> {
        let target = moved_to(error)?;
        let mut slots = self.slots.clone();
        let known = match &*slots.borrow_and_update() {
            Slots::Known(map) => map.node_at(target),
            Slots::Pending | Slots::Unknown(_) => None,
        };
        self.doubt();
        if let Some(node) = known {
            return Some(Ok(node));
        }
        if let Err(error) = changed(&mut slots).await {
            return Some(Err(error));
        }
        Some(self.node_of(slot).await)
    }

    /// A key called `name` in each node, as far as nodes are known.
    pub(super) fn keys(&self, name: &str) -> Vec<Key> {
        let key = |member: &Member| {
            let tag = member.tag.as_ref()?;
            Some(format!("{name}:{tag}").into())
        };
        self.known().map_or_else(Vec::new, |map| map.members.iter().filter_map(key).collect())
    }

    /// The first slot of the node that comes after the one whose first slot is `slot`.
    pub(super) fn node_after(&self, slot: u16) -> Option<u16> {
        let map = self.known()?;
        map.members.iter().map(|member| member.first_slot).find(|first| *first > slot)
    }

    fn known(&self) -> Option<Arc<SlotMap>> {
        self.slots.borrow().known()
    }
}

async fn changed(slots: &mut watch::Receiver<Slots>) -> Result<(), Error> {
    let ended = |_| Error::new(ErrorKind::IO, "the runtime of the connection has ended");
    slots.changed().await.map_err(ended)
}

impl Slots {
    fn known(&self) -> Option<Arc<SlotMap>> {
        match self {
            Self::Known(map) => Some(Arc::clone(map)),
            Self::Pending | Self::Unknown(_) => None,
        }
    }
}

impl SlotMap {
    fn node_of(&self, slot: u16) -> Option<Arc<Node>> {
        let range = self.ranges.get(self.ranges.partition_point(|range| range.last < slot))?;
        let member = self.members.iter().find(|member| member.server == range.server)?;
        (range.first <= slot).then(|| Arc::clone(&member.node))
    }

    fn node_at(&self, address: &str) -> Option<Arc<Node>> {
        let (host, port) = address.rsplit_once(':')?;
        let host = bracketed(host);
        let at = |member: &&Member| {
            member.server.host == host.as_str() && port.parse() == Ok(member.server.port)
        };
        self.members.iter().find(at).map(|member| Arc::clone(&member.node))
    }
}

impl Keeper {
    /// Learns the slots again and again, until the cluster is dropped.
    async fn run(self, connect_timeout: Duration) {
        let mut failures: u32 = 0;
        loop {
            let found = tokio::select! {
                () = self.slots.closed() => return,
                found = self.find(connect_timeout) => found,
            };
            let pause = match found {
                Ok(ranges) => {
                    failures = 0;
                    self.publish(ranges, connect_timeout);
                    LEAST_PAUSE
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    self.fail_waiting(failures, &reason(&error));
                    backoff(failures).max(LEAST_PAUSE)
                }
            };
            tokio::select! {
                () = self.slots.closed() => return,
                () = sleep(pause) => {}
            }
            if failures == 0 {
                tokio::select! {
                    () = self.slots.closed() => return,
                    () = self.doubt.notified() => {}
                    () = sleep(MOST_PAUSE) => {}
                }
            }
        }
    }

    /// Asks the nodes that serve, in any order, and when none answers, the nodes of the URL.
    async fn find(&self, patience: Duration) -> Result<Vec<Range>, Error> {
        let known = self.slots.borrow().known();
        let mut members: Vec<&Member> = known.iter().flat_map(|map| &map.members).collect();
        fastrand::shuffle(&mut members);
        for member in members.into_iter().filter(|member| !member.node.is_open()) {
            let Some(session) = member.node.session() else { continue };
            if let Ok(ranges) = ask(&session.client, &member.server, patience).await {
                return Ok(ranges);
            }
        }
        let mut seeds = self.seeds.clone();
        fastrand::shuffle(&mut seeds);
        let mut failed = Error::new(ErrorKind::Cluster, "no node is known");
        for seed in &seeds {
            let found = match connect(&config_of(&self.config, seed), patience, None).await {
                // The connection lives as long as its driver.
                Ok((session, _driver)) => ask(&session.client, seed, patience).await,
                Err(error) => Err(error),
            };
            match found {
                Ok(ranges) => return Ok(ranges),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn publish(&self, ranges: Vec<Range>, connect_timeout: Duration) {
        let known = self.slots.borrow().known();
        if let Some(known) = &known
            && known.ranges == ranges
        {
            // Calls that wait for a look at the slots go on.
            self.slots.send_replace(Slots::Known(Arc::clone(known)));
            return;
        }
        let map = self.map(ranges, known.as_deref(), connect_timeout);
        let names = map.members.iter().fold(String::new(), |mut names, member| {
            let _ = write!(names, " {}", member.server);
            names
        });
        log::info!("the primaries of the redis cluster:{names}");
        self.slots.send_replace(Slots::Known(Arc::new(map)));
    }

    /// Nodes that stay keep their connections; new nodes start to connect.
    fn map(
        &self,
        ranges: Vec<Range>,
        before: Option<&SlotMap>,
        connect_timeout: Duration,
    ) -> SlotMap {
        let mut members: Vec<Member> = Vec::new();
        for Range { first, server, .. } in &ranges {
            if members.iter().any(|member| member.server == *server) {
                continue;
            }
            let known = before.into_iter().flat_map(|map| &map.members);
            let known = known.into_iter().find(|member| member.server == *server);
            let node = known.map_or_else(
                || self.node(server, connect_timeout),
                |member| Arc::clone(&member.node),
            );
            members.push(Member { server: server.clone(), first_slot: *first, tag: None, node });
        }
        let mut map = SlotMap { ranges, members };
        map.find_tags();
        map
    }

    fn node(&self, server: &Server, connect_timeout: Duration) -> Arc<Node> {
        let config = config_of(&self.config, server);
        let node = Node::new(format!("redis node {server}"), config, Arc::clone(&self.signals));
        node.start(connect_timeout);
        Arc::new(node)
    }

    /// Ends the wait of calls with an error, and logs the first failure.
    fn fail_waiting(&self, failures: u32, reason: &str) {
        if failures == 1 {
            log::warn!("no node of the redis cluster says who holds its slots: {reason}");
        }
        self.slots.send_if_modified(|slots| {
            let unknown = slots.known().is_none();
            if unknown {
                *slots = Slots::Unknown(reason.into());
            }
            unknown
        });
    }
}

impl SlotMap {
    /// Finds the first number for each member whose slot, as a hash tag, is the member's.
    fn find_tags(&mut self) {
        let mut missing = self.members.len();
        for number in (0..NAMES).map(|number| number.to_string()) {
            if missing == 0 {
                return;
            }
            let slot = redis_keyslot(number.as_bytes());
            let at = self.ranges.partition_point(|range| range.last < slot);
            let Some(range) = self.ranges.get(at).filter(|range| range.first <= slot) else {
                continue;
            };
            let member = self.members.iter_mut().find(|member| member.server == range.server);
            if let Some(member) = member.filter(|member| member.tag.is_none()) {
                member.tag = Some(format!("{{{number}}}"));
                missing -= 1;
            }
        }
    }
}

/// The slots, as a node sees them.
async fn ask(client: &Client, asked: &Server, patience: Duration) -> Result<Vec<Range>, Error> {
    let command = CustomCommand::new_static("CLUSTER", ClusterHash::FirstKey, false);
    let answer = client.custom::<Value, _>(command, vec!["SLOTS"]);
    let answer = timeout(patience, answer).await.unwrap_or_else(|_| Err(timed_out()))?;
    let unreadable = || Error::new(ErrorKind::Protocol, "unexpected answer to CLUSTER SLOTS");
    let mut ranges = ranges(answer, asked).ok_or_else(unreadable)?;
    ranges.sort_unstable_by_key(|range| range.first);
    match ranges.is_empty() {
        // A node that has left, or has not joined.
        true => Err(Error::new(ErrorKind::Cluster, "it knows of no slots")),
        false => Ok(ranges),
    }
}

/// Reads `[[first, last, [host, port, …], replica…], …]`.
fn ranges(answer: Value, asked: &Server) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    let range = |range: Value| {
        let Value::Array(range) = range else { return None };
        let [first, last, primary, ..] = range.as_slice() else { return None };
        let Value::Array(primary) = primary else { return None };
        let [host, port, ..] = primary.as_slice() else { return None };
        // A node that does not know its own name is reached by the name that the question went to.
        let host = host.as_str().filter(|host| !host.is_empty() && host != "?");
        let host = host.map_or_else(|| asked.host.to_string(), |host| bracketed(&host));
        let slot = |value: &Value| value.as_u64().and_then(|slot| u16::try_from(slot).ok());
        let server = Server::new(host, slot(port)?);
        Some(Range { first: slot(first)?, last: slot(last)?, server })
    };
    ranges.into_iter().map(range).collect()
}

/// An IPv6 address as it stands before a port.
fn bracketed(host: &str) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(values: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(values.into_iter().collect())
    }

    fn slots(first: i64, last: i64, host: Value, port: i64) -> Value {
        array([first.into(), last.into(), array([host, port.into(), "id".into()])])
    }

    fn map(answer: Value) -> SlotMap {
        let asked = Server::new("asked", 1);
        let (slots, _) = watch::channel(Slots::Pending);
        let keeper = Keeper {
            seeds: Vec::new(),
            config: Config::default(),
            slots,
            doubt: Arc::default(),
            signals: Arc::default(),
        };
        let mut ranges = ranges(answer, &asked).unwrap();
        ranges.sort_unstable_by_key(|range| range.first);
        keeper.map(ranges, None, Duration::from_secs(1))
    }

    #[tokio::test]
    async fn slots_have_nodes_and_nodes_have_tags() {
        let map = map(array([
            slots(100, 16_382, "::1".into(), 7_001),
            slots(0, 98, "a".into(), 7_000),
            slots(16_383, 16_383, Value::Null, 7_002),
        ]));
        let at = |address: &str| map.node_at(address).unwrap();
        for (slot, address) in [
            (0, "a:7000"),
            (98, "a:7000"),
            (100, "::1:7001"),
            (16_382, "[::1]:7001"),
            (16_383, "asked:7002"),
        ] {
            assert!(Arc::ptr_eq(&map.node_of(slot).unwrap(), &at(address)), "{slot}");
        }
        assert!(map.node_of(99).is_none(), "no node holds it");
        assert!(map.node_at("a:7001").is_none() && map.node_at("a").is_none());
        for member in &map.members {
            let key: Key = format!("name:{}", member.tag.as_ref().unwrap()).into();
            assert!(Arc::ptr_eq(&map.node_of(slot_of(&key)).unwrap(), &member.node), "{key:?}");
        }
    }

    #[test]
    fn an_answer_of_another_shape_is_none() {
        let asked = Server::new("asked", 1);
        for answer in [
            Value::Null,
            "x".into(),
            array([Value::Null]),
            array([array([1.into()])]),
            array([array([1.into(), 2.into(), array([])])]),
            array([slots(0, 1, "a".into(), 70_000)]),
            array([slots(-1, 1, "a".into(), 7_000)]),
        ] {
            assert_eq!(ranges(answer.clone(), &asked), None, "{answer:?}");
        }
    }
}
