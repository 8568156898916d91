//! Counts the bytes of an attempt by host.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use gpubnb_events::spec::{HostTraffic, MAX_TRAFFIC_HOSTS, OTHER_HOSTS, Traffic};

/// Most hosts that are counted by name.
const MAX_HOSTS: usize = 1_000;

/// The bytes from and to one host.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes {
    received: u64,
    sent: u64,
}

#[derive(Debug, Default)]
struct Counts {
    hosts: BTreeMap<String, Bytes>,
    refused: u64,
    total: u64,
}

/// Counts the traffic of one attempt.
#[derive(Debug, Default)]
pub(crate) struct TrafficCounter(Mutex<Counts>);

impl TrafficCounter {
    /// A counter that goes on from the traffic that a former run of the worker counted.
    pub(crate) fn continuing(before: Traffic) -> Self {
        let counter = Self::default();
        for host in &before.hosts {
            counter.add(&host.host, host.received, host.sent);
        }
        counter.with(|counts| counts.refused = before.refused);
        counter
    }

    fn with<T>(&self, act: impl FnOnce(&mut Counts) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn add(&self, host: &str, received: u64, sent: u64) {
        self.with(|counts| {
            counts.total = counts.total.saturating_add(received).saturating_add(sent);
            let is_named = counts.hosts.len() < MAX_HOSTS || counts.hosts.contains_key(host);
            let key = if is_named { host } else { OTHER_HOSTS };
            let bytes = counts.hosts.entry(key.to_owned()).or_default();
            bytes.received = bytes.received.saturating_add(received);
            bytes.sent = bytes.sent.saturating_add(sent);
        });
    }

    pub(crate) fn add_refused(&self) {
        self.with(|counts| counts.refused = counts.refused.saturating_add(1));
    }

    /// All bytes in both directions.
    pub(crate) fn total(&self) -> u64 {
        self.with(|counts| counts.total)
    }

    /// The hosts with the most bytes by name, and all others together.
    pub(crate) fn traffic(&self) -> Traffic {
        self.with(|counts| {
            let named = counts.hosts.iter().filter(|(host, _)| *host != OTHER_HOSTS);
            let mut hosts: Vec<_> = named.map(|(host, bytes)| host_traffic(host, *bytes)).collect();
            hosts.sort_by_key(|host| Reverse(host.received.saturating_add(host.sent)));
            let mut others = counts.hosts.get(OTHER_HOSTS).copied();
            if hosts.len() + usize::from(others.is_some()) > MAX_TRAFFIC_HOSTS {
                let rest = others.get_or_insert_default();
                for host in hosts.drain(MAX_TRAFFIC_HOSTS - 1..) {
                    rest.received = rest.received.saturating_add(host.received);
                    rest.sent = rest.sent.saturating_add(host.sent);
                }
            }
            hosts.extend(others.map(|bytes| host_traffic(OTHER_HOSTS, bytes)));
            Traffic { hosts, refused: counts.refused }
        })
    }
}

fn host_traffic(host: &str, bytes: Bytes) -> HostTraffic {
    HostTraffic { host: host.to_owned(), received: bytes.received, sent: bytes.sent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_is_lost_when_there_are_many_hosts_and_when_the_worker_starts_again() {
        let counter = TrafficCounter::default();
        for index in 0..2_000_u64 {
            counter.add(&format!("h{index}.example"), index, 1);
        }
        counter.add_refused();
        let traffic = counter.traffic();
        let sum = |traffic: &Traffic| traffic.hosts.iter().map(|host| host.received + host.sent).sum::<u64>();
        assert_eq!((traffic.hosts.len(), sum(&traffic)), (MAX_TRAFFIC_HOSTS, counter.total()));
        assert_eq!(traffic.hosts.last().unwrap().host, OTHER_HOSTS);
        let resumed = TrafficCounter::continuing(traffic.clone());
        assert_eq!((resumed.traffic(), resumed.total()), (traffic, counter.total()));
    }
}
