//! DISPATCH made anew from MARKET, where the broker has lost it or never had it: from the oldest lease that is live, and
//! each machine's consumer with it. Sourced from the beginning, the job messages of leases that ended would be refused one
//! by one, before any that counts.

use anyhow::Context as _;
use async_nats::jetstream::{self, context::GetStreamErrorKind};
use gpubnb_domain::{Settings, World, machine::Availability};
use gpubnb_events::Seq;
use gpubnb_log::{
    Log,
    stream::{self, DISPATCH, MARKET, StreamOptions},
};
use tracing::warn;

/// Makes it anew where MARKET has events and DISPATCH is gone. `log` may append, `owner` may change streams.
pub(crate) async fn where_lost(
    js: &jetstream::Context,
    owner: &jetstream::Context,
    options: &StreamOptions,
) -> anyhow::Result<()> {
    // Without a consumer nobody fetches anything: it was lost, or made and left before its consumers were.
    let in_use = consumers(owner, DISPATCH).await?.is_some_and(|consumers| consumers > 0);
    if in_use || consumers(owner, MARKET).await?.is_none() {
        return Ok(());
    }
    let log = Log::open(js.clone()).await?;
    if log.last_seq().await? > Seq::ZERO {
        let (from, machines) = anew(&log, owner, options, |_, _| {}).await?;
        if machines > 0 {
            warn!(from = from.0, machines, "DISPATCH was lost, and is made anew from the oldest live lease");
        }
    }
    Ok(())
}

/// How many consumers a stream has; `None` where there is no such stream.
async fn consumers(js: &jetstream::Context, stream: &str) -> anyhow::Result<Option<usize>> {
    match js.get_stream(stream).await {
        Ok(found) => Ok(Some(found.cached_info().state.consumer_count)),
        Err(e) if matches!(e.kind(), GetStreamErrorKind::JetStream(ref e) if e.code() == 404) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("asking for {stream}")),
    }
}

/// Makes it, and tells from which event on, and for how many machines. `folded` hears how far the log is looked at.
pub(crate) async fn anew(
    log: &Log,
    owner: &jetstream::Context,
    options: &StreamOptions,
    folded: impl Fn(Seq, Seq),
) -> anyhow::Result<(Seq, u32)> {
    let (last, settings) = (log.last_seq().await?, Settings::default());
    let (mut world, mut follower) = (World::default(), log.follow(Seq(1)));
    while world.applied() < last {
        for recorded in follower.next_batch().await {
            world.apply(&recorded, &settings);
        }
        folded(world.applied(), last);
    }
    let live = world.machines().flat_map(|(_, machine)| machine.leases.values());
    let from = live.map(|lease| lease.0).min().unwrap_or(last.next());
    stream::provision_dispatch(owner, options, from).await?;
    stream::provision_missing(owner, options).await?;
    let on_market = world.machines().filter(|(_, machine)| machine.availability != Availability::Delisted);
    let mut machines = 0_u32;
    for (id, machine) in on_market {
        stream::provision_machine(&log.jetstream(), *id, machine.offer.slots).await?;
        machines += 1;
    }
    Ok((from, machines))
}
