//! The process managers of every replica: scheduler, settlement, reconciler, watchdog. No one of them leads: all
//! of them work at once, each on its own view (services/src/process).

use gpubnb_domain::{Command, Settings, World, due, machine::Presence};
use gpubnb_events::{Actor, MachineId, Seq, Timestamp};

use super::{market::Market, op::Caller, tape::Dice};

impl Market {
    /// One manager of one replica does one thing.
    pub(crate) fn manager(&mut self, dice: &mut Dice) {
        let place = dice.index(self.replicas.len());
        let replica = &self.replicas[place];
        let (world, now) = (&replica.world, replica.clock(self.now));
        let command = match dice.below(9) {
            0 | 1 => dice.pick(&settle(world)),
            2..=4 => dice.pick(&schedule(world, now)),
            5 | 6 => dice.pick(&reconcile(world, now, &self.settings)),
            _ => watch(world, dice),
        };
        if let Some(command) = command {
            self.say_to(place, Caller::Anyone, Actor::Platform, command);
        }
    }
}

/// Jobs that wait, and for which there is a machine: one pass after another, as the shipped scheduler goes on.
pub(crate) fn schedule(world: &World, now: Timestamp) -> Vec<Command> {
    let (mut due, mut after) = (Vec::new(), Seq::ZERO);
    loop {
        let pass = due::scheduling_pass(world, after);
        due.extend(pass.jobs.into_iter().filter_map(|job| due::due_assignment(world, job, now)));
        if pass.next == Seq::ZERO {
            return due;
        }
        after = pass.next;
    }
}

/// Jobs that ended.
pub(crate) fn settle(world: &World) -> Vec<Command> {
    due::due_settlements(world).map(|job| Command::Settle(job.id)).collect()
}

/// Jobs that something must be done about, where the control plane has been steady for ever.
pub(crate) fn reconcile(world: &World, now: Timestamp, settings: &Settings) -> Vec<Command> {
    due::due_expiries(world, now, Timestamp::EPOCH, settings)
}

/// A machine falls silent, stays silent, or is heard again; mostly one that has something to lose.
fn watch(world: &World, dice: &mut Dice) -> Option<Command> {
    let busy = !dice.one_in(3);
    let watched = world.machines().filter(|(_, m)| !busy || !m.leases.is_empty());
    let machines: Vec<(MachineId, Presence)> = watched.map(|(id, m)| (*id, m.presence)).collect();
    let (machine, presence) = dice.pick(&machines)?;
    match presence {
        Presence::Online => Some(Command::Suspect(machine)),
        Presence::Suspect if dice.one_in(3) => Some(Command::Recover(machine)),
        Presence::Suspect => Some(Command::Lose(machine)),
        Presence::Lost => dice.one_in(2).then_some(Command::Recover(machine)),
    }
}
