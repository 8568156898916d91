//! The rule which images a job may have.
//!
//! Belongs here: the rule, from the name of the image and of the template. Must not come here: the digest behind a tag,
//! which the web server finds, or the images that an owner allows, which belong to `placement`.

use gpubnb_events::{
    spec::{ImageName, JobSpec},
    template,
};

use crate::{DomainError, Settings, rules::check_text};

/// Domains of which no name is public (RFC 6761, RFC 6762, RFC 8375 and common practice).
const PRIVATE_DOMAINS: [&str; 15] = [
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "private",
    "lan",
    "home",
    "corp",
    "arpa",
    "svc",
    "onion",
    "test",
    "invalid",
    "example",
];

/// Checks the image. It must be the market's own image, an approved image, or an image in a public registry with a
/// digest. The template is a name for people: the web server knows the templates, and makes the image and the command.
pub(crate) fn check_image(spec: &JobSpec, settings: &Settings) -> Result<(), DomainError> {
    if let Some(id) = &spec.template {
        check_text("template", id, 40)?;
        match template::find(id) {
            Some(own) if own.image == spec.image => return Ok(()),
            Some(own) => {
                return Err(DomainError::field("image", format!("Template `{id}` runs the image {}.", own.image)));
            }
            None if spec.image == template::OWN_IMAGE => {
                return Err(DomainError::field("template", "There is no such template."));
            }
            None => {}
        }
    }
    if settings.approved_images.contains(&spec.image) {
        return Ok(());
    }
    let is_pinned =
        ImageName::parse(&spec.image).is_some_and(|image| image.digest.is_some() && is_public_host(image.host()));
    if is_pinned {
        return Ok(());
    }
    Err(DomainError::field(
        "image",
        "A custom image must be in a public registry: python:3.12, or ghcr.io/team/tool@sha256:….",
    ))
}

/// True if the host of a registry is not in a private network, as far as its name tells. The machine sends requests to
/// the registry, so `nas.local` is refused: it could be a computer in the network of the machine's owner.
fn is_public_host(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    host.contains('.')
        && last.starts_with(|c: char| c.is_ascii_alphabetic())
        && !PRIVATE_DOMAINS.contains(&last.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_name_cannot_lead_into_a_private_network() {
        for good in ["ghcr.io", "registry.example.com", "EU.Registry.Example.COM"] {
            assert!(is_public_host(good), "{good}");
        }
        for bad in [
            "localhost",
            "127.0.0.1",
            "169.254.169.254",
            "10.0.0.1",
            "host",
            "nas.local",
            "X.INTERNAL",
            "db.localdomain",
            "nas.home.arpa",
            "registry.default.svc",
            "a.onion",
            "0x7f.1",
            "127.0x1",
            "registry.test",
        ] {
            assert!(!is_public_host(bad), "{bad}");
        }
    }
}
