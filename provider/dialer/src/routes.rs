//! The networks that this machine reaches without its default route: its own addresses, its local networks, its VPNs.
//! The kernel lists them in `/proc/net`, which is read at each connection, because networks come and go.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A route to a shorter prefix than this counts as a default route: VPNs divide the default route into two halves.
const SHORTEST_PREFIX: u8 = 4;
/// The flag of a route that is in use (`RTF_UP`).
const IS_UP: u32 = 1;

/// The networks that this machine reaches without its default route.
pub(crate) fn local_networks(proc_net: &Path) -> io::Result<Vec<IpNet>> {
    let mut networks: Vec<IpNet> =
        fs::read_to_string(proc_net.join("route"))?.lines().skip(1).filter_map(v4_route).collect();
    // The local addresses of IPv4. A machine without IPv6 has no file of its routes.
    networks.extend(v4_addresses(&fs::read_to_string(proc_net.join("fib_trie"))?));
    match fs::read_to_string(proc_net.join("ipv6_route")) {
        Ok(text) => networks.extend(text.lines().filter_map(v6_route)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    networks.retain(|network| network.prefix_len() >= SHORTEST_PREFIX);
    Ok(networks)
}

/// A line of `/proc/net/route`: interface, destination, gateway, flags, …, mask. Addresses are in the machine's own
/// order of bytes.
fn v4_route(line: &str) -> Option<IpNet> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
    let address = |index: usize| Some(Ipv4Addr::from(number(index)?.to_ne_bytes()));
    if number(3)? & IS_UP == 0 {
        return None;
    }
    Some(IpNet::V4(Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?))
}

/// The machine's own addresses in `/proc/net/fib_trie`. An address stands in the line before the line with its kind:
/// `|-- 192.0.2.7`, then `/32 host LOCAL`.
fn v4_addresses(text: &str) -> impl Iterator<Item = IpNet> {
    let lines = text.lines().map(str::trim);
    lines.clone().zip(lines.skip(1)).filter(|(_, kind)| kind.ends_with("host LOCAL")).filter_map(|(line, _)| {
        let address: Ipv4Addr = line.strip_prefix("|--")?.trim().parse().ok()?;
        Some(IpNet::from(IpAddr::V4(address)))
    })
}

/// A line of `/proc/net/ipv6_route`: destination and length of its prefix, both in hexadecimal digits, and other
/// fields. The machine's own addresses are routes of 128 bits.
fn v6_route(line: &str) -> Option<IpNet> {
    let mut fields = line.split_whitespace();
    let address = Ipv6Addr::from(u128::from_str_radix(fields.next()?, 16).ok()?);
    let length = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some(IpNet::V6(Ipv6Net::new(address, length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        let line = "eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";
        assert_eq!(v4_route(line), Some("192.168.0.0/24".parse().unwrap()));
        let down = "eth0\t0000A8C0\t00000000\t0000\t0\t0\t100\t00FFFFFF\t0\t0\t0";
        assert_eq!(v4_route(down), None);
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 203.0.113.7\n        /32 host LOCAL\n     |-- 203.0.113.255\n        /32 link BROADCAST\n";
        assert_eq!(v4_addresses(trie).collect::<Vec<_>>(), ["203.0.113.7/32".parse().unwrap()]);
        let line = "20010db8000000000000000000000000 40 00000000000000000000000000000000 00 0 0 0 0 0 eth0";
        assert_eq!(v6_route(line), Some("2001:db8::/64".parse().unwrap()));
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
