//! Notifications: what the market tells a person or a person's program about an event. This file has the settings of an
//! account, the notification itself, and the messages of the streams DELIVERIES and DELIVERYLOG.
//!
//! None of these is an event of the log: they have addresses of people and of their servers, and they are deleted after
//! a while.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    ids::{AccountId, CommandId, Seq},
    money::MicroUsd,
    time::Timestamp,
};

/// Most webhooks of an account.
pub const MAX_WEBHOOKS: usize = 5;
/// Longest address of a webhook, bytes.
pub const MAX_WEBHOOK_URL: usize = 500;
/// The beginning of the secret of a webhook. The rest is the key, base64.
pub const WEBHOOK_SECRET_PREFIX: &str = "whsec_";

/// The text is not the name of a kind of notification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of notification")]
pub struct UnknownKind(String);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $wire:literal, $sentence:literal);+ $(;)?) => {
        /// A kind of notification.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum NotificationKind {
            $($(#[$doc])* #[serde(rename = $wire)] $name),+
        }

        impl NotificationKind {
            /// Every kind, also [`Self::Test`].
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name on the wire, such as `job.failed`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $wire),+ }
            }

            /// When notifications of this kind are sent, for people.
            pub fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence),+ }
            }
        }
    };
}

kinds! {
    /// A job completed, and its bill is settled.
    JobCompleted = "job.completed", "A job completed";
    /// A job failed, and its bill is settled.
    JobFailed = "job.failed", "A job failed";
    /// A job was cancelled, and its bill is settled.
    JobCancelled = "job.cancelled", "A job was cancelled";
    /// A batch opens no more tasks, and all its open tasks are settled.
    BatchEnded = "batch.ended", "A batch ended";
    /// The balance fell below the limit that the account chose.
    BalanceLow = "balance.low", "The balance is low";
    /// A payout was paid.
    PayoutPaid = "payout.paid", "A payout was paid";
    /// A payout failed, and its amount is back in the balance.
    PayoutFailed = "payout.failed", "A payout failed";
    /// A machine was silent for so long that its jobs went to other machines.
    MachineLost = "machine.lost", "A machine is lost";
    /// A machine failed a self-test.
    SelfTestFailed = "machine.self_test_failed", "A machine failed its self-test";
    /// A person pressed the test button.
    Test = "test", "A test";
}

impl NotificationKind {
    /// The kinds that an account can choose.
    pub fn choices() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|kind| *kind != Self::Test)
    }
}

impl fmt::Display for NotificationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NotificationKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.iter().copied().find(|kind| kind.name() == text);
        found.ok_or_else(|| UnknownKind(text.chars().take(40).collect()))
    }
}

/// The settings of an account: which notifications go where. An entry of the bucket NOTIFICATIONS.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationSettings {
    /// The e-mail address, if its owner confirmed it. Nothing is sent to another address.
    #[serde(default)]
    pub address: Option<String>,
    /// The kinds that are sent as e-mail.
    #[serde(deserialize_with = "known_kinds")]
    pub mail: BTreeSet<NotificationKind>,
    /// The programs that are told.
    #[serde(default)]
    pub webhooks: Vec<Webhook>,
    /// A balance below this amount is low.
    pub low_balance: MicroUsd,
}

impl Default for NotificationSettings {
    fn default() -> Self {
        use NotificationKind::{BalanceLow, JobFailed, MachineLost, PayoutFailed, PayoutPaid, SelfTestFailed};
        Self {
            address: None,
            mail: BTreeSet::from([JobFailed, BalanceLow, PayoutPaid, PayoutFailed, MachineLost, SelfTestFailed]),
            webhooks: Vec::new(),
            low_balance: MicroUsd(1_000_000),
        }
    }
}

impl NotificationSettings {
    /// True if notifications of this kind go by e-mail.
    pub fn mails(&self, kind: NotificationKind) -> bool {
        self.address.is_some() && self.mail.contains(&kind)
    }

    /// True if a notification of this kind goes anywhere.
    pub fn wants(&self, kind: NotificationKind) -> bool {
        self.mails(kind) || self.webhooks.iter().any(|webhook| webhook.kinds.contains(&kind))
    }
}

