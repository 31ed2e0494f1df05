//! Real Redis servers that fail over: a cluster of three primaries with a replica each, and a primary
//! with two replicas behind three Sentinels. It knows nothing of the gateway.

use std::time::Duration;

use super::redis::{PASSWORD, Redis, free_port};
use super::wait_longer_for;

/// How long a cluster may take to agree, or Sentinels to elect; on a busy machine both do it again.
pub const ELECTION: Duration = Duration::from_secs(60);

const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;

/// The password as it stands in a URL.
const ENCODED: &str = "tests%3Aonly%40%2F%25";

/// Three primaries, then a replica of each in the same order; gone when dropped.
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes and waits until they agree and the replicas have caught up.
    pub fn start() -> Self {
        let start = |bus: &u16| {
            Redis::start_with(&format!(
                "requirepass {PASSWORD}
masterauth {PASSWORD}
cluster-enabled yes
cluster-port {bus}
cluster-node-timeout 2000
cluster-require-full-coverage no
cluster-replica-validity-factor 0"
            ))
        };
        let buses: Vec<u16> = (0..2 * PRIMARIES).map(|_| free_port()).collect();
        let cluster = Self { nodes: buses.iter().map(start).collect() };
        cluster.introduce(&buses);
        cluster.wait("the nodes to agree", |nodes| {
            nodes.lines().count() == 2 * PRIMARIES && !nodes.contains("handshake")
        });
        for (primary, replica) in cluster.nodes[..PRIMARIES].iter().zip(&cluster.nodes[PRIMARIES..])
        {
            replica.command(&["CLUSTER", "REPLICATE", &primary.command(&["CLUSTER", "MYID"])]);
        }
        cluster.wait("the replicas to be known", |nodes| {
            nodes.matches("slave").count() == PRIMARIES
                && nodes.matches("connected").count() == 2 * PRIMARIES
        });
        for nth in 0..PRIMARIES {
            wait_longer_for(ELECTION, "the cluster to serve", || {
                let state = cluster.nodes[nth].command(&["CLUSTER", "INFO"]);
                state.contains("cluster_state:ok").then_some(())
            });
            cluster.wait_replicated(nth);
        }
        cluster
    }

    /// Makes a cluster as `redis-cli --cluster create` does, without its pauses.
    fn introduce(&self, buses: &[u16]) {
        for (nth, node) in self.nodes.iter().enumerate() {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(nth + 1).to_string()]);
            if nth < PRIMARIES {
                let bound = |nth: usize| nth * SLOTS / PRIMARIES;
                let (first, last) = (bound(nth).to_string(), (bound(nth + 1) - 1).to_string());
                node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            }
        }
        for (node, bus) in self.nodes.iter().zip(buses).skip(1) {
            let (port, bus) = (node.port().to_string(), bus.to_string());
            self.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
    }

    /// Until every node's view of the cluster `fits`.
    fn wait(&self, what: &str, fits: impl Fn(&str) -> bool) {
        for node in &self.nodes {
            wait_longer_for(ELECTION, what, || {
                fits(&node.command(&["CLUSTER", "NODES"])).then_some(())
            });
        }
    }

    /// Names all primaries.
    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.nodes[..PRIMARIES].iter().map(Redis::port).collect();
        let others = ports[1..].iter().map(|port| format!("node=127.0.0.1:{port}"));
        let others: Vec<_> = others.collect();
        format!("redis-cluster://:{ENCODED}@127.0.0.1:{}?{}", ports[0], others.join("&"))
    }

    /// The URL of a replica as if it were a single server.
    pub fn url_of_a_replica(&self) -> String {
        format!("redis://:{ENCODED}@127.0.0.1:{}", self.replica(0).port())
    }

    /// Which primary has the slot of `key`, as the cluster was made.
    pub fn home(&self, key: &str) -> usize {
        // Any node can tell; those that are replicas are not killed.
        let slot = self.nodes[PRIMARIES].command(&["CLUSTER", "KEYSLOT", key]);
        (slot.parse::<usize>().unwrap() * PRIMARIES + PRIMARIES - 1) / SLOTS
    }

    pub fn primary(&mut self, nth: usize) -> &mut Redis {
        &mut self.nodes[nth]
    }

    pub fn replica(&self, nth: usize) -> &Redis {
        &self.nodes[PRIMARIES + nth]
    }

    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// Until the replica of a primary has all that was written.
    pub fn wait_replicated(&self, nth: usize) {
        wait_replicated(&self.nodes[nth], &[self.replica(nth)]);
    }
}

