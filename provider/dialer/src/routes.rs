//! The networks that this machine reaches without its default route: its own addresses, its local networks, its VPNs.
//! The kernel lists them in `/proc/net`, which is read at each connection, because networks come and go.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A route whose prefix has fewer bits than this counts as a default route: some VPNs divide the default route into the
/// halves `0.0.0.0/1` and `128.0.0.0/1`.
const SHORTEST_PREFIX: u8 = 4;
/// An internet provider gives a customer an IPv6 prefix of at least this many bits, and the customer's networks are
/// parts of the prefix. The whole prefix counts as local, because the owner's other networks are no business of a job
/// either.
const SITE_PREFIX: u8 = 48;

/// The networks that this machine reaches without its default route.
pub(crate) fn local_networks(proc_net: &Path) -> io::Result<Vec<IpNet>> {
    let mut networks = v4_routes(&fs::read_to_string(proc_net.join("fib_trie"))?);
    // A machine without IPv6 has no file of its routes.
    match fs::read_to_string(proc_net.join("ipv6_route")) {
        Ok(text) => networks.extend(text.lines().filter_map(v6_route)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    networks.retain(|network| network.prefix_len() >= SHORTEST_PREFIX);
    Ok(networks)
}

/// The routes of all tables in `/proc/net/fib_trie`. An address stands on a line before the lines with its routes:
/// `|-- 192.0.2.0`, then `/24 link UNICAST`.
fn v4_routes(text: &str) -> Vec<IpNet> {
    let (mut networks, mut address) = (Vec::new(), None);
    for line in text.lines().map(str::trim) {
        if let Some(leaf) = line.strip_prefix("|--") {
            address = leaf.trim().parse::<Ipv4Addr>().ok();
        } else if let (Some(address), Some(route)) = (address, line.strip_prefix('/'))
            && (route.ends_with("UNICAST") || route.ends_with("LOCAL"))
            && let Some(length) = route.split_whitespace().next().and_then(|length| length.parse().ok())
            && let Ok(network) = Ipv4Net::new(address, length)
        {
            networks.push(IpNet::V4(network));
        }
    }
    networks
}

/// A line of `/proc/net/ipv6_route`: destination and length of its prefix, both in hexadecimal digits, and other
/// fields. The machine's own addresses are routes with a prefix of 128 bits.
fn v6_route(line: &str) -> Option<IpNet> {
    let mut fields = line.split_whitespace();
    let address = Ipv6Addr::from(u128::from_str_radix(fields.next()?, 16).ok()?);
    let length = u8::from_str_radix(fields.next()?, 16).ok()?;
    let length = if crate::is_public(IpAddr::V6(address)) { length.min(SITE_PREFIX) } else { length };
    Some(IpNet::V6(Ipv6Net::new(address, length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        let trie = [
            "Id 52:",
            "  |-- 9.9.9.0",
            "     /24 universe UNICAST",
            "Main:",
            "  +-- 0.0.0.0/0 3 0 5",
            "     |-- 0.0.0.0",
            "        /0 universe UNICAST",
            "     |-- 203.0.113.7",
            "        /32 host LOCAL",
            "     |-- 203.0.113.0",
            "        /24 link UNICAST",
            "     |-- 203.0.113.255",
            "        /32 link BROADCAST",
        ];
        let trie = trie.join("\n");
        let expected = ["9.9.9.0/24", "0.0.0.0/0", "203.0.113.7/32", "203.0.113.0/24"];
        assert_eq!(v4_routes(&trie), expected.map(|network| network.parse().unwrap()));
        let line = "2a021234567800010000000000000000 40 00000000000000000000000000000000 00 0 0 0 0 0 eth0";
        assert!(v6_route(line).unwrap().contains(&"2a02:1234:5678:2::1".parse::<IpAddr>().unwrap()));
        let line = "fd000000000000010000000000000000 40 00000000000000000000000000000000 00 0 0 0 0 0 eth0";
        assert_eq!(v6_route(line), Some("fd00:0:0:1::/64".parse().unwrap()));
    }

    #[test]
    fn a_default_route_is_no_local_network_and_the_own_addresses_are() {
        let networks = local_networks(Path::new("/proc/net")).unwrap();
        assert!(networks.iter().all(|network| network.prefix_len() >= SHORTEST_PREFIX), "{networks:?}");
        assert!(networks.iter().any(|network| network.contains(&IpAddr::from([127, 0, 0, 1]))), "{networks:?}");
    }

    #[test]
    fn lists_that_are_missing_are_an_error() {
        assert!(local_networks(Path::new("/nonexistent")).is_err());
    }
}
