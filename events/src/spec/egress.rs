//! The hosts of the internet that a job may reach, and those that the owner of a machine lets jobs reach. A job never
//! has a network: it reaches hosts through the proxy of its machine's worker (docs/jobs.md, "The internet").

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// The most patterns in a list.
pub const MAX_HOST_PATTERNS: usize = 64;
/// Longest name of a host, in bytes (RFC 1035).
pub const MAX_HOST: usize = 253;
/// The pattern for every public host.
const ANY: &str = "*";

/// A list of hosts, each by a pattern. No pattern: no host.
///
/// `pypi.org` is the one host of that name. `*.pypi.org` is that host and every host below it. `*` is every public
/// host. An address, such as `9.9.9.9`, is a host, too. Example: `["pypi.org", "*.pythonhosted.org"]`.
///
/// In JSON, `false` is no host and `true` every public host, as in the events before there were lists; anything else is
/// a list. A text is read, too, as [`FromStr`] reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(into = "EgressForm", try_from = "EgressForm")]
#[schema(value_type = EgressForm)]
pub struct Egress(Vec<String>);

/// The forms of an [`Egress`] in JSON.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum EgressForm {
    /// `true`: every public host; `false`: none.
    IsAllowed(bool),
    /// Patterns with commas or spaces between them.
    Text(String),
    /// Patterns.
    Patterns(Vec<String>),
}

impl From<Egress> for EgressForm {
    fn from(egress: Egress) -> Self {
        match egress.0.as_slice() {
            [] => Self::IsAllowed(false),
            [only] if only == ANY => Self::IsAllowed(true),
            _ => Self::Patterns(egress.0),
        }
    }
}

impl TryFrom<EgressForm> for Egress {
    type Error = InvalidPattern;

    fn try_from(form: EgressForm) -> Result<Self, InvalidPattern> {
        match form {
            EgressForm::IsAllowed(true) => Ok(Self::any()),
            EgressForm::IsAllowed(false) => Ok(Self::default()),
            EgressForm::Text(text) => text.parse(),
            // A list is not checked here: the services call `is_valid` for each new job and offer.
            EgressForm::Patterns(patterns) => Ok(Self(patterns)),
        }
    }
}

impl Egress {
    /// Every public host.
    pub fn any() -> Self {
        Self(vec![ANY.to_owned()])
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.0
    }

    /// True if the list has no host.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// True if the list has this host: a name, or an address without brackets.
    pub fn allows(&self, host: &str) -> bool {
        let host = canonical_host(host);
        self.0.iter().any(|pattern| covers(pattern, &host))
    }

    /// True if this list has every host of the list `wanted`. Each pattern of `wanted` must be covered by one pattern
    /// of this list: `*.pypi.org` covers `files.pypi.org` and `*.files.pypi.org`.
    pub fn allows_all(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|wanted| self.0.iter().any(|pattern| covers(pattern, wanted)))
    }

    /// True if there are not too many patterns, and each is well formed.
    pub fn is_valid(&self) -> bool {
        self.0.len() <= MAX_HOST_PATTERNS && self.0.iter().all(|pattern| is_pattern(pattern))
    }
}

/// True if a pattern has every host of `wanted`, which is another pattern or a host.
fn covers(pattern: &str, wanted: &str) -> bool {
    match pattern.strip_prefix("*.") {
        _ if pattern == ANY || pattern == wanted => true,
        // `*.pypi.org` has pypi.org, files.pypi.org and *.files.pypi.org.
        Some(domain) => {
            let name = wanted.strip_prefix("*.").unwrap_or(wanted);
            let is_below = name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
            wanted.parse::<IpAddr>().is_err() && (name == domain || is_below)
        }
        None => false,
    }
}

/// The one way to write a host: small letters, and no dot at the end. `PyPI.org.` is `pypi.org`. The text `*.` keeps
/// its dot, because it must not become `*`, the pattern for every host.
pub fn canonical_host(host: &str) -> String {
    host.strip_suffix('.').filter(|name| *name != ANY).unwrap_or(host).to_ascii_lowercase()
}

fn is_pattern(pattern: &str) -> bool {
    let domain = pattern.strip_prefix("*.");
    pattern == ANY
        || (pattern.parse::<IpAddr>().is_ok() && domain.is_none())
        || (is_host_name(domain.unwrap_or(pattern)) && canonical_host(pattern) == pattern)
}

/// True for a name by the rules of host names (RFC 1123). An underscore is allowed, because hosts with one exist. The
/// last label is no number, because a resolver would read `127.1` as an address.
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= MAX_HOST && name.split('.').all(is_label) && last.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Patterns with commas or spaces between them; `any` is every host, `none` no host.
impl FromStr for Egress {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let words = text.split([',', ' ', '\n', '\r', '\t']).filter(|word| !word.is_empty());
        let mut patterns: Vec<String> = words
            .filter(|word| !["none", "false"].contains(word))
            .map(|word| if ["any", "true", "on"].contains(&word) { ANY.to_owned() } else { canonical_host(word) })
            .collect();
        patterns.sort();
        patterns.dedup();
        match patterns.iter().find(|pattern| !is_pattern(pattern)) {
            Some(pattern) => Err(InvalidPattern(pattern.clone())),
            None => Ok(Self(patterns)),
        }
    }
}

