//! Rebuilds DISPATCH, the stream of job messages for machines, from MARKET: if the broker lost the stream, and after a
//! restore. Also creates the consumer of each machine.
//!
//! The new stream begins at the oldest live lease. If it began at the first event of the log, every machine would first
//! get all its old job messages, and the services would have to refuse each of them.

use anyhow::Context as _;
use async_nats::jetstream::{self, context::GetStreamErrorKind};
use gpubnb_domain::{Settings, World, machine::Availability};
use gpubnb_events::{MachineId, Recorded, Seq};
use gpubnb_log::{
    Log,
    stream::{self, DISPATCH, MARKET, StreamOptions},
};
use tracing::warn;

/// Rebuilds DISPATCH if MARKET has events and DISPATCH does not exist. `js` may append, `owner` may change streams.
pub(crate) async fn rebuild_if_lost(
    js: &jetstream::Context,
    owner: &jetstream::Context,
    options: &StreamOptions,
    settings: &Settings,
) -> anyhow::Result<()> {
    // A DISPATCH without consumers counts as lost: an earlier rebuild stopped before it created the consumers.
    let is_in_use = consumer_count(owner, DISPATCH).await?.is_some_and(|count| count > 0);
    if is_in_use || consumer_count(owner, MARKET).await?.is_none() {
        return Ok(());
    }
    let log = Log::open(js.clone()).await?;
    if log.last_seq().await? > Seq::ZERO {
        let (from, machines) = rebuild(&log, owner, options, settings, |_, _| {}).await?;
        if machines > 0 {
            warn!(from = from.0, machines, "DISPATCH was lost, and was rebuilt from the oldest live lease");
        }
    }
    Ok(())
}

/// The number of consumers of a stream; `None` if the stream does not exist.
async fn consumer_count(js: &jetstream::Context, stream: &str) -> anyhow::Result<Option<usize>> {
    match js.get_stream(stream).await {
        Ok(found) => Ok(Some(found.cached_info().state.consumer_count)),
        Err(e) if matches!(e.kind(), GetStreamErrorKind::JetStream(ref e) if e.code() == 404) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("asking for {stream}")),
    }
}

/// Rebuilds DISPATCH. Returns the sequence at which the stream begins, and the number of machines that got a consumer.
/// `progress` is called with the last folded sequence, and the last sequence of the log.
pub(crate) async fn rebuild(
    log: &Log,
    owner: &jetstream::Context,
    options: &StreamOptions,
    settings: &Settings,
    progress: impl Fn(Seq, Seq),
) -> anyhow::Result<(Seq, u32)> {
    let last = log.last_seq().await?;
    let (mut market, mut follower) = (Market::new(settings), log.follow(Seq(1)));
    while market.world.applied() < last {
        market.fold(&follower.next_batch().await);
        progress(market.world.applied(), last);
    }
    let from = market.oldest_lease().unwrap_or(last.next());
    stream::provision_dispatch(owner, options, from).await?;
    stream::provision_missing(owner, options).await?;
    let mut machines = 0_u32;
    for (machine, slots) in market.machines() {
        stream::provision_machine(&log.jetstream(), machine, slots).await?;
        machines += 1;
    }
    Ok((from, machines))
}

/// The market, folded with the settings of this deployment.
struct Market<'a> {
    world: World,
    settings: &'a Settings,
}

impl<'a> Market<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self { world: World::default(), settings }
    }

    fn fold(&mut self, batch: &[Recorded]) {
        for recorded in batch {
            self.world.apply(recorded, self.settings);
        }
    }

    fn oldest_lease(&self) -> Option<Seq> {
        let live = self.world.machines().flat_map(|(_, machine)| machine.leases.values());
        live.map(|lease| lease.0).min()
    }

    /// The machines on the market, each with its number of slots.
    fn machines(&self) -> impl Iterator<Item = (MachineId, u32)> {
        let on_market = self.world.machines().filter(|(_, machine)| machine.availability != Availability::Delisted);
        on_market.map(|(id, machine)| (*id, machine.offer.slots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{
        Actor, Event, JobId, Millis, Timestamp,
        message::{Envelope, EventId},
    };

    /// An event from the fixtures, recorded at this sequence.
    fn recorded(seq: u64, wire_name: &str) -> Recorded {
        let file = format!("{}/../events/fixtures/{wire_name}.json", env!("CARGO_MANIFEST_DIR"));
        let event = Event::decode(wire_name, &std::fs::read(file).unwrap()).unwrap();
        let id = EventId(wire_name.to_owned());
        let envelope = Envelope { id, actor: Actor::Platform, cause: None, correlation: event.job() };
        Recorded {
            seq: Seq(seq),
            at: Timestamp::from_millis(1_000),
            aggregate: Some(event.aggregate()),
            entry: Ok((envelope, event)),
            leaf: [0; 32],
        }
    }

    #[test]
    fn the_log_is_folded_with_the_settings_of_the_deployment() {
        let settings = Settings { decline_pause: Millis(77_000), ..Settings::default() };
        let mut market = Market::new(&settings);
        market.fold(&[recorded(1, "MachineListed.v1"), recorded(2, "JobSubmitted.v1")]);
        assert_eq!(market.oldest_lease(), None);
        market.fold(&[recorded(3, "JobAssigned.v1")]);
        assert_eq!(market.oldest_lease(), Some(Seq(3)));
        market.fold(&[recorded(4, "Declined.v1")]);
        assert_eq!(market.oldest_lease(), None);

        let (machine, slots) = market.machines().next().unwrap();
        let job: JobId = "01900000-0000-7000-8000-0000000000d4".parse().unwrap();
        let avoided_until = market.world.job(job).unwrap().avoid[&machine];
        assert_eq!(avoided_until, Some(Timestamp::from_millis(78_000)));
        assert_eq!(slots, 1);
    }
}
