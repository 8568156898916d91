//! The settings of the machine that its owner can change on the market's pages too: price, slots, hours and idle time.
//!
//! The worker begins with its options. The market answers each list of attempts with the settings that the owner wants;
//! the worker takes them, and lists the machine again with them. A file keeps the settings, so that a restart does not
//! undo them. The newest word counts: an option that was changed since the last start overrides the page, and `--pin`
//! keeps an option whatever the page says.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use gpubnb_events::{
    command::{ListMachine, Listed},
    spec::{MachineSettings, Offer, Setting},
};
use gpubnb_runtime::rpc::RpcError;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tracing::{debug, info, warn};

use crate::{json_file, lease_table::LeaseTable, platform::Platform};

/// The file of the settings, in the worker's directory.
const FILE: &str = "settings.json";

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
struct SavedSettings {
    /// The settings that the worker had.
    settings: MachineSettings,
    /// The options with which the worker had started.
    options: MachineSettings,
}

/// Chooses the settings at the worker's start. `offer` has the settings of the options; `desired` are those that the
/// owner wants by the market, if it knows the machine. The choice is saved when the machine is listed with it.
pub(crate) fn choose(state: &Path, offer: &mut Offer, desired: Option<MachineSettings>) {
    let options = offer.settings();
    if let Some(saved) = json_file::saved::<SavedSettings>(&state.join(FILE)) {
        let changed = saved.options.differing(&options);
        offer.set(merged(offer, &desired.unwrap_or(saved.settings), &changed));
    }
}

/// The settings of the offer, changed to the desired ones but for those that are pinned or in `kept`.
fn merged(offer: &Offer, desired: &MachineSettings, kept: &[Setting]) -> MachineSettings {
    let mut settings = offer.settings();
    for setting in settings.differing(desired) {
        if !kept.contains(&setting) && !offer.policy.pinned.contains(&setting) {
            settings.take(setting, desired);
        }
    }
    settings
}

/// Saves the settings with which the machine is listed, and those of its options.
pub(crate) fn save(state: &Path, settings: &MachineSettings, options: &MachineSettings) {
    let saved = SavedSettings { settings: settings.clone(), options: options.clone() };
    if let Err(e) = json_file::save(&state.join(FILE), &saved) {
        warn!(error = %e, "the settings of the machine cannot be saved: a restart begins with the options again");
    }
}

/// The settings while the worker runs. Clones share them.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The worker's directory.
    state: Arc<PathBuf>,
    /// The settings of the options.
    options: Arc<MachineSettings>,
    offer: watch::Sender<Offer>,
    /// The settings that the market refused last. They are not tried again.
    refused: Arc<Mutex<Option<MachineSettings>>>,
    leases: Arc<LeaseTable>,
    platform: Platform,
}

impl Settings {
    /// `offer` is the listed offer, and `options` are the settings of the options.
    pub(crate) fn new(
        state: &Path,
        offer: Offer,
        options: MachineSettings,
        leases: Arc<LeaseTable>,
        platform: Platform,
    ) -> Self {
        let (state, options, refused) = (Arc::new(state.to_owned()), Arc::new(options), Arc::default());
        Self { state, options, offer: watch::Sender::new(offer), refused, leases, platform }
    }

    /// The offer with the present settings.
    pub(crate) fn offer(&self) -> Offer {
        self.offer.borrow().clone()
    }

    /// Lists the machine with the settings that the owner wants, and takes them when the market has answered. If it
    /// does not answer, the next list of attempts tries again.
    pub(crate) async fn adopt(&self, desired: &MachineSettings) {
        let mut offer = self.offer();
        let settings = merged(&offer, desired, &[]);
        let mut refused = self.refused.lock().await;
        if settings == offer.settings() || refused.as_ref() == Some(&settings) {
            return;
        }
        let slots_before = offer.slots;
        offer.set(settings.clone());
        // The market may assign jobs to new slots before its answer arrives here.
        self.leases.set_slots(slots_before.max(settings.slots));
        match self.platform.call::<Listed>("list", &ListMachine { offer: offer.clone() }).await {
            Ok(_) => info!(?settings, "the owner changed the settings of the machine"),
            Err(RpcError::Refused(refusal)) => {
                warn!(%refusal, "the market refuses the owner's new settings");
                self.leases.set_slots(slots_before);
                *refused = Some(settings);
                return;
            }
            Err(RpcError::Unavailable(problem)) => return debug!(%problem, "listing again with the new settings"),
        }
        *refused = None;
        self.leases.set_slots(settings.slots);
        save(&self.state, &settings, &self.options);
        self.offer.send_replace(offer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{
        HourlyRate, MicroUsd,
        spec::{Hardware, Mebibytes, OwnerPolicy},
    };

    fn offer(slots: u32, hours: Option<&str>) -> Offer {
        let hardware = Hardware {
            cpu_model: String::new(),
            cpu_cores: 1,
            memory: Mebibytes(1),
            disk: Mebibytes(1),
            gpus: Vec::new(),
            driver: None,
            cuda: None,
            simulated: false,
        };
        let policy = OwnerPolicy { hours: hours.map(ToOwned::to_owned), ..OwnerPolicy::default() };
        let (name, region) = ("a".to_owned(), "b".to_owned());
        Offer { name, region, hardware, price: HourlyRate(MicroUsd(1)), slots, policy }
    }

    fn chosen(state: &Path, mut offer: Offer, desired: Option<&MachineSettings>) -> MachineSettings {
        let options = offer.settings();
        choose(state, &mut offer, desired.cloned());
        save(state, &offer.settings(), &options);
        offer.settings()
    }

    #[test]
    fn the_newest_word_of_the_owner_counts() {
        let state = tempfile::tempdir().unwrap();
        let options = offer(1, None);
        let page = offer(3, Some("22:00-08:00")).settings();
        // At the first start the options count, because nothing says when the page was changed.
        assert_eq!(chosen(state.path(), options.clone(), Some(&page)), options.settings());
        assert_eq!(chosen(state.path(), options.clone(), Some(&page)), page);
        // The market is away: the settings of the last run hold.
        assert_eq!(chosen(state.path(), options, None), page);
        // A changed option that the market has not answered counts at the next start, too.
        let mut unanswered = offer(2, None);
        choose(state.path(), &mut unanswered, Some(page.clone()));
        // The owner changed an option, and left the hours to the page.
        let changed = chosen(state.path(), offer(2, None), Some(&page));
        assert_eq!((changed.slots, changed.hours), (2, page.hours));
    }

    #[test]
    fn a_pinned_option_is_kept() {
        let state = tempfile::tempdir().unwrap();
        let mut options = offer(1, None);
        options.policy.pinned = vec![Setting::Slots];
        let page = offer(3, Some("22:00-08:00")).settings();
        chosen(state.path(), options.clone(), None);
        let settings = chosen(state.path(), options, Some(&page));
        assert_eq!((settings.slots, settings.hours), (1, page.hours));
    }
}
