//! The grammar of an image's name, such as `ghcr.io/team/tool:1.2@sha256:…`, as registries and Docker read it
//! (<https://pkg.go.dev/github.com/distribution/reference>). A name outside the grammar is refused when the job is
//! submitted, because the machine that got the job could only fail.

/// The longest name without the digest, in characters.
const MAX_NAME: usize = 255;
/// The longest tag, in characters.
const MAX_TAG: usize = 128;

/// The parts of an image's name that is pinned by its digest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PinnedImage<'a> {
    /// The host of the registry, without its port; `None` means the default registry.
    pub(crate) host: Option<&'a str>,
}

impl<'a> PinnedImage<'a> {
    /// Parses a name with a digest; `None` if the name is outside the grammar, or has no digest.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (tagged, digest) = text.split_once("@sha256:")?;
        let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        // A colon after the last slash begins a tag; a colon before begins the port of the host.
        let (name, tag) = match tagged.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (tagged, None),
        };
        let (host_and_port, path) = match name.split_once('/') {
            Some((first, path)) if is_host_and_port(first) => (Some(first), path),
            _ => (None, name),
        };
        let (host, port) = match host_and_port.map(|h| h.split_once(':').map_or((h, None), |(h, p)| (h, Some(p)))) {
            Some((host, port)) => (Some(host), port),
            None => (None, None),
        };
        let is_valid = is_digest
            && name.len() <= MAX_NAME
            && tag.is_none_or(is_tag)
            && host.is_none_or(is_host)
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
            && path.split('/').all(is_path_component);
        is_valid.then_some(Self { host })
    }
}

/// True if the first component of a name is the host of a registry, and not a part of the path.
fn is_host_and_port(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(|label| !label.is_empty() && is_label(label))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(is_word) && tag.len() <= MAX_TAG && bytes.all(|b| is_word(b) || b == b'.' || b == b'-')
}

/// A component is made of small letters and digits, between which one `.`, `_`, `__` or any number of `-` may stand.
fn is_path_component(component: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = component.split(is_alphanumeric).filter(|separator| !separator.is_empty());
    component.starts_with(is_alphanumeric)
        && component.ends_with(is_alphanumeric)
        && separators.into_iter().all(|s| [".", "_", "__"].contains(&s) || s.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host of a pinned image, or an empty text for the default registry. `None` if the name is refused.
    fn parse(name: &str) -> Option<String> {
        let text = format!("{name}@sha256:{}", "0f".repeat(32));
        PinnedImage::parse(&text).map(|image| image.host.unwrap_or_default().to_owned())
    }

    #[test]
    fn names_that_registries_accept_are_parsed() {
        for (name, host) in [
            ("busybox", None),
            ("busybox:1.36", None),
            ("library/busybox", None),
            ("team/sub/tool__x:v1_2-rc.1", None),
            ("a--b/c.d_e", None),
            ("ghcr.io/team/tool", Some("ghcr.io")),
            ("Registry.Example.com:5000/a", Some("Registry.Example.com")),
            ("localhost/a", Some("localhost")),
            ("localhost:5000/a:b", Some("localhost")),
        ] {
            assert_eq!(parse(name).as_deref(), Some(host.unwrap_or_default()), "{name}");
        }
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        let (long, long_tag) = ("a/".repeat(127) + "ab", format!("a:{}", "t".repeat(129)));
        for name in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "-a",
            "a-",
            ".a",
            "a..b",
            "a___b",
            "a_.b",
            "Foo/bar",
            "foo/Bar",
            "FOO",
            "a b",
            "a\n",
            "ä",
            "a:",
            "a:-b",
            "a:b:c",
            "a@b",
            "ghcr.io/",
            "ghcr.io:/a",
            "ghcr.io:0/a",
            "ghcr.io:99999/a",
            "ghcr.io:x/a",
            "-ghcr.io/a",
            "ghcr..io/a",
            "http://ghcr.io/a",
            "user@ghcr.io/a",
            "[::1]:5000/a",
            &long,
            &long_tag,
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_digest_is_64_small_hexadecimal_digits() {
        for digest in ["0".repeat(63), "0".repeat(65), "0F".repeat(32), "g".repeat(64), format!("{}\n", "0".repeat(64))]
        {
            assert_eq!(PinnedImage::parse(&format!("a@sha256:{digest}")), None, "{digest}");
        }
        assert_eq!(PinnedImage::parse("a:1"), None, "no digest");
        assert_eq!(PinnedImage::parse(&format!("a@sha512:{}", "0".repeat(128))), None, "another algorithm");
    }
}