/// A primary with two replicas, and three Sentinels that call it `main`; gone when dropped.
pub struct Sentinels {
    servers: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Sentinels {
    /// Starts all and waits until the Sentinels know each other and the replicas.
    pub fn start() -> Self {
        let password = format!("requirepass {PASSWORD}");
        let server =
            |line: &str| Redis::start_with(&format!("{password}\nmasterauth {PASSWORD}\n{line}"));
        let primary = server("");
        let replica = || server(&format!("replicaof 127.0.0.1 {}", primary.port()));
        let replicas = [replica(), replica()];
        wait_replicated(&primary, &[&replicas[0], &replicas[1]]);
        let sentinels: Vec<_> =
            (0..3).map(|_| Redis::start_sentinel(primary.port(), &password)).collect();
        for sentinel in &sentinels {
            wait_longer_for(ELECTION, "the Sentinels to know each other", || {
                let known = sentinel.command(&["SENTINEL", "MASTER", "main"]);
                (field(&known, "num-slaves") == Some("2")
                    && field(&known, "num-other-sentinels") == Some("2"))
                .then_some(())
            });
        }
        let servers = std::iter::once(primary).chain(replicas).collect();
        Self { servers, sentinels }
    }

    /// Names all Sentinels, and database 2.
    pub fn url(&self) -> String {
        let ports: Vec<u16> = self.sentinels.iter().map(Redis::port).collect();
        format!(
            "redis-sentinel://:{ENCODED}@127.0.0.1:{}/2?sentinelServiceName=main&sentinelPassword={ENCODED}\
             &node=127.0.0.1:{}&node=127.0.0.1:{}",
            ports[0], ports[1], ports[2]
        )
    }

    /// The primary at the start.
    pub fn first(&mut self) -> &mut Redis {
        &mut self.servers[0]
    }

    /// The replica at the start that is the primary now, if one is.
    pub fn successor(&self) -> Option<&Redis> {
        self.servers[1..].iter().find(|server| is_primary(server))
    }

    pub fn sentinel(&mut self, nth: usize) -> &mut Redis {
        &mut self.sentinels[nth]
    }

    pub fn servers(&self) -> &[Redis] {
        &self.servers
    }

    /// Until both replicas have all that was written.
    pub fn wait_replicated(&self) {
        wait_replicated(&self.servers[0], &[&self.servers[1], &self.servers[2]]);
    }
}

/// Whether the server takes writes; false also when it does not answer.
pub fn is_primary(redis: &Redis) -> bool {
    redis.try_command(&["ROLE"]).is_ok_and(|role| role.starts_with("master"))
}

/// The line after `name`, as `redis-cli` prints maps.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().skip_while(|line| *line != name).nth(1)
}

/// Until the replicas have all that their primary had when this was called.
fn wait_replicated(primary: &Redis, replicas: &[&Redis]) {
    let offset = |redis: &Redis, name: &str| -> Option<u64> {
        let info = redis.command(&["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let written = offset(primary, "master_repl_offset:").unwrap();
    for replica in replicas {
        wait_longer_for(ELECTION, "a replica to catch up", || {
            let info = replica.command(&["INFO", "replication"]);
            let linked = info.contains("master_link_status:up");
            (linked && offset(replica, "slave_repl_offset:")? >= written).then_some(())
        });
    }
}
