//! The bounds of what a machine says about itself in its offer and its self-tests. The market cannot measure a machine,
//! but it refuses claims that no machine of today can meet.

use gpubnb_events::{
    HourlyRate, MicroUsd,
    event::{Check, RECOMMENDED_CHECKS, Speed, all_passed},
    spec::{Hardware, Hours, MachineSettings, Offer, Setting},
    text::is_plain,
};

use crate::{
    DomainError,
    rules::{check_egress, check_text},
};

/// Greatest price of a machine per hour.
const MAX_PRICE: MicroUsd = MicroUsd::dollars(1_000);
/// Most slots of a machine. A machine runs one job in each slot.
pub const MAX_SLOTS: u32 = 256;
/// Longest idle time that a machine waits for: a day.
const MAX_IDLE_MINUTES: u32 = 1_440;
/// Most cores.
const MAX_CORES: u32 = 4_096;
/// Most memory: 64 TiB.
const MAX_MEMORY_MIB: u64 = 64 << 20;
/// Largest disk: 1 PiB.
const MAX_DISK_MIB: u64 = 1 << 30;
/// Most GPUs.
const MAX_GPUS: usize = 16;
/// Most memory of a GPU: 2 TiB.
const MAX_GPU_MEMORY_MIB: u64 = 2 << 20;
/// Greatest speed of a core: 2 TFLOP/s. The fastest cores that can be bought reach about a quarter.
const MAX_CORE_MFLOPS: u64 = 2_000_000;
/// Greatest speed of a GPU: 20 PFLOP/s. The fastest GPUs that can be bought reach about a quarter.
const MAX_GPU_MFLOPS: u64 = 20_000_000_000;
/// Longest name of a hardware component, bytes.
const MAX_HARDWARE_NAME: usize = 128;
/// The most registries that an offer names.
const MAX_REGISTRIES: usize = 64;
/// Most checks of a self-test.
const MAX_CHECKS: usize = 64;
/// Longest text in a check, bytes.
const MAX_CHECK_TEXT: usize = 400;
/// Longest texts of all checks of a self-test together, bytes.
const MAX_TEST_TEXT: usize = 32_768;
/// The checks that every self-test has. A self-test in which every check passed must have them all: one invented check
/// is no self-test.
pub const COMPLETE_TEST: [&str; 8] = [
    "docker.answers",
    "docker.version",
    "docker.runtime",
    "disk.room",
    "disk.write",
    "cpu.cores",
    "cpu.matmul",
    "clock.skew",
];

pub(super) fn check_price(price: HourlyRate) -> Result<(), DomainError> {
    if price.0 < MicroUsd::ZERO || price.0 > MAX_PRICE {
        return Err(DomainError::field("price", format!("The price per hour must be from $0 to {MAX_PRICE}.")));
    }
    Ok(())
}

pub(super) fn check_settings(settings: &MachineSettings) -> Result<(), DomainError> {
    check_price(settings.price)?;
    check_slots(settings.slots)?;
    if let Some(hours) = &settings.hours {
        check_text("hours", hours, 80)?;
        hours.parse::<Hours>().map_err(|problem| DomainError::field("hours", format!("{problem}.")))?;
    }
    if settings.idle_minutes.is_some_and(|minutes| minutes > MAX_IDLE_MINUTES) {
        return Err(DomainError::field("idle_minutes", format!("At most {MAX_IDLE_MINUTES} minutes.")));
    }
    Ok(())
}

fn check_slots(slots: u32) -> Result<(), DomainError> {
    if slots == 0 || slots > MAX_SLOTS {
        return Err(DomainError::field("slots", format!("A machine runs from 1 to {MAX_SLOTS} jobs at once.")));
    }
    Ok(())
}

pub(super) fn check_offer(offer: &Offer) -> Result<(), DomainError> {
    check_text("name", &offer.name, 80)?;
    check_text("region", &offer.region, 40)?;
    check_price(offer.price)?;
    check_slots(offer.slots)?;
    if let Some(hours) = &offer.policy.hours {
        check_text("hours", hours, 80)?;
    }
    if offer.policy.pinned.len() > Setting::ALL.len() {
        return Err(DomainError::field("pinned", "A setting is pinned more than once."));
    }
    check_egress(&offer.policy.egress)?;
    let registries = offer.policy.registries.as_deref().unwrap_or_default();
    if registries.len() > MAX_REGISTRIES || !registries.iter().all(|registry| is_name(registry)) {
        let message = format!("A machine names at most {MAX_REGISTRIES} registries of {MAX_HARDWARE_NAME} bytes each.");
        return Err(DomainError::field("registries", message));
    }
    check_hardware(&offer.hardware)
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_HARDWARE_NAME && name.chars().all(is_plain)
}

fn check_hardware(hardware: &Hardware) -> Result<(), DomainError> {
    if hardware.gpus.len() > MAX_GPUS {
        return Err(DomainError::field("gpus", format!("A machine has at most {MAX_GPUS} GPUs.")));
    }
    let is_possible = hardware.cpu_cores <= MAX_CORES
        && hardware.memory.0 <= MAX_MEMORY_MIB
        && hardware.disk.0 <= MAX_DISK_MIB
        && hardware.gpus.iter().all(|gpu| gpu.memory.0 <= MAX_GPU_MEMORY_MIB);
    if !is_possible {
        return Err(DomainError::field(
            "hardware",
            "No machine has more than 4,096 cores, 64 TiB of memory, 1 PiB of disk, or 2 TiB of memory in a GPU.",
        ));
    }
    let gpu_names = hardware
        .gpus
        .iter()
        .flat_map(|gpu| [Some(&gpu.uuid), Some(&gpu.model), gpu.capability.as_ref(), gpu.pci.as_ref()]);
    let versions = hardware.driver.iter().chain(&hardware.cuda);
    let mut names = gpu_names.flatten().chain(versions).chain([&hardware.cpu_model]);
    if !names.all(|name| is_name(name)) {
        let message = format!("A name of a component has at most {MAX_HARDWARE_NAME} bytes, all of them visible.");
        return Err(DomainError::field("hardware", message));
    }
    Ok(())
}

