//! Turns: which requests of machines an endpoint works on now, and which wait, so that a flood of one machine does not
//! make the requests of other machines wait.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use gpubnb_events::MachineId;

/// Requests of one machine that an endpoint works on at once.
const IN_FLIGHT: usize = 16;
/// Requests of one machine that wait for their turn.
const WAITING: usize = 256;

/// The turns of the machines at one endpoint. A machine without requests takes no memory.
#[derive(Debug)]
pub(crate) struct Turns<T>(Mutex<HashMap<MachineId, Turn<T>>>);

#[derive(Debug)]
struct Turn<T> {
    in_flight: usize,
    waiting: VecDeque<T>,
}

/// The place of a request that has just arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place<T> {
    /// The endpoint works on this request now, and calls [`Turns::next`] afterwards.
    Now(T),
    /// The request waits. [`Turns::next`] returns it in time.
    Later,
    /// As many requests of this machine wait as may.
    Full(T),
}

impl<T> Turns<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Gives a request of a machine its place.
    pub(crate) fn arrive(&self, machine: MachineId, request: T) -> Place<T> {
        let mut machines = self.machines();
        let turn = machines.entry(machine).or_insert_with(|| Turn { in_flight: 0, waiting: VecDeque::new() });
        if turn.in_flight < IN_FLIGHT {
            turn.in_flight += 1;
            return Place::Now(request);
        }
        if turn.waiting.len() == WAITING {
            return Place::Full(request);
        }
        turn.waiting.push_back(request);
        Place::Later
    }

    /// Ends the work on one request of a machine. Returns the request of the machine that is worked on instead.
    pub(crate) fn next(&self, machine: MachineId) -> Option<T> {
        let mut machines = self.machines();
        let turn = machines.get_mut(&machine)?;
        if let Some(request) = turn.waiting.pop_front() {
            return Some(request);
        }
        turn.in_flight = turn.in_flight.saturating_sub(1);
        if turn.in_flight == 0 {
            machines.remove(&machine);
        }
        None
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<MachineId, Turn<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_machine_waits_in_order_up_to_a_bound_and_leaves_others_their_turn() {
        let (turns, flooding, other) = (Turns::new(), MachineId::generate(), MachineId::generate());
        for request in 0..IN_FLIGHT {
            assert_eq!(turns.arrive(flooding, request), Place::Now(request));
        }
        for request in IN_FLIGHT..IN_FLIGHT + WAITING {
            assert_eq!(turns.arrive(flooding, request), Place::Later);
        }
        assert_eq!(turns.arrive(flooding, 0), Place::Full(0));
        assert_eq!(turns.arrive(other, 7), Place::Now(7));
        assert_eq!(turns.next(other), None);
        let order: Vec<usize> = std::iter::from_fn(|| turns.next(flooding)).collect();
        assert_eq!(order, (IN_FLIGHT..IN_FLIGHT + WAITING).collect::<Vec<_>>());
        assert_eq!(turns.arrive(flooding, 0), Place::Now(0));
    }

    #[test]
    fn a_machine_whose_requests_are_answered_takes_no_memory() {
        let (turns, machine) = (Turns::new(), MachineId::generate());
        for request in 0..IN_FLIGHT {
            turns.arrive(machine, request);
        }
        for _ in 0..IN_FLIGHT {
            assert_eq!(turns.next(machine), None);
        }
        assert!(turns.machines().is_empty());
    }
}
