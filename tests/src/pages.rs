//! The addresses of all pages that have no parameter. The browser tests check each page, and compare these lists with
//! the web server's routes.

/// Pages of a signed-in person: the address and the name of the screenshot.
pub const PAGES: [(&str, &str); 27] = [
    ("/", "landing"),
    ("/market", "market"),
    ("/market/prices", "prices"),
    ("/market/compare", "compare"),
    ("/earn", "earn"),
    ("/status", "status"),
    ("/find", "find"),
    ("/jobs", "jobs"),
    ("/jobs/compare", "compare-jobs"),
    ("/jobs/new", "new-job"),
    ("/templates", "templates"),
    ("/batches", "batches"),
    ("/wallet", "wallet"),
    ("/account", "account"),
    ("/account/close", "close-account"),
    ("/account/notifications", "notifications"),
    ("/account/secrets", "secrets"),
    ("/datasets", "datasets"),
    ("/provider", "provider"),
    ("/provider/add", "add-machine"),
    ("/docs", "docs"),
    ("/docs/endpoints", "endpoints"),
    ("/styleguide", "styleguide"),
    ("/sign-in", "sign-in"),
    ("/sign-up", "sign-up"),
    ("/forgot", "forgot"),
    ("/terms", "terms"),
];

/// Pages of the operators' console: the address and the name of the screenshot.
pub const CONSOLE: [(&str, &str); 5] = [
    ("/console", "console"),
    ("/console/events", "console-events"),
    ("/console/fleet", "console-fleet"),
    ("/console/ledger", "console-ledger"),
    ("/console/travel", "console-travel"),
];
