//! The grammar of an image's name, such as `ghcr.io/team/tool:1.2@sha256:…`, as registries and Docker read it
//! (<https://pkg.go.dev/github.com/distribution/reference>). A name outside the grammar is refused when the job is
//! submitted, because the machine that got the job could only fail.

/// The registry of a name that names none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The longest name without the tag and the digest, in characters.
const MAX_NAME: usize = 255;
/// The longest tag, in characters.
const MAX_TAG: usize = 128;

/// The parts of an image's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageName<'a> {
    /// The host of the registry, and its port if the name has one: `ghcr.io`, `registry.example.org:5000`. `None` means
    /// [`DEFAULT_REGISTRY`].
    pub registry: Option<&'a str>,
    /// The repository: `team/tool`.
    pub repository: &'a str,
    /// The tag.
    pub tag: Option<&'a str>,
    /// The digest of the image's manifest: 64 small hexadecimal digits of SHA-256.
    pub digest: Option<&'a str>,
}

impl<'a> ImageName<'a> {
    /// Parses a name; `None` if the name is outside the grammar.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (tagged, digest) = match text.split_once('@') {
            Some((tagged, digest)) => (tagged, Some(digest.strip_prefix("sha256:")?)),
            None => (text, None),
        };
        // A colon after the last slash begins a tag; a colon before begins the port of the host.
        let (name, tag) = match tagged.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (tagged, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, repository)) if is_registry(first) => (Some(first), repository),
            _ => (None, name),
        };
        let is_valid = name.len() <= MAX_NAME
            && digest.is_none_or(is_digest)
            && tag.is_none_or(is_tag)
            && registry.is_none_or(is_host_and_port)
            && repository.split('/').all(is_path_component);
        is_valid.then_some(Self { registry, repository, tag, digest })
    }

    /// The registry, [`DEFAULT_REGISTRY`] if the name has none.
    pub fn registry(&self) -> &'a str {
        self.registry.unwrap_or(DEFAULT_REGISTRY)
    }

    /// The host of the registry without its port.
    pub fn host(&self) -> &'a str {
        let registry = self.registry();
        registry.split_once(':').map_or(registry, |(host, _)| host)
    }
}

/// The registries whose images the worker takes unless its owner says otherwise.
pub const WELL_KNOWN_REGISTRIES: [&str; 8] = [
    DEFAULT_REGISTRY,
    "ghcr.io",
    "quay.io",
    "nvcr.io",
    "registry.gitlab.com",
    "public.ecr.aws",
    "mcr.microsoft.com",
    "gcr.io",
];

/// True if an image is in one of the registries. Registries are written as in the names of images: `ghcr.io`,
/// `localhost:5000`.
pub fn is_in_registries(image: &str, registries: &[String]) -> bool {
    let name = ImageName::parse(image);
    name.is_some_and(|name| registries.iter().any(|listed| listed.eq_ignore_ascii_case(name.registry())))
}

/// True for a digest of SHA-256 as images name it, without `sha256:`: 64 hexadecimal digits, the letters small.
pub fn is_digest(digest: &str) -> bool {
    digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// True if the first component of a name is the host of a registry, and not a part of the path.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

fn is_host_and_port(registry: &str) -> bool {
    match registry.split_once(':') {
        Some((host, port)) => is_host(host) && is_port(port),
        None => is_host(registry),
    }
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
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

    /// The host of a pinned image. `None` if the name is refused.
    fn parse(name: &str) -> Option<String> {
        let text = format!("{name}@sha256:{}", "0f".repeat(32));
        ImageName::parse(&text).map(|image| image.host().to_owned())
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
            assert_eq!(parse(name).as_deref(), Some(host.unwrap_or(DEFAULT_REGISTRY)), "{name}");
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
            "ghcr.io:+80/a",
            "ghcr.io:1:2/a",
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
            assert_eq!(ImageName::parse(&format!("a@sha256:{digest}")), None, "{digest}");
        }
        assert_eq!(ImageName::parse("a:1").and_then(|name| name.digest), None, "no digest");
        assert_eq!(ImageName::parse(&format!("a@sha512:{}", "0".repeat(128))), None, "another algorithm");
    }

    #[test]
    fn an_image_is_in_the_registry_that_its_name_says_and_in_no_other() {
        let listed = ["ghcr.io".to_owned(), "localhost:5000".to_owned()];
        for (image, is_listed) in [
            ("ghcr.io/team/tool@sha256:0", false),
            ("GHCR.io/team/tool:1", true),
            ("ghcr.io.evil.org/team/tool:1", false),
            ("localhost:5000/tool", true),
            ("localhost:5001/tool", false),
            ("debian:12", false),
        ] {
            assert_eq!(is_in_registries(image, &listed), is_listed, "{image}");
            assert!(!is_in_registries(image, &[]), "{image}");
        }
        assert!(is_in_registries("debian:12", &[DEFAULT_REGISTRY.to_owned()]));
    }
}
