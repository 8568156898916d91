//! The assets: scripts, styles, the typeface and the pictures, embedded in the binary. The address of an asset contains
//! a hash of all assets, so browsers can cache the asset for ever.

use std::{fmt::Write as _, sync::LazyLock};

use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest as _, Sha256};

struct Asset {
    name: &'static str,
    media_type: &'static str,
    content: &'static [u8],
}

const ASSETS: &[Asset] = &[
    Asset { name: "style.css", media_type: "text/css; charset=utf-8", content: include_bytes!("../assets/style.css") },
    Asset { name: "app.js", media_type: "text/javascript; charset=utf-8", content: include_bytes!("../assets/app.js") },
    Asset {
        name: "live.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/live.js"),
    },
    Asset {
        name: "market.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/market.js"),
    },
    Asset {
        name: "theme.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/theme.js"),
    },
    Asset {
        name: "passkeys.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_bytes!("../assets/passkeys.js"),
    },
    Asset { name: "job.js", media_type: "text/javascript; charset=utf-8", content: include_bytes!("../assets/job.js") },
    Asset { name: "icon.svg", media_type: "image/svg+xml", content: include_bytes!("../assets/icon.svg") },
    Asset { name: "icons.svg", media_type: "image/svg+xml", content: include_bytes!("../assets/icons.svg") },
    Asset {
        name: "geist.woff2",
        media_type: "font/woff2",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/geist.woff2")),
    },
    Asset {
        name: "geist-license.txt",
        media_type: "text/plain; charset=utf-8",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/geist-license.txt")),
    },
    Asset {
        name: "htmx.js",
        media_type: "text/javascript; charset=utf-8",
        content: include_bytes!(concat!(env!("OUT_DIR"), "/htmx.js")),
    },
];

/// The version in the addresses: a hash of the contents of all assets.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = Sha256::new();
    for asset in ASSETS {
        hasher.update(asset.content);
    }
    hasher.finalize().iter().take(6).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
});

/// The address of an asset.
pub(crate) fn url(name: &str) -> String {
    format!("/assets/{}/{name}", *VERSION)
}

/// The address of an icon or a picture in `icons.svg`, for the element `use` of SVG.
pub(crate) fn icon(name: &str) -> String {
    format!("{}#{name}", url("icons.svg"))
}

/// `GET /assets/{version}/{name}`: serves an asset.
pub(crate) async fn serve(Path((version, name)): Path<(String, String)>) -> Response {
    let Some(asset) = ASSETS.iter().find(|a| a.name == name) else { return StatusCode::NOT_FOUND.into_response() };
    let caching = if version == *VERSION { "public, max-age=31536000, immutable" } else { "no-cache" };
    ([(header::CONTENT_TYPE, asset.media_type), (header::CACHE_CONTROL, caching)], asset.content).into_response()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_template_has_a_picture() {
        let icons = include_str!("../assets/icons.svg");
        let has_picture = |id: &str| icons.contains(&format!("<symbol id=\"picture-{id}\""));
        let without: Vec<_> =
            gpubnb_events::template::OWN.iter().map(|t| t.picture.as_str()).filter(|id| !has_picture(id)).collect();
        assert_eq!(without, [""; 0]);
    }
}
