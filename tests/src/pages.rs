//! The addresses of all pages that have no parameter. The browser tests look at each of them, and compare these lists with
//! the web server's own routes.

/// Pages of a signed-in person, each with the name of its picture.
pub const PAGES: [(&str, &str); 11] = [
    ("/", "landing"),
    ("/market", "market"),
    ("/jobs", "jobs"),
    ("/jobs/new", "new-job"),
    ("/wallet", "wallet"),
    ("/account", "account"),
    ("/provider", "provider"),
    ("/docs", "docs"),
    ("/styleguide", "styleguide"),
    ("/sign-in", "sign-in"),
    ("/sign-up", "sign-up"),
];

/// Pages of the operators' console, each with the name of its picture.
pub const CONSOLE: [(&str, &str); 5] = [
    ("/console", "console"),
    ("/console/events", "console-events"),
    ("/console/fleet", "console-fleet"),
    ("/console/ledger", "console-ledger"),
    ("/console/travel", "console-travel"),
];