/// A word that is no pattern of hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a host: write a name such as pypi.org, *.pypi.org for all names below it too, or * for every host"
)]
pub struct InvalidPattern(String);

/// For people: `none`, `any public host`, or the patterns.
impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("none"),
            patterns if patterns.iter().any(|pattern| pattern == ANY) => f.write_str("any public host"),
            patterns => f.write_str(&patterns.join(", ")),
        }
    }
}

/// The bytes that an attempt exchanged with one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostTraffic {
    /// The host as the job named it; [`OTHER_HOSTS`] for the hosts that are not counted by name.
    pub host: String,
    /// Bytes from the host to the job.
    pub received: u64,
    /// Bytes from the job to the host.
    pub sent: u64,
}

/// The name under which a [`Traffic`] adds up all hosts that are not among those with the most bytes.
pub const OTHER_HOSTS: &str = "*";
/// The most hosts in a [`Traffic`], with [`OTHER_HOSTS`].
pub const MAX_TRAFFIC_HOSTS: usize = 32;

/// The traffic of an attempt with the internet, as its worker counted it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Traffic {
    /// The hosts with the most bytes, and [`OTHER_HOSTS`] if there are more: at most [`MAX_TRAFFIC_HOSTS`] in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostTraffic>,
    /// Connections that the worker refused.
    #[serde(default)]
    pub refused: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Egress {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_allows_its_hosts_and_no_other() {
        for (patterns, host, is_allowed) in [
            ("pypi.org", "pypi.org", true),
            ("pypi.org", "PyPI.ORG.", true),
            ("pypi.org", "files.pypi.org", false),
            ("pypi.org", "evil-pypi.org", false),
            ("pypi.org", "pypi.org.evil.example", false),
            ("*.pypi.org", "pypi.org", true),
            ("*.pypi.org", "a.b.pypi.org", true),
            ("*.pypi.org", "evilpypi.org", false),
            ("*.pypi.org", "pypi.org.evil.example", false),
            ("any", "anything.example", true),
            ("any", "9.9.9.9", true),
            ("9.9.9.9", "9.9.9.9", true),
            ("9.9.9.9", "9.9.9.90", false),
            ("none", "pypi.org", false),
            ("", "pypi.org", false),
        ] {
            assert_eq!(list(patterns).allows(host), is_allowed, "{patterns} {host}");
        }
    }

    #[test]
    fn an_owner_allows_a_job_whose_every_host_the_owner_allows() {
        for (owner, job, is_allowed) in [
            ("any", "any", true),
            ("any", "*.pypi.org,github.com", true),
            ("*.pypi.org", "pypi.org,*.files.pypi.org", true),
            ("*.pypi.org", "*.org", false),
            ("*.pypi.org", "any", false),
            ("pypi.org", "*.pypi.org", false),
            ("pypi.org", "none", true),
            ("none", "pypi.org", false),
            ("none", "none", true),
        ] {
            assert_eq!(list(owner).allows_all(&list(job)), is_allowed, "{owner} {job}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_by_name() {
        for word in
            ["*.", "*.*", "a.*.org", "*pypi.org", "http://pypi.org", "pypi.org:443", "-a.org", "a..org", "pypi.org/x"]
        {
            assert!(word.parse::<Egress>().unwrap_err().to_string().contains(word), "{word}");
        }
        for word in ["ü.org", "127.1", "0x7f.0.0.1", "*.1.2.3.4", &"a".repeat(64), &"a.".repeat(130)] {
            assert!(word.parse::<Egress>().is_err(), "{word}");
        }
        assert!(!Egress(vec!["PyPI.org".to_owned()]).is_valid(), "small letters only");
        assert!(!Egress(vec!["a".to_owned(); MAX_HOST_PATTERNS + 1]).is_valid());
    }

    #[test]
    fn older_events_and_forms_are_read() {
        for (json, text) in [
            ("true", "any"),
            ("false", "none"),
            (r#"["pypi.org"]"#, "pypi.org"),
            (r#""pypi.org, github.com""#, "github.com pypi.org"),
        ] {
            assert_eq!(serde_json::from_str::<Egress>(json).unwrap(), list(text), "{json}");
        }
        for (text, json) in [("none", "false"), ("any", "true"), ("pypi.org", r#"["pypi.org"]"#)] {
            assert_eq!(serde_json::to_string(&list(text)).unwrap(), json);
        }
    }
}