pub(super) fn check_test(checks: &[Check]) -> Result<(), DomainError> {
    let texts = || checks.iter().flat_map(Check::texts);
    let is_bounded = |text: &str| text.len() <= MAX_CHECK_TEXT && text.chars().all(is_plain);
    if texts().map(str::len).sum::<usize>() > MAX_TEST_TEXT {
        return Err(DomainError::field("checks", format!("A self-test has at most {MAX_TEST_TEXT} bytes of text.")));
    }
    if checks.len() > MAX_CHECKS || !texts().all(is_bounded) {
        let message =
            format!("A self-test has at most {MAX_CHECKS} checks, with texts of at most {MAX_CHECK_TEXT} bytes.");
        return Err(DomainError::field("checks", message));
    }
    if checks.iter().any(|check| check.recommended && !RECOMMENDED_CHECKS.contains(&check.id.as_str())) {
        let message = format!("Only these checks are recommendations: {}.", RECOMMENDED_CHECKS.join(", "));
        return Err(DomainError::field("checks", message));
    }
    let has = |id: &&str| checks.iter().any(|check| check.id == *id);
    if all_passed(checks) && !COMPLETE_TEST.iter().all(has) {
        let message = format!("A self-test that passed has the checks {}.", COMPLETE_TEST.join(", "));
        return Err(DomainError::field("checks", message));
    }
    let speed = Speed::from_checks(checks);
    let is_possible =
        speed.core.is_none_or(|core| core <= MAX_CORE_MFLOPS) && speed.gpu().is_none_or(|gpu| gpu <= MAX_GPU_MFLOPS);
    if is_possible { Ok(()) } else { Err(DomainError::field("checks", "No machine is as fast as this test says.")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::given;
    use gpubnb_events::spec::{Gpu, Mebibytes};

    fn check(id: &str, actual: &str) -> Check {
        let (id, actual) = (id.to_owned(), actual.to_owned());
        Check {
            id,
            actual,
            required: String::new(),
            unit: String::new(),
            passed: true,
            remedy: String::new(),
            recommended: false,
        }
    }

    #[test]
    fn a_test_with_invented_checks_or_an_impossible_speed_is_refused() {
        let complete: Vec<_> = COMPLETE_TEST.iter().map(|id| check(id, "7")).collect();
        check_test(&complete).unwrap();
        check_test(&[]).unwrap();
        check_test(&[Check { passed: false, ..check("disk.write", "1") }]).unwrap();
        assert!(check_test(&[check("all.good", "yes")]).is_err());
        assert!(check_test(&complete[1..]).is_err());
        let recommended = |id: &str| Check { recommended: true, passed: false, ..check(id, "1") };
        check_test(&[complete.clone(), vec![recommended("docker.runc")]].concat()).unwrap();
        assert!(check_test(&[recommended("docker.runc")]).is_err(), "this test passed, and is not complete");
        assert!(check_test(&[complete.clone(), vec![recommended("gpu.0.health")]].concat()).is_err());
        let with = |id: &str, actual: &str| check_test(&[complete.clone(), vec![check(id, actual)]].concat());
        with("gpu.0.matmul", "900000").unwrap();
        assert!(with("gpu.0.matmul", "18446744073709551615").is_err());
        let fast: Vec<_> = complete
            .iter()
            .cloned()
            .map(|c| if c.id == "cpu.matmul" { check(&c.id, "18446744073709551615") } else { c })
            .collect();
        assert!(check_test(&fast).is_err());
        assert!(with("a", "b\u{202e}c").is_err());
    }

    #[test]
    fn hardware_that_no_machine_has_is_refused() {
        type Change = fn(&mut Offer);
        let gpu = || Gpu {
            uuid: "GPU-1".to_owned(),
            model: "m".to_owned(),
            memory: Mebibytes(1),
            capability: None,
            pci: None,
        };
        let offer = given().offer();
        check_offer(&offer).unwrap();
        let changes: [(&str, Change); 8] = [
            ("cores", |o| o.hardware.cpu_cores = MAX_CORES + 1),
            ("memory", |o| o.hardware.memory = Mebibytes(u64::MAX)),
            ("disk", |o| o.hardware.disk = Mebibytes(u64::MAX)),
            ("gpu memory", |o| o.hardware.gpus.iter_mut().for_each(|gpu| gpu.memory = Mebibytes(u64::MAX))),
            ("model", |o| o.hardware.cpu_model = "x".repeat(MAX_HARDWARE_NAME + 1)),
            ("capability", |o| o.hardware.gpus.iter_mut().for_each(|gpu| gpu.capability = Some("9".repeat(200_000)))),
            ("registry", |o| o.policy.registries = Some(vec!["r".repeat(MAX_HARDWARE_NAME + 1)])),
            ("registries", |o| o.policy.registries = Some(vec![String::new(); MAX_REGISTRIES + 1])),
        ];
        for (name, change) in changes {
            let mut changed = offer.clone();
            changed.hardware.gpus = vec![gpu()];
            change(&mut changed);
            assert!(check_offer(&changed).is_err(), "{name}");
        }
    }
}
