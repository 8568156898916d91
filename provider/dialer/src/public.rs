//! Decides whether an address is a public unicast address. The ranges that are not public are in two tables, which
//! follow the registries of the IANA: <https://www.iana.org/assignments/iana-ipv4-special-registry> and
//! <https://www.iana.org/assignments/iana-ipv6-special-registry>.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::{Ipv4Net, Ipv6Net};

/// The IPv4 ranges that are not public.
const NOT_PUBLIC_V4: [&str; 19] = [
    "0.0.0.0/8",        // this network
    "10.0.0.0/8",       // private
    "100.64.0.0/10",    // shared by the customers of a provider (RFC 6598)
    "127.0.0.0/8",      // loopback
    "169.254.0.0/16",   // link-local, which has the metadata service of clouds
    "172.16.0.0/12",    // private
    "192.0.0.0/24",     // protocol assignments
    "192.0.2.0/24",     // documentation
    "192.31.196.0/24",  // AS112
    "192.52.193.0/24",  // automatic multicast tunnels
    "192.88.99.0/24",   // relays of 6to4
    "192.168.0.0/16",   // private
    "192.175.48.0/24",  // AS112
    "198.18.0.0/15",    // benchmarks
    "198.51.100.0/24",  // documentation
    "203.0.113.0/24",   // documentation
    "224.0.0.0/4",      // multicast
    "240.0.0.0/4",      // reserved, and broadcast
    "168.63.129.16/32", // the host's own services in a cloud, at an address that looks public
];

/// The only range of public IPv6 addresses (RFC 4291). Mapped IPv4 addresses, NAT64, private and link-local addresses
/// are outside.
const PUBLIC_V6: &str = "2000::/3";

/// The ranges in [`PUBLIC_V6`] that are not public.
const NOT_PUBLIC_V6: [&str; 6] = [
    "2001::/23",         // protocol assignments, and Teredo, which carries IPv4 addresses
    "2001:db8::/32",     // documentation
    "2002::/16",         // 6to4, which carries IPv4 addresses
    "2620:4f:8000::/48", // AS112
    "3ffe::/16",         // the former test network
    "3fff::/20",         // documentation
];

/// True for a public unicast address: an address of one computer that anybody on the internet may reach.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    static RANGES: LazyLock<Vec<Ipv4Net>> =
        LazyLock::new(|| NOT_PUBLIC_V4.map(|r| r.parse().ok()).into_iter().flatten().collect());
    // A range that could not be read would let its addresses through.
    RANGES.len() == NOT_PUBLIC_V4.len() && !RANGES.iter().any(|range| range.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    static RANGES: LazyLock<Vec<Ipv6Net>> =
        LazyLock::new(|| NOT_PUBLIC_V6.map(|r| r.parse().ok()).into_iter().flatten().collect());
    let is_unicast = PUBLIC_V6.parse::<Ipv6Net>().is_ok_and(|range| range.contains(&address));
    is_unicast && RANGES.len() == NOT_PUBLIC_V6.len() && !RANGES.iter().any(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_are_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::1",
            "2001:4860:4860::8888",
            "2400:cb00::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn every_other_address_is_not_public() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }
}
