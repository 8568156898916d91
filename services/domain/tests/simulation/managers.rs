//! The process managers of every replica: scheduler, settlement, reconciler, watchdog. There is no leader here: the
//! managers of all replicas work at once, each on the state of its own replica (services/src/process).

use gpubnb_domain::{Command, Settings, World, due, machine::Presence};
use gpubnb_events::{Actor, MachineId, Seq, Timestamp};

use super::{market::Market, op::Caller, tape::Dice};

impl Market {
    /// One manager of one replica gives one command.
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

/// The assignments that are possible now: all passes of the shipped scheduler, one after the other.
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

/// The settlements of jobs that ended.
pub(crate) fn settle(world: &World) -> Vec<Command> {
    due::due_settlements(world).map(|job| Command::Settle(job.id)).collect()
}

/// The commands of the shipped reconciler, with a control plane that has been steady since the beginning.
pub(crate) fn reconcile(world: &World, now: Timestamp, settings: &Settings) -> Vec<Command> {
    due::due_expiries(world, now, Timestamp::EPOCH, settings)
}

/// A machine falls silent, stays silent, or is heard again. Two times in three, the machine has a job to lose.
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
