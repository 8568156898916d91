//! Which notifications an event makes, and for whom.

use async_nats::jetstream::kv;
use gpubnb_events::{
    AccountId, Actor, BatchId, JobId, MachineId, Seq, Timestamp,
    event::{Check, Event},
    notification::{Delivery, Notification, NotificationKind, NotificationSettings},
};
use gpubnb_query::{
    QueryClient,
    view::{JobState, JobView},
};
use serde_json::{Value, json};
use tracing::warn;

/// The kinds that the end of a job makes.
const JOB_KINDS: [NotificationKind; 3] =
    [NotificationKind::JobCompleted, NotificationKind::JobFailed, NotificationKind::JobCancelled];
/// Most failed checks that a notification names.
const MAX_CHECKS: usize = 10;
/// Most characters of a name in a sentence.
const MAX_NAME: usize = 80;

/// Makes notifications.
pub(crate) struct Notices {
    queries: QueryClient,
    bucket: kv::Store,
}

impl Notices {
    pub(crate) fn new(queries: QueryClient, bucket: kv::Store) -> Self {
        Self { queries, bucket }
    }

    /// The deliveries about an event.
    pub(crate) async fn about(&self, event: &Event, seq: Seq, at: Timestamp) -> anyhow::Result<Vec<Delivery>> {
        let made = match event {
            Event::Settled(e) => {
                let settings = self.settings(e.consumer).await?;
                let ended = self.ended(e.consumer, &settings, e.job, (seq, at)).await?;
                let low = self.balance_of(e.consumer, settings, (seq, at)).await?;
                // Earnings may end a low balance.
                let earned = match e.provider.filter(|provider| *provider != e.consumer) {
                    Some(provider) => self.balance(provider, seq, at).await?,
                    None => None,
                };
                return Ok([ended, low, earned].into_iter().flatten().flat_map(deliveries).collect());
            }
            Event::JobSubmitted(e) => self.balance(e.account, seq, at).await?,
            Event::BatchSubmitted(e) => self.balance(e.account, seq, at).await?,
            Event::BatchClosed(e) => {
                let ended = self.batch_ended(e.batch, (seq, at)).await?;
                // The money that is free again may end a low balance.
                let low = self.balance(e.account, seq, at).await?;
                return Ok([ended, low].into_iter().flatten().flat_map(deliveries).collect());
            }
            Event::FundsDeposited(e) => self.balance(e.account, seq, at).await?,
            Event::PayoutRequested(e) => self.balance(e.account, seq, at).await?,
            Event::PayoutPaid(e) => {
                let title = format!("Your payout of {} was paid.", e.amount);
                let data = json!({ "payout": e.payout, "amount": e.amount });
                self.wanted(e.account, NotificationKind::PayoutPaid, (seq, at), title, "/wallet".to_owned(), data)
                    .await?
            }
            Event::PayoutFailed(e) => {
                let title = format!("Your payout of {} failed. The amount is back in your balance.", e.amount);
                let data = json!({ "payout": e.payout, "amount": e.amount, "reason": e.reason });
                self.wanted(e.account, NotificationKind::PayoutFailed, (seq, at), title, "/wallet".to_owned(), data)
                    .await?
            }
            Event::MachineLost(e) => self.machine_lost(e.machine, seq, at).await?,
            Event::MachineTested(e) => self.self_test(e.machine, &e.checks, seq, at).await?,
            _ => None,
        };
        Ok(made.into_iter().flat_map(deliveries).collect())
    }

    /// The notification about the end of a job. The end of a task is no news, but the end of its batch is.
    async fn ended(
        &self,
        account: AccountId,
        settings: &NotificationSettings,
        id: JobId,
        (seq, at): (Seq, Timestamp),
    ) -> anyhow::Result<Option<Told>> {
        if ![NotificationKind::BatchEnded].iter().chain(&JOB_KINDS).any(|kind| settings.wants(*kind)) {
            return Ok(None);
        }
        let job = self.queries.job(Actor::Platform, id, seq).await?;
        match &job.spec.task {
            Some(task) => self.batch_ended(task.batch, (seq, at)).await,
            None => Ok(job_ended(account, settings, &job, (seq, at))),
        }
    }

