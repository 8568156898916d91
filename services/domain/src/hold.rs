//! The money that the market holds for a job, and the price limit of a job without a budget.

use gpubnb_events::{HourlyRate, MicroUsd, Timestamp, command::SubmitJob, spec::RejectCount};

use crate::{
    DomainError, Settings, World,
    placement::{self, Choice},
};

/// The money to hold for a job.
pub(crate) struct Hold {
    pub(crate) amount: MicroUsd,
    /// The highest price that the amount pays for, if the market chose the amount.
    pub(crate) max_price: Option<HourlyRate>,
}

/// The money to hold for a job: its budget. Without a budget, the cost of the full time at [`price_to_hold`]. `choice`
/// is the placement of the submission, which is only computed for a submission without a budget and a price cap.
pub(crate) fn hold(
    world: &World,
    c: &SubmitJob,
    choice: impl FnOnce() -> Choice,
    now: Timestamp,
    settings: &Settings,
) -> Result<Hold, DomainError> {
    let hold = if let Some(budget) = c.budget {
        Hold { amount: budget, max_price: None }
    } else {
        let price = price_to_hold(world, c, choice, now)?;
        Hold { amount: price.cost_of(c.time.millis()), max_price: Some(price) }
    };
    if hold.amount < MicroUsd::ZERO || hold.amount > settings.max_budget || (c.budget == Some(MicroUsd::ZERO)) {
        let message = format!("The budget must be above $0 and at most {}.", settings.max_budget);
        return Err(DomainError::field("budget", message));
    }
    Ok(hold)
}

/// The price for which a submission without a budget holds money: its price cap. Without a cap, it is the price of the
/// most expensive suitable machine, but at most twice the price of the machine that would run the job now. So the job
/// can move to another machine, and no dear machine of the market makes the hold large. A machine that is suitable but
/// busy counts as well. An error if no machine is suitable.
fn price_to_hold(
    world: &World,
    c: &SubmitJob,
    choice: impl FnOnce() -> Choice,
    now: Timestamp,
) -> Result<HourlyRate, DomainError> {
    if let Some(cap) = c.placement.requirements.price_cap {
        return Ok(cap);
    }
    let choice = choice();
    let (lowest, highest) = placement::suitable_prices(world, c, now).ok_or_else(|| unknown_cost(&choice))?;
    let typical = choice.machine.and_then(|id| world.machine(id)).map_or(lowest, |machine| machine.offer.price);
    Ok(highest.min(HourlyRate(typical.0 + typical.0)))
}

/// The refusal of a submission without a budget that no machine suits. It says why.
fn unknown_cost(choice: &Choice) -> DomainError {
    let reasons: Vec<_> = choice.explanation.rejected.iter().map(RejectCount::description).collect();
    let why = if reasons.is_empty() { "No machine is listed".to_owned() } else { reasons.join("; ") };
    let message =
        format!("No machine can run this job now ({why}). Change the job, or set a budget, and the job waits.");
    DomainError::field("budget", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use gpubnb_events::{Millis, spec::Mebibytes};

    #[test]
    fn a_dear_machine_neither_makes_the_hold_large_nor_gets_a_job_without_a_budget() {
        let mut market = given();
        let price = market.offer().price;
        let mut dear = market.offer();
        dear.price = HourlyRate(MicroUsd(price.0.0 * 100));
        dear.slots = 5;
        market.list_machine(dear.clone());
        let submit = market.new_submission();
        let quote = market.world.quote(market.consumer, &submit, market.now, &market.settings).unwrap();
        let twice = HourlyRate(price.0 + price.0);
        assert_eq!((quote.expected, quote.max_price), (Some(price.cost_of(Millis(600_000))), Some(twice)));
        assert_eq!(quote.hold, twice.cost_of(Millis(600_000)));
        // The first job takes the only slot of the cheap machine. The second one does not move to the dear machine.
        let (first, second) = (market.submit(submit), market.submit(market.new_submission()));
        market.assign(first);
        let choose = |market: &TestMarket, job| {
            placement::choose(&market.world, &placement::Request::of(market.job(job)), market.now).machine
        };
        assert_eq!(choose(&market, second), None);
        // A new quote tells that only the dear machine is free.
        let third = market.new_submission();
        let quote = market.world.quote(market.consumer, &third, market.now, &market.settings).unwrap();
        assert_eq!(quote.price, Some(dear.price));
        // Whoever sets a budget gets any machine.
        let mut rich = market.new_submission();
        rich.budget = Some(MicroUsd::dollars(1));
        let rich = market.submit(rich);
        assert_eq!(market.job(rich).limits.max_price, None);
        assert!(choose(&market, rich).is_some());
    }

    #[test]
    fn a_refused_quote_says_why_no_machine_fits() {
        let market = given();
        let mut submit = market.new_submission();
        submit.spec.resources.memory = Mebibytes(1 << 22);
        let refusal = market.world.quote(market.consumer, &submit, market.now, &market.settings).unwrap_err();
        assert!(refusal.to_string().contains("1 machine: too little CPU, memory or disk"), "{refusal}");
    }
}
