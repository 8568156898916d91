//! The facts from which the state of a machine follows, and their change by each event. Several models keep these
//! facts.

use gpubnb_events::Event;
use gpubnb_query::view::MachineState;

/// The facts, in a row of a model.
pub(crate) struct StateFacts<'a> {
    /// The state that the owner asked for.
    pub(crate) wanted: &'a mut MachineState,
    /// The state by the machine's heartbeats.
    pub(crate) presence: &'a mut MachineState,
    /// True if the owner uses the machine.
    pub(crate) away: &'a mut bool,
}

impl StateFacts<'_> {
    /// Applies an event of the machine, except `MachineListed`.
    pub(crate) fn apply(self, event: &Event) {
        match event {
            Event::MachinePaused(e) if e.away => *self.away = true,
            Event::MachineResumed(e) if e.away => *self.away = false,
            Event::MachinePaused(_) => *self.wanted = MachineState::Paused,
            Event::MachineResumed(_) => *self.wanted = MachineState::Online,
            Event::MachineDrainStarted(e) if e.maintenance => *self.wanted = MachineState::Maintenance,
            Event::MachineDrainStarted(_) => *self.wanted = MachineState::Draining,
            Event::MachineDelisted(_) => *self.wanted = MachineState::Delisted,
            Event::MachineSuspected(_) => *self.presence = MachineState::Suspect,
            Event::MachineLost(_) => *self.presence = MachineState::Lost,
            Event::MachineRecovered(_) => *self.presence = MachineState::Online,
            _ => {}
        }
    }

    /// Applies `MachineListed` to a machine that was listed before. A new offer does not end the owner's pause. The
    /// offer only makes a delisted machine available again.
    pub(crate) fn list_again(self) {
        if *self.wanted == MachineState::Delisted {
            *self.wanted = MachineState::Online;
        }
        *self.presence = MachineState::Online;
    }
}