    /// The notification that a batch ended, if it ended by the event with this sequence.
    async fn batch_ended(&self, batch: BatchId, (seq, at): (Seq, Timestamp)) -> anyhow::Result<Option<Told>> {
        let view = self.queries.batch(Actor::Platform, batch, seq).await?;
        if !view.is_over() || view.seq != seq {
            return Ok(None);
        }
        let (counts, cost) = (view.counts, view.cost);
        let title = format!(
            "Batch {}: {} of {} tasks completed, {} failed. It cost {cost}.",
            name(&view.spec.name),
            counts.completed,
            view.tasks,
            counts.failed
        );
        let data = json!({ "batch": batch, "name": view.spec.name, "counts": counts, "cost": cost });
        let path = format!("/batches/{batch}");
        self.wanted(view.account, NotificationKind::BatchEnded, (seq, at), title, path, data).await
    }

    async fn balance(&self, account: AccountId, seq: Seq, at: Timestamp) -> anyhow::Result<Option<Told>> {
        self.balance_of(account, self.settings(account).await?, (seq, at)).await
    }

    /// The notification that the balance is low: once, until the balance is no longer low.
    async fn balance_of(
        &self,
        account: AccountId,
        settings: NotificationSettings,
        (seq, at): (Seq, Timestamp),
    ) -> anyhow::Result<Option<Told>> {
        if !settings.wants(NotificationKind::BalanceLow) {
            return Ok(None);
        }
        let balance = self.queries.balance(Actor::Platform, account, seq).await?;
        let (key, limit) = (format!("low.{account}"), settings.low_balance);
        let known = self.bucket.get(&key).await?;
        let is_repeated = known.as_deref().is_some_and(|of| of != seq.to_string().as_bytes());
        if balance.available >= limit {
            if known.is_some() {
                self.bucket.purge(&key).await?;
            }
            return Ok(None);
        }
        if is_repeated {
            return Ok(None);
        }
        // The entry names the event: after a crash the same event makes the notification again.
        self.bucket.put(&key, seq.to_string().into()).await?;
        let title = format!("Your balance is {}, below your limit of {limit}.", balance.available);
        let data = json!({ "available": balance.available, "held": balance.held, "limit": limit });
        let kind = NotificationKind::BalanceLow;
        Ok(Told::new(account, settings, kind, (seq, at), title, "/wallet".to_owned(), data))
    }

    async fn machine_lost(&self, machine: MachineId, seq: Seq, at: Timestamp) -> anyhow::Result<Option<Told>> {
        let listed = self.queries.machine(Actor::Platform, machine, seq).await?.listed;
        let title = format!("Machine {} is silent. Its jobs go to other machines.", name(&listed.offer.name));
        let data = json!({ "machine": machine, "name": listed.offer.name });
        let path = format!("/machines/{machine}");
        self.wanted(listed.owner, NotificationKind::MachineLost, (seq, at), title, path, data).await
    }

    async fn self_test(
        &self,
        machine: MachineId,
        checks: &[Check],
        seq: Seq,
        at: Timestamp,
    ) -> anyhow::Result<Option<Told>> {
        let failed: Vec<_> = checks.iter().filter(|check| !check.passed && !check.recommended).collect();
        let Some(first) = failed.first() else { return Ok(None) };
        let listed = self.queries.machine(Actor::Platform, machine, seq).await?.listed;
        let title = format!("Machine {} failed its self-test: {}.", name(&listed.offer.name), name(&first.id));
        let checks: Vec<_> = failed.iter().take(MAX_CHECKS).map(|check| name(&check.id)).collect();
        let data = json!({ "machine": machine, "name": listed.offer.name, "checks": checks });
        let path = format!("/machines/{machine}");
        self.wanted(listed.owner, NotificationKind::SelfTestFailed, (seq, at), title, path, data).await
    }

    async fn wanted(
        &self,
        account: AccountId,
        kind: NotificationKind,
        when: (Seq, Timestamp),
        title: String,
        path: String,
        data: Value,
    ) -> anyhow::Result<Option<Told>> {
        Ok(Told::new(account, self.settings(account).await?, kind, when, title, path, data))
    }

    async fn settings(&self, account: AccountId) -> anyhow::Result<NotificationSettings> {
        read_settings(&self.bucket, account).await
    }
}

