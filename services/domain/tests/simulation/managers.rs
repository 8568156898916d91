//! The process managers of every replica: scheduler, settlement, reconciler and watchdog. In production only the
//! leader's managers run (`services/src/process`). Here the managers of all replicas run, each on the state of its own
//! replica.

use gpubnb_domain::{Command, Settings, World, due, machine::Presence, queue::ResumePlaces};
use gpubnb_events::{Actor, MachineId, Timestamp};

use super::{market::Market, op::Caller, tape::Dice};

impl Market {
    /// One manager of one replica gives one command, if one is due.
    pub(crate) fn act_as_manager(&mut self, dice: &mut Dice) {
        let index = dice.index(self.replicas.len());
        let replica = &self.replicas[index];
        let (world, now) = (&replica.world, replica.clock(self.now));
        let command = match dice.below(10) {
            9 => dice.pick(&due::due_batches(world, now, &self.settings)),
            0 | 1 => dice.pick(&settle(world)),
            2..=4 => dice.pick(&schedule(world, now)),
            5 | 6 => dice.pick(&reconcile(world, now, &self.settings)),
            _ => watch(world, dice),
        };
        if let Some(command) = command {
            self.issue_to(index, Caller::Client, Actor::Platform, command);
        }
    }
}

/// The assignments that are possible now: all passes of the real scheduler over the queue.
pub(crate) fn schedule(world: &World, now: Timestamp) -> Vec<Command> {
    let (mut due, mut resume) = (Vec::new(), ResumePlaces::new());
    loop {
        let pass = due::scheduling_pass(world, &resume);
        due.extend(pass.jobs.into_iter().filter_map(|job| due::due_assignment(world, job, now)));
        if pass.resume.is_empty() {
            return due;
        }
        resume = pass.resume;
    }
}

/// The settlements of jobs that ended, and the releases of the holds of submissions that made no job.
pub(crate) fn settle(world: &World) -> Vec<Command> {
    let settlements = due::due_settlements(world).map(|job| Command::Settle(job.id));
    settlements.chain(due::due_hold_releases(world)).collect()
}

/// The commands of the real reconciler. The replica counts as connected since the beginning.
pub(crate) fn reconcile(world: &World, now: Timestamp, settings: &Settings) -> Vec<Command> {
    due::due_expiries(world, now, Timestamp::EPOCH, settings)
}

/// The watchdog's next command about a machine. Two times in three it is a machine that has a job.
fn watch(world: &World, dice: &mut Dice) -> Option<Command> {
    let must_have_job = !dice.one_in(3);
    let watched = world.machines().filter(|(_, m)| !must_have_job || !m.leases.is_empty());
    let machines: Vec<(MachineId, Presence)> = watched.map(|(id, m)| (*id, m.presence)).collect();
    let (machine, presence) = dice.pick(&machines)?;
    match presence {
        Presence::Online => Some(Command::Suspect(machine)),
        Presence::Suspect if dice.one_in(3) => Some(Command::Recover(machine)),
        Presence::Suspect => Some(Command::Lose(machine)),
        Presence::Lost => dice.one_in(2).then_some(Command::Recover(machine)),
    }
}