/// A program that is told, by HTTP requests to its address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// The id.
    pub id: CommandId,
    /// The address, `https://…`.
    pub url: String,
    /// The secret with which requests are signed: `whsec_` and 32 bytes, base64.
    pub secret: String,
    /// The kinds of notifications that are sent.
    #[serde(deserialize_with = "known_kinds")]
    pub kinds: BTreeSet<NotificationKind>,
    /// When the webhook was added.
    pub created_at: Timestamp,
    /// When a test was sent last.
    #[serde(default)]
    pub tested_at: Option<Timestamp>,
}

/// Reads kinds without those that only a newer program knows.
fn known_kinds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<NotificationKind>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

// The address and the secret are for nobody else: an address may be a secret itself, as those of Slack are.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("id", &self.id).field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

/// A notification: ids and amounts, no results of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// The kind.
    pub kind: NotificationKind,
    /// The event that the notification is about; `None` for a test.
    pub seq: Option<Seq>,
    /// When the event was recorded.
    pub at: Timestamp,
    /// The event in one sentence, for people.
    pub title: String,
    /// The page about it, a path such as `/jobs/…`.
    pub path: String,
    /// The ids and amounts, as a JSON object.
    pub data: serde_json::Value,
}

/// A message of the stream DELIVERIES: something that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// A notification to a webhook.
    Webhook {
        /// The account.
        account: AccountId,
        /// The webhook.
        webhook: CommandId,
        /// The same at each try, so that the receiver can tell a repetition.
        id: String,
        /// The notification.
        notification: Notification,
    },
    /// A notification by e-mail. Those of one account that wait are sent as one e-mail.
    Mail {
        /// The account.
        account: AccountId,
        /// The notification.
        notification: Notification,
    },
    /// An e-mail that a person asked for.
    Letter(Letter),
}

/// An e-mail that a person asked for. The links in it are secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// The e-mail address.
    pub to: String,
    /// The letter is not sent after this time.
    pub expires: Timestamp,
    /// The reason for the e-mail.
    pub about: LetterAbout,
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Letter").finish_non_exhaustive()
    }
}

/// The reason for an e-mail that a person asked for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LetterAbout {
    /// A link that confirms the e-mail address.
    ConfirmAddress {
        /// The secret in the link.
        secret: String,
    },
    /// A link under which a new password is chosen.
    ResetPassword {
        /// The secret in the link.
        secret: String,
    },
    /// Somebody signed up with an address that has an account.
    AddressHasAccount,
    /// The password was changed.
    PasswordChanged,
}

/// A message of the stream DELIVERYLOG: one try of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeliveryTry {
    /// The id of the delivery: the same for each try.
    pub id: String,
    /// The kind of the notification.
    pub kind: NotificationKind,
    /// The webhook; `None` for an e-mail.
    #[schema(value_type = Option<String>, format = Uuid)]
    pub webhook: Option<CommandId>,
    /// When it was tried.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// How the delivery failed; `None` if it succeeded.
    pub failure: Option<String>,
    /// When it is tried again; `None` if it is not.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next: Option<Timestamp>,
}

/// The entry `mail` of the bucket NOTIFICATIONS: e-mail is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailService {
    /// The address from which e-mail is sent.
    pub from: String,
    /// When the notifier last said so. It says so again and again.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kinds_are_read_and_written_alike() {
        for kind in NotificationKind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
            assert_eq!(serde_json::to_value(kind).ok(), Some(kind.name().into()));
        }
        assert!("job".parse::<NotificationKind>().is_err());
        assert!(NotificationKind::choices().all(|kind| kind != NotificationKind::Test));
    }

    #[test]
    fn no_mail_goes_to_an_address_that_nobody_confirmed() {
        let mut settings = NotificationSettings::default();
        assert!(!settings.wants(NotificationKind::JobFailed));
        settings.address = Some("a@b.example".to_owned());
        assert!(settings.wants(NotificationKind::JobFailed));
        assert!(!settings.wants(NotificationKind::JobCompleted));
    }

    #[test]
    fn a_kind_of_a_newer_program_does_not_make_settings_unreadable() {
        let text = r#"{"mail":["job.failed","moon.rises"],"low_balance":1}"#;
        let read: Option<NotificationSettings> = serde_json::from_str(text).ok();
        assert_eq!(read.map(|settings| settings.mail), Some(BTreeSet::from([NotificationKind::JobFailed])));
    }
}