/// The notification about the end of a job that is no task.
fn job_ended(
    account: AccountId,
    settings: &NotificationSettings,
    job: &JobView,
    (seq, at): (Seq, Timestamp),
) -> Option<Told> {
    let (kind, ended) = match job.state {
        JobState::Completed => (NotificationKind::JobCompleted, "completed".to_owned()),
        JobState::Cancelled => (NotificationKind::JobCancelled, "was cancelled".to_owned()),
        _ => {
            let why = job.reason.map(|reason| format!(": {}", reason.description())).unwrap_or_default();
            (NotificationKind::JobFailed, format!("failed{why}"))
        }
    };
    let (id, cost) = (job.job, job.cost.unwrap_or_default());
    let title = format!("Job {} {ended}. It cost {cost}.", name(&job.spec.name));
    let data = json!({ "job": id, "name": job.spec.name, "state": job.state.name(), "cost": cost });
    Told::new(account, settings.clone(), kind, (seq, at), title, format!("/jobs/{id}"), data)
}

/// The settings of an account.
pub(crate) async fn read_settings(bucket: &kv::Store, account: AccountId) -> anyhow::Result<NotificationSettings> {
    let Some(bytes) = bucket.get(format!("account.{account}")).await? else {
        return Ok(NotificationSettings::default());
    };
    Ok(serde_json::from_slice(&bytes).unwrap_or_else(|e| {
        // The notifications of all others must not wait for a row that cannot be read.
        warn!(%account, error = %e, "what an account wants to be told cannot be read");
        NotificationSettings::default()
    }))
}

/// A notification that its account wants.
struct Told {
    account: AccountId,
    settings: NotificationSettings,
    notification: Notification,
}

impl Told {
    /// `None` if the account does not want it.
    fn new(
        account: AccountId,
        settings: NotificationSettings,
        kind: NotificationKind,
        (seq, at): (Seq, Timestamp),
        title: String,
        path: String,
        data: Value,
    ) -> Option<Self> {
        let notification = Notification { kind, seq: Some(seq), at, title, path, data };
        settings.wants(kind).then_some(Self { account, settings, notification })
    }
}

fn deliveries(told: Told) -> Vec<Delivery> {
    let Told { account, settings, notification } = told;
    let (kind, seq) = (notification.kind, notification.seq.unwrap_or_default());
    let mut made: Vec<_> = settings
        .webhooks
        .iter()
        .filter(|webhook| webhook.kinds.contains(&kind))
        .map(|webhook| Delivery::Webhook {
            account,
            webhook: webhook.id,
            id: format!("{seq}-{kind}-{}", webhook.id),
            notification: notification.clone(),
        })
        .collect();
    if settings.mails(kind) {
        made.push(Delivery::Mail { account, notification });
    }
    made
}

/// A name that a stranger chose, on one line and not too long.
fn name(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_NAME).collect();
    format!("“{}”", plain.trim())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gpubnb_events::{CommandId, notification::Webhook};

    use super::*;

    fn webhook(kinds: &[NotificationKind]) -> Webhook {
        let kinds: BTreeSet<_> = kinds.iter().copied().collect();
        let (id, created_at) = (CommandId::generate(), Timestamp::from_millis(0));
        Webhook { id, url: String::new(), secret: String::new(), kinds, created_at, tested_at: None }
    }

    #[test]
    fn each_webhook_and_the_mail_box_get_what_they_want() {
        let both = webhook(&[NotificationKind::JobFailed, NotificationKind::JobCompleted]);
        let settings = NotificationSettings {
            address: Some("a@b.example".to_owned()),
            webhooks: vec![both.clone(), webhook(&[NotificationKind::PayoutPaid])],
            ..NotificationSettings::default()
        };
        let sent = |kind| {
            let when = (Seq(7), Timestamp::from_millis(0));
            let told =
                Told::new(AccountId::generate(), settings.clone(), kind, when, String::new(), String::new(), json!({}));
            told.map(deliveries).unwrap_or_default()
        };
        let failed = sent(NotificationKind::JobFailed);
        assert!(
            matches!(&failed[..], [Delivery::Webhook { webhook, .. }, Delivery::Mail { .. }] if *webhook == both.id)
        );
        assert_eq!(sent(NotificationKind::JobCompleted).len(), 1);
        assert_eq!(sent(NotificationKind::JobCancelled).len(), 0);
    }

    #[test]
    fn a_name_cannot_begin_a_new_line() {
        assert_eq!(name("a\r\nBcc: x"), "“a  Bcc: x”");
        assert_eq!(name(&"x".repeat(500)).chars().count(), MAX_NAME + 2);
    }
}
