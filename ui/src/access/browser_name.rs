//! The name of a browser in a few words, from its `User-Agent`.

/// Browsers by a mark in the `User-Agent`. Browsers name those that they descend from, so the order matters: Edge also
/// has the mark of Chrome, and Chrome that of Safari.
const BROWSERS: [(&str, &str); 8] = [
    ("Edg/", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("HeadlessChrome/", "Chrome"),
    ("Chromium/", "Chromium"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
    ("curl/", "curl"),
];

/// Systems by a mark in the `User-Agent`. Android also has the mark of Linux.
const SYSTEMS: [(&str, &str); 7] = [
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
];

/// For example `Chrome on Linux`. An unknown program is called by the first word that it says; `unnamed` if it says
/// nothing.
pub(crate) fn browser_name(user_agent: &str) -> String {
    let find = |marks: &[(&str, &'static str)]| {
        marks.iter().find(|(mark, _)| user_agent.contains(mark)).map(|(_, name)| *name)
    };
    let browser = find(&BROWSERS);
    match (browser, find(&SYSTEMS)) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(browser), None) => browser.to_owned(),
        (None, _) => match user_agent.split_whitespace().next() {
            Some(word) => word.chars().filter(|c| !c.is_control()).take(40).collect(),
            None => "unnamed".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_called_by_its_own_name_and_its_system() {
        let chrome =
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36";
        let edge = "Mozilla/5.0 (Windows NT 10.0; Win64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36 Edg/126.0";
        let safari = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Version/17.5 Mobile/15E148 Safari/604.1";
        for (user_agent, name) in [
            (chrome, "Chrome on Linux"),
            (edge, "Edge on Windows"),
            (safari, "Safari on iPhone"),
            ("curl/8.9.1", "curl"),
            ("gpubnb/0.1 (script)", "gpubnb/0.1"),
            ("", "unnamed"),
        ] {
            assert_eq!(browser_name(user_agent), name);
        }
    }
}
