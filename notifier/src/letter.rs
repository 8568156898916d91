//! The texts of e-mails.

use anyhow::Context as _;
use gpubnb_events::{
    CommandId,
    notification::{LetterAbout, Notification},
};
use lettre::{
    Message,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
};
use url::Url;

/// Most notifications that one e-mail names. It counts the others.
const MAX_NAMED: usize = 50;

/// Writes e-mails.
pub(crate) struct Letters {
    /// The address of the pages.
    pages: Url,
    from: Mailbox,
}

impl Letters {
    pub(crate) fn new(pages: Url, from: &str) -> anyhow::Result<Self> {
        let from = from.parse().context("--mail-from is an address, such as GPUbnb <no-reply@market.example>")?;
        Ok(Self { pages, from })
    }

    /// An e-mail that a person asked for.
    pub(crate) fn asked_for(&self, to: &str, about: &LetterAbout) -> anyhow::Result<Message> {
        let host = self.pages.host_str().unwrap_or_default();
        let (subject, text) = match about {
            LetterAbout::ConfirmAddress { secret } => (
                "Confirm your e-mail address",
                format!(
                    "Open this link to confirm that this address is yours. It works for a day.\n\n{}\n\nIf you have no \
                     account at {host}, ignore this e-mail.",
                    self.page(&format!("/confirm/{secret}"))
                ),
            ),
            LetterAbout::ResetPassword { secret } => (
                "Choose a new password",
                format!(
                    "Open this link to choose a new password. It works once, within an hour.\n\n{}\n\nIf you did not \
                     ask for a new password, ignore this e-mail: your password stays as it is.",
                    self.page(&format!("/reset/{secret}"))
                ),
            ),
            LetterAbout::AddressHasAccount => (
                "You have an account already",
                format!(
                    "Somebody, perhaps you, signed up at {host} with this address, which has an account.\n\nSign in: \
                     {}\nChoose a new password: {}",
                    self.page("/sign-in"),
                    self.page("/forgot")
                ),
            ),
            LetterAbout::PasswordChanged => (
                "Your password was changed",
                format!(
                    "The password of your account at {host} was changed. Every other browser was signed out, and every \
                     token was revoked. Your webhooks: {}\n\nIf it was not you, choose a new password: {}",
                    self.page("/account/notifications"),
                    self.page("/forgot")
                ),
            ),
        };
        self.message(to, subject, text)
    }

    /// One e-mail about everything that waits for an account.
    pub(crate) fn digest(&self, to: &str, notifications: &[Notification]) -> anyhow::Result<Message> {
        let subject = match notifications {
            [one] => one.title.clone(),
            several => format!("{} notifications", several.len()),
        };
        let mut text = String::new();
        for notification in notifications.iter().take(MAX_NAMED) {
            text.extend([&notification.title, "\n", &self.page(&notification.path), "\n\n"]);
        }
        if let Some(rest) = notifications.len().checked_sub(MAX_NAMED).filter(|rest| *rest > 0) {
            text.extend(["And ", &rest.to_string(), " more.\n\n"]);
        }
        text.extend(["Choose what you are told: ", &self.page("/account/notifications")]);
        self.message(to, &subject, text)
    }

    fn page(&self, path: &str) -> String {
        self.pages.join(path).map_or_else(|_| String::new(), String::from)
    }

    fn message(&self, to: &str, subject: &str, text: String) -> anyhow::Result<Message> {
        let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to.parse().context("the recipient's address cannot be read")?))
            .subject(subject)
            .message_id(Some(format!("<{}@{}>", CommandId::generate(), self.pages.host_str().unwrap_or("localhost"))))
            // Keeps vacation programs from answering.
            .raw_header(HeaderValue::new(automatic, "auto-generated".to_owned()))
            .header(ContentType::TEXT_PLAIN)
            .body(text)
            .context("the e-mail cannot be written")
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{Timestamp, notification::NotificationKind};

    use super::*;

    fn letters() -> Letters {
        Letters::new("https://market.example/".parse().unwrap(), "GPUbnb <no-reply@market.example>").unwrap()
    }

    fn written(message: &Message) -> String {
        String::from_utf8(message.formatted()).unwrap()
    }

    #[test]
    fn a_link_leads_to_the_market_and_not_to_a_host_that_a_request_named() {
        let about = LetterAbout::ResetPassword { secret: "abc".to_owned() };
        let text = written(&letters().asked_for("a@b.example", &about).unwrap());
        assert!(text.contains("https://market.example/reset/abc"), "{text}");
        assert!(text.contains("Auto-Submitted: auto-generated"), "{text}");
    }

    #[test]
    fn several_notifications_are_one_e_mail_and_a_name_adds_no_header() {
        let notification = |title: &str| Notification {
            kind: NotificationKind::JobFailed,
            seq: None,
            at: Timestamp::from_millis(0),
            title: title.to_owned(),
            path: "/jobs/x".to_owned(),
            data: serde_json::json!({}),
        };
        let two = [notification("One failed."), notification("Another failed.")];
        let text = written(&letters().digest("a@b.example", &two).unwrap());
        assert!(text.contains("Subject: 2 notifications"), "{text}");
        assert!(text.contains("One failed.") && text.contains("Another failed."), "{text}");
        let hostile = [notification("x\r\nBcc: victim@host.example")];
        let text = written(&letters().digest("a@b.example", &hostile).unwrap());
        let (headers, _) = text.split_once("\r\n\r\n").unwrap();
        assert!(!headers.lines().any(|line| line.starts_with("Bcc:")), "{headers}");
    }
}
